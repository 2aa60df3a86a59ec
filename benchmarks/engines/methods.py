"""Ways to measure the clean and the noisy part of all gradients in each training step.

Every method makes the same training steps. The rivals are used as their documentation shows, and
what they are used for is written around them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from benchmarks.engines.architectures import logits_of, loss_of
from benchmarks.engines.gradient_groups import Groups, group, is_noisy
from prioritymonitor import GradientMonitor

DEFAULT_EVERY = 16
"""Each how many steps the monitor measures at its defaults."""


class Refused(Exception):
    """A method cannot measure a model."""


class Plain:
    """Training that measures nothing; the other methods differ in what they override."""

    every = 1
    """Each how many steps are measured."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def step(self, x: Tensor, y: Tensor) -> Groups | None:
        """Make a training step; the groups where the method hands them out."""
        self.optimizer.zero_grad()
        groups = self.backward(x, y)
        self.optimizer.step()
        return groups

    def backward(self, x: Tensor, y: Tensor) -> Groups | None:
        loss_of(self.model, x, y).backward()
        return None

    def latest(self) -> dict[str, float]:
        """Tags of the last step that was measured, where the method says them."""
        return {}

    def close(self) -> None:
        """Leave the model alone."""


class Monitor(Plain):
    """`GradientMonitor` over all parameters; it is told which labels are noisy, and no more."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, **options: Any) -> None:
        super().__init__(model, optimizer)
        self.every = options.get("every", DEFAULT_EVERY)
        self._monitor = GradientMonitor(
            model, optimizer, noisy=lambda inputs, labels, index: is_noisy(labels), **options
        )

    def latest(self) -> dict[str, float]:
        latest = self._monitor.latest
        if not latest:
            raise Refused(self._monitor.decision.message)
        return latest

    def close(self) -> None:
        self._monitor.close()


class Opacus(Plain):
    """Hooks that fill `grad_sample` in the backward pass."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        _require("opacus", "pip install opacus")
        from opacus.grad_sample import GradSampleHooks

        super().__init__(model, optimizer)
        self._hooks = GradSampleHooks(model)

    def backward(self, x: Tensor, y: Tensor) -> Groups:
        super().backward(x, y)
        groups = group((p.grad_sample for p in self.model.parameters()), is_noisy(y))
        self._hooks.set_grad_sample_to_none()
        return groups

    def close(self) -> None:
        self._hooks.cleanup()


class Func(Plain):
    """`vmap` over the gradient of one sample's loss, besides the backward pass that trains."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model, optimizer)
        self._sample_gradients = vmap(grad(self._sample_loss), in_dims=(None, None, 0, 0))

    def backward(self, x: Tensor, y: Tensor) -> Groups:
        super().backward(x, y)
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        buffers = dict(self.model.named_buffers())
        gradients = self._sample_gradients(parameters, buffers, x, y)
        return group(gradients.values(), is_noisy(y))

    def _sample_loss(self, parameters: Any, buffers: Any, x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(self.model, (parameters, buffers), (x.unsqueeze(0),))
        return cross_entropy(logits_of(output), y.unsqueeze(0))


class BackPack(Plain):
    """Modules are extended; the backward pass fills `grad_batch` with the rows of the gradient."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        _require("backpack", "pip install --no-deps backpack-for-pytorch einops unfoldNd")
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad

        super().__init__(extend(model), optimizer)
        self._loss = extend(nn.CrossEntropyLoss())
        self._measuring: Callable[[], Any] = lambda: backpack(BatchGrad())

    def backward(self, x: Tensor, y: Tensor) -> Groups:
        with self._measuring(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says of each layer what we check once
            self._loss(logits_of(self.model(x)), y).backward()
        parameters = list(self.model.parameters())
        if not all(hasattr(p, "grad_batch") for p in parameters):
            raise Refused(f"no gradients per sample of {self._left_out()}")
        groups = group((p.grad_batch for p in parameters), is_noisy(y), scale=len(y))
        for p in parameters:
            del p.grad_batch
        return groups

    def _left_out(self) -> str:
        layers = {
            type(module).__name__
            for module in self.model.modules()
            for p in module.parameters(recurse=False)
            if not hasattr(p, "grad_batch")
        }
        return ", ".join(sorted(layers))


def _require(package: str, command: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Refused(f"not installed: {command}")


OURS = {
    f"ours, {engine}": partial(Monitor, scope="all", engine=engine, every=1)
    for engine in ("closed_form", "func", "opacus")
}
OURS_BY_DEFAULT = "ours, closed_form, default cadence"
RIVALS: dict[str, Callable[..., Plain]] = {
    "Opacus": Opacus,
    "torch.func": Func,
    "BackPACK": BackPack,
}
METHODS: dict[str, Callable[..., Plain]] = {
    **OURS,
    OURS_BY_DEFAULT: partial(Monitor, scope="all", engine="closed_form"),
    **RIVALS,
}
