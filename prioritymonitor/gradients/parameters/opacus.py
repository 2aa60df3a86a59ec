"""Per-sample gradients by Opacus.

A model that is trained with differential privacy has them anyway: they are read, and left as they
are. For any other model, Opacus' formulas are applied to what its layers see in a measured step.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...capture import private
from ...capture.hooks import Guard, Hook, ModuleHook
from ...capture.parameters import trained_parameters
from ...capture.rerun import is_compiled
from ...errors import ArgumentValueError
from ...records import GroupGradients
from .engine import TrainedPass
from .refusals import refuse_batch_norm, refuse_compiled
from .sum_check import SumCheck
from .sums import GroupSums

if TYPE_CHECKING:
    from .layer_samples import LayerSamples

_REMEDY = 'engine="closed_form" may measure it'

_REPLACEMENTS = {
    nn.LSTM: "opacus.layers.DPLSTM",
    nn.GRU: "opacus.layers.DPGRU",
    nn.RNN: "opacus.layers.DPRNN",
    nn.MultiheadAttention: "opacus.layers.DPMultiheadAttention",
}


def check_model(model: nn.Module) -> None:
    """Raises if the model can't be measured by `OpacusEngine`.

    Raises:
        ArgumentValueError: Opacus is not installed, or the model has a layer that it can't treat;
            names the layer and what to do.
    """
    _require_opacus()
    if private_hooks(model) is not None:
        return
    refuse_batch_norm(model, "opacus")
    refuse_compiled(model, "opacus")
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not any(parameter.requires_grad for parameter in own):
            continue
        reason = ""
        if type(module) in _REPLACEMENTS:
            reason = f"Opacus can't see into it; use {_REPLACEMENTS[type(module)]} instead"
        elif any(True for _ in module.buffers()):
            reason = "Opacus takes no trainable layer with buffers; freeze it, replace it"
        if reason:
            raise ArgumentValueError(
                f'got engine="opacus" and {name or "a model"} ({type(module).__name__}): {reason}, '
                'or use engine="closed_form"'
            )


def private_hooks(model: nn.Module) -> Any:
    """Opacus' own hooks on a model that is trained with differential privacy; None if it has none.

    Raises:
        ArgumentValueError: They are of a kind that keeps no per-sample gradients.
    """
    from opacus.grad_sample import AbstractGradSampleModule, GradSampleHooks
    from opacus.grad_sample.gsm_base import AbstractGradSampleHooks

    for module in model.modules():
        owners = [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]
        for owner in [module, *owners]:
            if isinstance(owner, (AbstractGradSampleModule, AbstractGradSampleHooks)):
                is_kept = isinstance(owner, GradSampleHooks) and not hasattr(owner, "max_grad_norm")
                if not is_kept:
                    raise ArgumentValueError(
                        f'got engine="opacus" and a {type(owner).__name__}, which keeps no '
                        'gradient of each sample; make it private with grad_sample_mode="hooks", '
                        'or use engine="closed_form"'
                    )
                return owner
    return None


class OpacusEngine:
    """An `Engine` that reads `grad_sample`, or applies the formulas that fill it.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer whose steps change the parameters; under a `DPOptimizer` it is the
            one inside, which makes exactly the steps that do.
        is_measured: Tells whether the current step is measured.
        guard: What all hooks of the monitor share.
        on_problem: Called with a text for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        is_measured: Callable[[], bool],
        guard: Guard,
        on_problem: Callable[[str], None],
    ) -> None:
        _require_opacus()
        from .layer_samples import LayerSamples

        self._model = model
        self._optimizer = optimizer
        self._is_measured = is_measured
        self._guard = guard
        self._check = SumCheck(model, _REMEDY, guard, on_problem)
        self._layers: LayerSamples = LayerSamples(model, guard, self._layer_failed)
        self._sums = GroupSums()
        self._in_backward: list[TrainedPass] = []
        self._backward = -1
        self._begun: dict[nn.Parameter, Tensor] | None = None
        begins = ModuleHook(self._pass_begins, guard)
        self._handle = guard.attach(model.register_forward_pre_hook, begins)

    def _pass_begins(self, module: nn.Module, args: Any) -> None:
        if not (self._is_measured() and torch.is_grad_enabled()):
            return
        is_plain = private_hooks(self._model) is None and not is_compiled(self._model)
        self._begun = self._layers.begin() if is_plain else None

    def forward_done(self, output: Any, samples: int) -> object:
        """Where the gradients of the samples of this pass will be; None if Opacus has them."""
        self._check.forward_done()
        begun, self._begun = self._begun, None
        return begun

    def backward_began(self, trained: TrainedPass) -> None:
        """Wait for the end of the backward pass, before anyone can reset what it brings."""
        self._check.expect_if_due(self._parameters(), trained)
        backward = private.backward_pass()
        if backward != self._backward:
            self._backward, self._in_backward = backward, []
            over = Hook(self._backward_over, self._guard)
            private.when_backward_is_over(over)
        self._in_backward.append(trained)

    def _backward_over(self) -> None:
        passes, self._in_backward, self._backward = self._in_backward, [], -1
        hooks = private_hooks(self._model)
        if hooks is not None and len(passes) > 1:
            names = self._parameters()
            self._check.leave_out(names, "Opacus adds up forward passes that share a backward pass")
        for trained in passes:
            if len(trained.gradient):
                self._add(trained, self._private_samples(hooks, trained))

    def _private_samples(self, hooks: Any, trained: TrainedPass) -> dict[nn.Parameter, Tensor]:
        """Gradients of the samples times the strength of the pass."""
        if hooks is None:
            return trained.seen if isinstance(trained.seen, dict) else {}
        samples = {}
        for parameter in self._parameters().values():
            rows = getattr(parameter, "grad_sample", None)
            rows = rows[-1] if isinstance(rows, list) else rows  # of each backward pass since
            if rows is not None:
                # Under a mean, Opacus takes the mean's divisor out, and nothing else.
                scale = len(rows) if hooks.loss_reduction == "mean" else 1
                samples[parameter] = rows.detach() / scale
        return samples

    def _add(self, trained: TrainedPass, samples: dict[nn.Parameter, Tensor]) -> None:
        count, gradients = len(trained.gradient), {}
        for name, parameter in self._parameters().items():
            rows = samples.get(parameter)
            if rows is None or not self._check.wants(name):
                continue
            if len(rows) != count:
                self._check.leave_out(
                    [name], f"its layer had an input of {len(rows)} rows for {count} samples"
                )
                continue
            gradients[name] = rows / trained.strength.to(rows.dtype)
        if gradients:
            self._sums.add(gradients, trained.noisy_weight)

    def _layer_failed(self, layer: nn.Module, error: Exception) -> None:
        own = {id(parameter) for parameter in layer.parameters()}
        names = [name for name, p in self._parameters().items() if id(p) in own]
        cause = str(error).strip().split("\n")[0][:200]
        self._check.leave_out(names, f"{type(layer).__name__}: {cause}")

    def step_begins(self) -> None:
        """Everything was added up at the end of the backward passes."""

    def collect(self) -> GroupGradients | None:
        """The group gradients of the step; None if nothing was measured."""
        gradients = self._sums.group_gradients(self._parameters(), self._check)
        self.discard()
        return gradients

    def discard(self) -> None:
        """Forget the step."""
        self._sums, self._in_backward, self._begun = GroupSums(), [], None
        self._layers.detach()
        self._check.clear()

    def close(self) -> None:
        """Take the hooks off."""
        self._guard.attachments.remove(self._handle)
        self.discard()

    def _parameters(self) -> dict[str, nn.Parameter]:
        return trained_parameters(self._model, self._optimizer)


def _require_opacus() -> None:
    try:
        with _own_logging_config():
            import opacus.grad_sample
            import opacus.layers.dp_rnn  # noqa: F401
    except ImportError as error:
        raise ArgumentValueError(
            'got engine="opacus" without Opacus; pip install "prioritymonitor[opacus]", or use '
            'engine="closed_form"'
        ) from error


@contextlib.contextmanager
def _own_logging_config() -> Iterator[None]:
    """The user's logging stays as it is: importing Opacus configures the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
