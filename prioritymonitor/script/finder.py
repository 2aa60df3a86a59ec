"""Finds what a script trains: its model, its optimizer, and the loader whose batches it gets."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from ..capture.hooks import Guard, Hook, ModuleHook
from ..capture.loader.same_data import ANY_DATA, follow_data, forget_data

_CALLS_WITHOUT_LOADER = 32
"""Calls of a model whose optimizer is there, after which no loader is waited for."""

_MANY_CALLS = 64
"""Calls without an optimizer, after which one is looked for less often."""

Found = Callable[[nn.Module, Optimizer, "DataLoader[Any] | None"], Any]


class TrainingFinder:
    """Looks on until the optimizer of what was found has made a step.

    The model is the first module that is called with gradients while an optimizer holds parameters
    of it, so the outermost one; the loader is the one that began last. What was found is found anew
    where the next call shows another: the first may have been a look at the validation data.

    Args:
        found: Called with model, optimizer and loader, or None for a script without one; before
            the model is called.
        guard: Gets any exception of ours.
    """

    def __init__(self, found: Found, guard: Guard) -> None:
        self._found = found
        self._optimizer: Optimizer | None = None
        self._loader: DataLoader[Any] | None = None
        self._called_with: tuple[nn.Module | None, DataLoader[Any] | None] = None, None
        self._calls = 0
        self._inside: set[int] = set()
        self._guard = guard
        guard.attach(register_module_forward_pre_hook, ModuleHook(self._called, guard))
        guard.attach(register_optimizer_step_pre_hook, Hook(self._steps, guard))
        follow_data(ANY_DATA, self, self._begins)

    def close(self) -> None:
        """Look on no more."""
        forget_data(self)
        self._guard.attachments.remove_all()
        self._loader, self._optimizer, self._called_with = None, None, (None, None)

    # What loaders tell

    def _begins(self, loader: DataLoader[Any]) -> bool:
        self._loader = loader
        return True

    def batch_begins(self, *told: Any) -> None:
        """That it began is enough."""

    def traversal_ends(self, *told: Any) -> None:
        """That it began is enough."""

    def lose_identity(self, reason: str) -> None:
        """The monitor says so."""

    # What hooks tell

    def _called(self, module: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled() or id(module) in self._inside:
            return
        if (module, self._loader) == self._called_with:
            return
        if next(module.parameters(), None) is None:
            return  # a transform of the data
        self._calls += 1
        if self._loader is None and self._calls < _CALLS_WITHOUT_LOADER:
            return
        if self._calls > _MANY_CALLS and self._calls % _MANY_CALLS:
            return  # looking for optimizers takes a while
        optimizer = _optimizer_of(module)
        if optimizer is None:
            return
        self._called_with = module, self._loader
        model = _whole(module, optimizer)
        self._inside = {id(part) for part in model.modules() if part is not module}
        self._optimizer = optimizer
        self._found(model, optimizer, self._loader)

    def _steps(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A wrapper and what it wraps share their groups.
        watched = self._optimizer
        if watched is not None and watched.param_groups is optimizer.param_groups:
            self.close()


def _optimizer_of(module: nn.Module) -> Optimizer | None:
    """The optimizer that holds most of a module's parameters; None if none holds any."""
    own = {id(one) for one in module.parameters() if one.requires_grad}
    if not own:
        return None
    held = [(len(own & _held(one)), one) for one in _alive(Optimizer)]
    most, optimizer = max(held, key=lambda pair: pair[0], default=(0, None))
    return optimizer if most else None


def _whole(module: nn.Module, optimizer: Optimizer) -> nn.Module:
    """The module, or the one around it whose own parts the optimizer trains too.

    Where a loop calls parts of a model one after the other, the model is what holds them all.
    """
    held = _held(optimizer)

    def count(one: nn.Module) -> int:
        return sum(id(parameter) in held for parameter in one.parameters())

    own = count(module)
    if own == len(held):
        return module
    around = [one for one in _alive(nn.Module) if any(part is module for part in one.modules())]
    larger = [one for one in around if count(one) > own]
    return min(larger, key=lambda one: (-count(one), len([*one.modules()])), default=module)


def _held(optimizer: Optimizer) -> set[int]:
    return {id(one) for group in optimizer.param_groups for one in group["params"]}


def _alive(kind: type) -> list[Any]:
    """Objects of a kind that are whole: accelerate's optimizers, which wrap one, are not."""
    # By their type: a proxy may do anything when it is asked for its class.
    found = [one for one in gc.get_objects() if issubclass(type(one), kind)]
    return [one for one in found if kind is not Optimizer or "param_groups" in vars(one)]
