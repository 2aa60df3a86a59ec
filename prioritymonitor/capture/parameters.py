"""Which parameters a monitor measures, and what a step did to them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import PriorityMonitorError
from ..records import HeadUpdate
from . import private
from .hooks import Guard, Handle, Hook


def trained_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The parameters of the model that the optimizer trains now, by their first name.

    Asked anew in each measured step: layers are frozen and thawed, groups are added.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) in held
    }


def is_distributed(parameter: Tensor) -> bool:
    """True for a DTensor, as `fully_shard` and `parallelize_module` make them."""
    return hasattr(parameter, "to_local")


def is_spread(tensor: Tensor) -> bool:
    """True for a DTensor of which no rank holds the whole."""
    if not is_distributed(tensor):
        return False
    distributed: Any = tensor
    placements = enumerate(distributed.placements)
    return any(not x.is_replicate() and distributed.device_mesh.size(i) > 1 for i, x in placements)


def whole(tensor: Tensor) -> Tensor:
    """A parameter, what a step did to it, or what a layer got, as a plain tensor.

    To gather a DTensor, all ranks would have to do it at the same time, so only one that this rank
    holds as a whole is taken.

    Raises:
        PriorityMonitorError: It is spread over ranks.
    """
    if not is_distributed(tensor):
        return tensor
    distributed: Any = tensor
    local: Tensor = distributed.to_local()
    if is_spread(tensor):
        raise PriorityMonitorError(
            f"got a tensor that is spread over ranks, {list(local.shape)} of "
            f"{list(tensor.shape)} on this one; statistics of steps need what reaches the head "
            "whole, as under DistributedDataParallel or fully_shard"
        )
    return local


def own_part(tensor: Tensor) -> Tensor:
    """The same, with zeros for what other ranks hold: the sum over all ranks is the whole."""
    if not is_spread(tensor):
        return whole(tensor)
    distributed: Any = tensor
    local: Tensor = distributed.to_local()
    part = local.new_zeros(tensor.shape)
    place = private.place_of_shard(tensor)
    if place is not None:
        part[tuple(map(slice, place, map(sum, zip(place, local.shape, strict=True))))] = local
    return part


class ParameterChanges:
    """What an optimizer step does to parameters: after minus before."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[nn.Parameter, Tensor]] = {}

    def remember(self, parameters: dict[str, nn.Parameter]) -> None:
        """The step begins."""
        copies = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._before = {name: (parameters[name], copy) for name, copy in copies.items()}

    @property
    def is_empty(self) -> bool:
        """True if no step has begun."""
        return not self._before

    def take(self) -> dict[str, Tensor]:
        """The step is over; parameter name -> change, in the shape of the parameter."""
        before, self._before = self._before, {}
        return {
            name: torch.sub(parameter.detach(), copy, out=copy)
            for name, (parameter, copy) in before.items()
        }


def head_update(changes: ParameterChanges) -> HeadUpdate | None:
    """What a step did to the head; None where it was not remembered."""
    taken = changes.take()
    if "weight" not in taken:
        return None
    return HeadUpdate(taken["weight"].flatten(1), taken.get("bias"))


class GradientTotals:
    """What the backward passes of a step add to the gradient of each parameter.

    It is read as soon as it is there, before clipping, unscaling or an exchange between ranks
    change it, and divided by the strength of its pass: the sum of the gradients of the samples'
    own losses.

    Args:
        guard: Times the hooks, and gets any exception of ours.
        on_total: Called with the name of a parameter once a backward pass has given its gradient.
    """

    def __init__(
        self,
        guard: Guard,
        on_total: Callable[[str], None] | None = None,
    ) -> None:
        self.totals: dict[str, Tensor] = {}
        """Parameter name -> sum over the samples of all micro-batches, in the parameter's shape."""
        self._guard = guard
        self._on_total = on_total
        self._handles: dict[int, Handle] = {}
        self._before: dict[str, Tensor] = {}
        self._earlier: dict[str, Tensor] = {}
        self._strength: Tensor | None = None
        self._task = -1

    def expect(self, parameters: dict[str, nn.Parameter], strength: Tensor) -> bool:
        """A backward pass has begun that will add to these parameters' gradients.

        Returns:
            False if it has begun already, for another forward pass: then it gives one gradient for
            both, which can't be told apart.
        """
        task = private.backward_pass()
        if self._strength is not None and task == self._task:
            return False
        self._task = task
        self._strength = strength
        self._earlier = dict(self.totals)
        self._before = {
            name: _dense(parameter.grad).clone()
            for name, parameter in parameters.items()
            if parameter.grad is not None
        }
        for name, parameter in parameters.items():
            if id(parameter) not in self._handles:
                hook = Hook(functools.partial(self._arrived, name), self._guard)
                handle = self._guard.attach(parameter.register_post_accumulate_grad_hook, hook)
                self._handles[id(parameter)] = handle
        return True

    def forward_done(self) -> None:
        """Another forward pass was made: backward passes before it are over."""
        self._strength = None

    def _arrived(self, name: str, parameter: Tensor) -> None:
        if self._strength is None or parameter.grad is None:
            return
        gradient = _dense(parameter.grad.detach())
        if name in self._before:
            gradient = gradient - self._before[name]
        total = gradient / self._strength.to(gradient.dtype)
        # A parameter in checkpointed layers may get its gradient in several parts.
        if name in self._earlier:
            total += self._earlier[name]
        self.totals[name] = total
        if self._on_total is not None:
            self._on_total(name)

    def clear(self) -> None:
        """Forget the totals, and leave the parameters as they were found."""
        self.totals, self._before, self._earlier, self._strength = {}, {}, {}, None
        for handle in self._handles.values():
            self._guard.attachments.remove(handle)
        self._handles = {}


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def layer_errors(
    sums: dict[str, tuple[Tensor, Tensor]], totals: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """How far the samples' gradients are from adding up to what the backward pass brought.

    A layer is judged as a whole: the gradient of a bias may be nothing but rounding, as before a
    normalisation.

    Args:
        sums: Clean and noisy sums by parameter.
        totals: What they should add up to; a parameter without one got no gradient.

    Returns:
        Name of the layer in the model -> Euclidean norms of the difference and of the total.
    """
    squares: dict[str, list[Tensor]] = {}
    for name, (clean, noisy) in sums.items():
        whole = clean + noisy
        total = totals.get(name, torch.zeros_like(whole))
        pair = torch.stack(((whole - total).norm(), total.norm())).double().square()
        squares.setdefault(layer_of(name), []).append(pair)
    if not squares:
        return {}
    table = torch.stack([torch.stack(pairs).sum(0) for pairs in squares.values()]).sqrt().tolist()
    return {layer: (off, size) for layer, (off, size) in zip(squares, table, strict=True)}


def layer_of(name: str) -> str:
    """The layer that holds a parameter."""
    return name.rpartition(".")[0]
