"""Which module gives the logits: the model, or a part of it that the loop calls by itself."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import private
from .head import is_linear, logits_in
from .hooks import Guard, Handle, Hook, ModuleHook
from .losses.criterion import through_log_softmax
from .losses.cross_entropy import recognise_cross_entropy
from .positions import by_position
from .rerun import hidden_layers

MOST_STEPS = 50
"""Optimizer steps after which nobody looks any more for a module that gives logits."""

_MOST_UNEXPLAINED = 1e-3
"""Share by which a gradient may differ from that of a cross-entropy."""

_MOST_COMPARED = 256
"""Positions of a sample that are compared with it."""


class CalledModule:
    """Looks for the module that is called, where a step was made without a call of the model.

    A method of the model, such as Lightning's `training_step`, may call `self.forward(x)` or
    `self.net(x)`; then no hook of the model itself is called. The outermost modules that are called
    are looked at instead. A backward pass begins with what was computed last, so the first of them
    that the gradient of a loss reaches gave the logits.

    Args:
        model: The model that was passed in.
        head: Its head, if it was passed in.
        has_criterion: Whether the loss was passed in; if not, it must be a cross-entropy.
        guard: Times the hooks, and gets any exception of ours.
        on_found: Called with the module, and whether what it is called with is data: no layer that
            is trained comes before it.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None,
        has_criterion: bool,
        guard: Guard,
        on_found: Callable[[nn.Module, bool], None],
    ) -> None:
        self.is_known = False
        """True once the model itself, or a part of it, was seen to give logits."""
        self.has_trained = False
        """True once a gradient reached logits."""
        self.module = model
        """What gives the logits, or is taken to."""
        self._model = model
        self._head = head
        self._has_criterion = has_criterion
        self._guard = guard
        self._on_found = on_found
        self._steps = 0
        self._open: list[nn.Module] = []
        self._handles: list[Handle] = []

    @property
    def is_settled(self) -> bool:
        """True once it is known, or nobody looks any more."""
        return self.is_known or self._steps >= MOST_STEPS

    @property
    def name(self) -> str:
        """Name of the module in the model, empty for the model itself."""
        names: dict[nn.Module, str] = {m: name for name, m in self._model.named_modules()}
        return names[self.module]

    def resume(self, name: str) -> None:
        """Go on as a run did that had found the module of this name.

        Raises:
            AttributeError: The model has none.
        """
        module = self._model.get_submodule(name)
        if module is not self.module:
            self.found(module)
            self._on_found(module, True)

    def found(self, module: nn.Module) -> None:
        """It is known: look no more."""
        self.module, self.is_known = module, True
        self._stop_looking()

    def step_made(self) -> None:
        """An optimizer step was made."""
        if self.is_known:
            return
        self._steps += 1
        self._open.clear()  # a call that broke off has no end
        if self._steps == 1:
            self._look()
        elif self._steps == MOST_STEPS:
            self._stop_looking()

    def _look(self) -> None:
        begins, ends = ModuleHook(self._begins, self._guard), ModuleHook(self._ends, self._guard)
        hidden = hidden_layers(self._model)
        for module in self._model.modules():
            # What wraps a compiled module calls its own hooks, and those inside are not called.
            is_seen = module not in hidden or private.inside_compiled(module) is not None
            if module is self._model or not (is_seen and self._may_give_logits(module)):
                continue
            before = self._guard.attach(module.register_forward_pre_hook, begins)
            after = self._guard.attach(module.register_forward_hook, ends, with_kwargs=True)
            self._handles += [before, after]

    def _may_give_logits(self, module: nn.Module) -> bool:
        head = self._head
        return any(is_linear(one) if head is None else one is head for one in module.modules())

    def _stop_looking(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            self._guard.attachments.remove(handle)

    def _begins(self, module: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            self._open.append(module)

    def _ends(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module not in self._open:
            return
        del self._open[self._open.index(module) :]
        if self._open:
            return  # a part of another one that was called
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        takes_data = not any(one.requires_grad for one in given)
        for logits in logits_in(output):
            if logits.requires_grad and len(logits):
                arrived = functools.partial(self._arrived, module, takes_data, logits.detach())
                logits.register_hook(Hook(arrived, self._guard))

    def _arrived(
        self, module: nn.Module, takes_data: bool, logits: Tensor, gradient: Tensor
    ) -> None:
        if not self._handles:
            return  # found meanwhile, or given up
        if self._has_criterion or _is_of_cross_entropy(logits, gradient.detach()):
            self.found(module)
            self._on_found(module, takes_data)


def _is_of_cross_entropy(logits: Tensor, gradient: Tensor) -> bool:
    """Whether a gradient is that of a cross-entropy on these logits; it waits for the device."""
    class_dim = -1 if logits.ndim < 4 else 1
    if logits.ndim < 2 or logits.shape[class_dim] < 2:
        return False
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        rows, arrived = (_some(one, class_dim) for one in (logits, gradient))
        if rows.logsumexp(2).abs().max() < torch.finfo(logits.dtype).eps ** 0.5:
            arrived = through_log_softmax(arrived, rows)
        health = recognise_cross_entropy(rows.flatten(0, 1)[None], arrived.flatten(0, 1)[None])
        return bool((health.health.unexplained <= _MOST_UNEXPLAINED).all())


def _some(tensor: Tensor, class_dim: int) -> Tensor:
    """Some positions of each sample, `[B, n, C]`, in full precision."""
    rows = by_position(tensor, len(tensor), class_dim)
    return rows[:, :: rows.shape[1] // _MOST_COMPARED + 1].float()
