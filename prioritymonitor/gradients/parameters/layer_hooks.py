"""The forward pass as the layers see it: each call is kept until its gradients arrive."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ...capture import private
from ...capture.hooks import Guard, Hook, ModuleHook
from ...capture.parameters import trained_parameters
from ...capture.rerun import RandomState
from .calls import Call, KeptArguments, ModelPass, draws_random_numbers


class LayerHooks:
    """Hooks on every layer with parameters until `close()`.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that trains its parameters.
        is_measured: True while the running step is measured.
        wants: Whether a parameter, by its name in the model, is to be measured.
        on_gradient: Called with a call, a place in its output, and what reached it there.
        guard: What all hooks of the monitor share.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        is_measured: Callable[[], bool],
        wants: Callable[[str], bool],
        on_gradient: Callable[[Call, int, Tensor | None], None],
        guard: Guard,
    ) -> None:
        self.parameters: dict[str, nn.Parameter] = {}
        """What the optimizer trains, by name; empty before the first layer of a step is called."""
        self.running: ModelPass | None = None
        """The forward pass whose backward pass has begun last in this step."""
        self._model = model
        self._optimizer = optimizer
        self._is_measured = is_measured
        self._wants = wants
        self._on_gradient = on_gradient
        self._guard = guard
        self._second = _layers_with_samples_second(model)
        self._names: dict[int, str] = {}
        self._open: ModelPass | None = None
        self._random_states: dict[nn.Module, RandomState] = {}
        holders = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
        called = ModuleHook(self._called, guard)
        before = ModuleHook(self._about_to_be_called, guard)
        self._handles = [
            guard.attach(module.register_forward_hook, called, with_kwargs=True)
            for module in holders
        ]
        self._handles += [
            guard.attach(module.register_forward_pre_hook, before, with_kwargs=True)
            for module in filter(draws_random_numbers, holders)
        ]
        begins = ModuleHook(self._pass_begins, guard)
        self._handles.append(guard.attach(model.register_forward_pre_hook, begins))

    def _pass_begins(self, model: nn.Module, args: Any) -> None:
        self._forget_open()  # of a pass that failed
        if self._is_measured() and torch.is_grad_enabled() and not is_in_backward():
            device = next(model.parameters()).device
            self._open = ModelPass(begun=RandomState.now(device))

    def _forget_open(self) -> None:
        if self._open is not None:
            self._open.forget_calls()
        self._open = None

    def _about_to_be_called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_measured() and torch.is_grad_enabled():
            device = next(module.parameters()).device
            self._random_states[module] = RandomState.now(device)

    def _called(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_measured() and torch.is_grad_enabled()):
            return
        outputs = [output] if isinstance(output, Tensor) else pytree.tree_leaves(output)
        outputs = [x for x in outputs if isinstance(x, Tensor)]
        trained = [place for place, x in enumerate(outputs) if x.requires_grad]
        own = self._own_parameters(module)
        if not trained or not own:
            return
        # In any case: a checkpointed layer that is called once more must save what it saved before.
        kept, model_pass = KeptArguments(args, kwargs), self._model_pass()
        if model_pass is None:
            return  # a part of the model that was called on its own
        first = outputs[trained[0]]
        call = Call(
            module=module,
            model_pass=model_pass,
            kept=kept,
            names=own,
            node=None if is_in_backward() else first.grad_fn,
            shape=first.shape,
            gradients=[None] * len(outputs),
            missing=len(trained),
            begun=self._random_states.pop(module, None),
            is_training=module.training,
            batch_dim=int(module in self._second),
        )
        if not is_in_backward():
            model_pass.calls.append(call)
        model_pass.is_half |= first.element_size() < 4
        model_pass.call_counts.update(own.values())
        for place in trained:
            hook = Hook(functools.partial(self._on_gradient, call, place), self._guard)
            outputs[place].register_hook(hook)

    def _own_parameters(self, module: nn.Module) -> dict[str, str]:
        """The parameters of a layer that are measured: name in the layer -> name in the model."""
        if not self._names:
            self.parameters = trained_parameters(self._model, self._optimizer)
            self._names = {id(p): n for n, p in self.parameters.items() if self._wants(n)}
        names, own = self._names, module._parameters.items()
        found = {local: names[id(p)] for local, p in own if id(p) in names}
        if isinstance(module, nn.MultiheadAttention):  # its output projection is never called
            inner = module.out_proj._parameters.items()
            found |= {f"out_proj.{local}": names[id(p)] for local, p in inner if id(p) in names}
        return found

    def _model_pass(self) -> ModelPass | None:
        if not is_in_backward():
            return self._open
        return self.running  # a checkpointed layer, once more

    def end_pass(self, samples: int) -> ModelPass:
        """The model's forward pass is over, with so many samples."""
        model_pass, self._open = self._open or ModelPass(), None
        model_pass.samples = samples
        return model_pass

    def start_anew(self) -> None:
        """Forget the step."""
        self._forget_open()
        self.running = None
        self.parameters, self._names = {}, {}

    def close(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            self._guard.attachments.remove(handle)
        self.start_anew()


def is_in_backward() -> bool:
    """True inside a backward pass, as where a checkpointed layer is called once more."""
    return private.backward_pass() != -1


def _layers_with_samples_second(model: nn.Module) -> set[nn.Module]:
    """Layers that see `[T, B, ...]`, as far as layers of torch say so."""
    found: set[nn.Module] = set()
    for module in model.modules():
        attention = getattr(module, "self_attn", module)
        if getattr(attention, "batch_first", True) is False:
            found.update(module.modules())
    return found
