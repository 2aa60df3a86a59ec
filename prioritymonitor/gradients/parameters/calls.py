"""Calls of layers in a forward pass, and what is kept of them until their gradients arrive."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils import _pytree as pytree

from ...capture.rerun import RandomState
from ...errors import PriorityMonitorError
from ..factors import Factors


class UnknownSamplesError(Exception):
    """A tensor has no dimension that runs over the samples."""


class _Carry(torch.autograd.Function):
    """Saves tensors as autograd does, so that whoever manages saved tensors manages ours.

    Under activation checkpointing they are then not held but recomputed, and where they are
    offloaded to the host, so are ours.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> None:
        raise NotImplementedError("no gradient runs through it")


_ANCHOR = torch.zeros((), requires_grad=True)

_HELD = object()
"""Stands for a tensor that autograd saves."""


class KeptArguments:
    """The arguments of a call; they can be had once, when the gradient of the output arrives."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._spec: Any = None
        self._leaves: list[Any] = list(args)
        if kwargs or not all(isinstance(argument, Tensor) for argument in args):
            self._leaves, self._spec = pytree.tree_flatten((args, kwargs))
        tensors = [leaf.detach() for leaf in self._leaves if isinstance(leaf, Tensor)]
        self._leaves = [_HELD if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        carry: Any = _Carry.apply
        # The result, not its node: torch 2.6 frees what a node has saved when its result is gone.
        self._carried: Any = carry(_ANCHOR, *tensors)

    def take(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, the tensors detached.

        Raises:
            PriorityMonitorError: They were taken before.
        """
        if self._carried is None:
            raise PriorityMonitorError("its graph was gone through twice")
        tensors, self._carried = iter(self._carried.grad_fn.saved_tensors), None
        leaves = [next(tensors).detach() if leaf is _HELD else leaf for leaf in self._leaves]
        if self._spec is None:
            return tuple(leaves), {}
        return pytree.tree_unflatten(leaves, self._spec)  # type: ignore[no-any-return]


@dataclass(eq=False)
class ModelPass:
    """A forward pass of the model: the calls of its layers, and later what it is worth."""

    calls: list[Call] = field(default_factory=list)
    """In the order in which they were made, until the model's output is there."""
    call_counts: Counter[str] = field(default_factory=Counter)
    """How often a layer that holds a parameter was called, by the name of the parameter."""
    samples: int = 0
    """Number of samples, B; 0 until the model's output is there."""
    ambiguous: dict[str, str] = field(default_factory=dict)
    """Parameters of layers whose shapes may mislead -> how."""
    begun: RandomState | None = None
    """State of the random numbers when the pass began."""
    noisy_weight: Tensor | None = None
    """`[B]`; None until the gradient of the logits has arrived."""
    strength: Tensor | None = None
    """The factor between gradients of the backward pass and those of the samples' losses."""
    weights: Tensor | None = None
    """Weights of the samples in the sums, divided by the strength, `[2, B]`: noisy, clean; and a
    third row of signs where a layer's shape may mislead."""
    is_half: bool = False
    """True if a layer gave half precision."""
    early: list[Call] = field(default_factory=list)
    """Calls whose gradient came before that of the logits."""
    unfinished: list[Call] = field(default_factory=list)
    """Calls of which some gradients have arrived."""
    factors: dict[str, list[Factors]] = field(default_factory=dict)
    """Factors of a parameter that is used more than once, until all are there."""
    square: dict[str, Tensor] = field(default_factory=dict)
    """`||g_i||²` of each parameter, `[B]`."""

    def forget_calls(self) -> None:
        """Hold no call any more; a call's node holds the hook that holds the call."""
        for call in self.calls:
            call.node = None
        self.calls.clear()


@dataclass(eq=False)
class Call:
    """One call of a layer."""

    module: nn.Module
    model_pass: ModelPass
    kept: KeptArguments
    names: dict[str, str]
    """Its parameters to measure: name in the layer -> name in the model."""
    node: Node | None
    """Of the output in the autograd graph."""
    shape: torch.Size
    """Of the output."""
    gradients: list[Tensor | None]
    """What reached each tensor of the output."""
    missing: int
    """How many gradients have not arrived."""
    begun: RandomState | None
    """State of the random numbers before the call, where the layer draws some."""
    is_training: bool
    """The layer's mode at the time of the call."""
    batch_dim: int
    """Which dimension of sequences runs over the samples, as far as the layer says so, 0 or 1."""
    is_spread: bool = False
    """True if the output has no samples and is spread over them afterwards."""


def draws_random_numbers(module: nn.Module) -> bool:
    """True for a layer whose formula computes it once more, and which has dropout inside."""
    return isinstance(module, nn.MultiheadAttention) and module.dropout > 0


@dataclass(frozen=True)
class TrainedCall:
    """A call whose gradients have arrived, in the scale of the samples' own losses."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gradients: list[Tensor | None]
    samples: int
    """Number of samples, B."""
    batch_dim: int
    """Which dimension of sequences runs over the samples, 0 or 1."""
    begun: RandomState | None
    is_training: bool

    @property
    def input(self) -> Tensor:
        """The first argument."""
        found = self.args[0] if self.args else next(iter(self.kwargs.values()))
        assert isinstance(found, Tensor)
        return found

    @property
    def gradient(self) -> Tensor:
        """What reached the first tensor of the output."""
        assert self.gradients[0] is not None
        return self.gradients[0]

    def by_sample(self, tensor: Tensor, others: int) -> Tensor:
        """The tensor with its samples first, `[B, ..., *others]`.

        Args:
            tensor: With the samples first, second in a sequence, or with the positions of each
                sample one after the other.
            others: How many trailing dimensions are no positions.

        Raises:
            UnknownSamplesError: None of these.
        """
        leading = tensor.shape[: tensor.ndim - others]
        if self.batch_dim < len(leading) and leading[self.batch_dim] == self.samples:
            return tensor.movedim(self.batch_dim, 0)
        if len(leading) > 0 and leading[0] == self.samples:
            return tensor
        if len(leading) > 1 and leading[1] == self.samples:
            return tensor.movedim(1, 0)
        if len(leading) > 0 and leading[0] > 0 and leading[0] % self.samples == 0:
            rows: Tensor = tensor.unflatten(0, (self.samples, -1))
            return rows
        raise UnknownSamplesError(
            f"a tensor of shape {list(tensor.shape)} for {self.samples} samples"
        )
