"""Tensors without samples that are spread over them: a class token, a table of positions.

`hidden + positions` adds one `[1, T, D]` tensor to every sample, and its gradient arrives summed
over the samples. What each sample brings is still there one node up in the autograd graph, where
the sum was taken: at the gradient of the addition's result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ...capture import private
from ...capture.hooks import Guard, Hook

_SPREADS = {"AddBackward0", "ExpandBackward0", "RepeatBackward0"}
"""Nodes that pass the gradient of their result on as it is, summed to the size of an operand."""

_PRODUCTS = {"MulBackward0", "SubBackward0", "DivBackward0"}
"""Other nodes that spread an operand over the result."""

_VIEWS = {
    "AliasBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "ReshapeAliasBackward0",
    "UnsqueezeBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "SliceBackward0",
    "SelectBackward0",
    "TransposeBackward0",
    "PermuteBackward0",
    "TBackward0",
    "ToCopyBackward0",
}
"""Nodes that need no saved tensor to lead a gradient back."""


@dataclass(frozen=True)
class Spread:
    """A place where a tensor is spread over the samples."""

    operand: tuple[int, ...]
    """Shape of what is spread."""
    dim: int
    """Dimension of the result that runs over the samples."""
    factor: float
    views: tuple[Any, ...]
    """What lies between the tensor and the operand, from the operand on."""

    def rows(self, gradient: Tensor) -> Tensor:
        """What each sample brings, `[B, *shape of the tensor]`.

        Args:
            gradient: Of the result, with B samples in `dim`.
        """
        rows = []
        for row in gradient.unbind(self.dim):
            own: Any = row.unsqueeze(self.dim).sum_to_size(self.operand) * self.factor
            for view in self.views:
                own = view(own)
            rows.append(own)
        return torch.stack(rows)


Spreads = list[tuple[Node, Spread]]
"""All places where a tensor is spread, with the node of each; a hook on it must not hold it."""


class SpreadFinder:
    """The graph behind a model's output, read from its leaves up.

    Args:
        outputs: Tensors that the model gave.
    """

    def __init__(self, outputs: Iterable[Tensor]) -> None:
        self._users: dict[Node, list[tuple[Node, int]]] = {}
        self._leaves: dict[int, Node] = {}
        waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for place, (source, _) in enumerate(node.next_functions):
                if source is None:
                    continue
                self._users.setdefault(source, []).append((node, place))
                if source not in seen:
                    seen.add(source)
                    waiting.append(source)
                    variable = getattr(source, "variable", None)
                    if variable is not None:
                        self._leaves[id(variable)] = source

    def leaf(self, parameter: Tensor) -> Node | None:
        """The node of a parameter; None if the outputs don't depend on it."""
        return self._leaves.get(id(parameter))

    def spreads(self, node: Node | None, shape: tuple[int, ...], samples: int) -> Spreads | None:
        """Where a tensor is spread over the samples; None if it is used in any other way.

        Args:
            node: Of the tensor in the graph.
            shape: Of the tensor.
            samples: B.
        """
        return None if node is None else self._above(node, shape, (), samples)

    def lacks_samples(self, node: Node | None, shape: tuple[int, ...], samples: int) -> bool:
        """True if a tensor becomes part of each sample only after other operations.

        Args:
            node: Of the tensor in the graph.
            shape: Of the tensor; none of its leading dimensions is of size B.
            samples: B.
        """
        waiting = [] if node is None else [(node, shape)]
        seen = {node for node, _ in waiting}
        while waiting:
            source, operand = waiting.pop()
            for user, _ in self._users.get(source, []):
                result = private.result_shape(user)
                dims = _new_dims(operand, result, samples)
                if samples in operand[:2]:  # then only a dimension put before them tells
                    dims = [dim for dim in dims if dim < len(result) - len(operand)]
                if dims and user.name() in _SPREADS | _PRODUCTS:
                    return True
                if user not in seen and may_lack_samples(result, samples):
                    seen.add(user)
                    waiting.append((user, result))
        return False

    def _above(
        self, node: Node, shape: tuple[int, ...], views: tuple[Any, ...], samples: int
    ) -> Spreads | None:
        found: Spreads = []
        for user, place in self._users.get(node, []):
            name, result = user.name(), private.result_shape(user)
            dims = _new_dims(shape, result, samples)
            if name in _SPREADS and len(dims) == 1:
                alpha = getattr(user, "_saved_alpha", 1) if place == 1 else 1
                found.append((user, Spread(shape, dims[0], float(alpha), views)))
            elif name in _VIEWS:
                above = self._above(user, result, (user, *views), samples)
                if above is None:
                    return None
                found += above
            else:
                return None
        return found or None


def may_lack_samples(shape: tuple[int, ...], samples: int) -> bool:
    """True where a shape does not show which dimension runs over the samples.

    `[B, D]` may be a table of as many positions as there happen to be samples.
    """
    return samples not in shape[:2] or len(shape) <= 2


def _new_dims(operand: tuple[int, ...], result: tuple[int, ...], samples: int) -> list[int]:
    """Dimensions of the result that run over the samples, as those of the operand do not."""
    extra = len(result) - len(operand)
    return [
        dim
        for dim, size in enumerate(result)
        if size == samples and (dim < extra or operand[dim - extra] == 1)
    ]


def follow(spreads: Spreads, arrived: Callable[[Tensor], None], guard: Guard) -> None:
    """Follow the gradients of all places where a tensor is spread over the samples.

    Args:
        spreads: The places.
        arrived: Called with what each sample brings to the tensor, `[B, *shape]`, when all is
            there.
        guard: What all hooks of the monitor share.
    """
    rows: list[Tensor] = []
    places = len(spreads)

    def called(spread: Spread, gradients: tuple[Tensor | None, ...]) -> None:
        if gradients[0] is None:
            return
        rows.append(spread.rows(gradients[0].detach()))
        if len(rows) == places:
            total = torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]
            rows.clear()
            arrived(total)

    for node, spread in spreads:
        node.register_prehook(Hook(functools.partial(called, spread), guard))
