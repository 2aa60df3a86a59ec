"""Pure: per-sample gradients of a layer in factors, added up without being held.

What one call of a layer brings to a parameter has a known structure for each sample, such
as an outer product for a linear layer. Sums over samples and norms of single samples then cost one
product of the size of the backward pass's own, and no gradient of a sample need be held for longer
than it takes to add it up. Letters in shapes: B samples, T positions of a sample, R kinds of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MOST_HELD = 2**19
"""Numbers that per-sample gradients may take up at a time; they should stay in the cache."""

GRAM_WORTH = 32
"""How many multiplications one number of a per-sample gradient is worth, that is written and read.

Norms come either from the `[T, T]` products of a sample's positions, which takes multiplications,
or from its gradient, which takes memory traffic. The ratio was measured on a CPU and is flat."""


class Factors(Protocol):
    """What one call of a layer brings to a parameter, for each of B samples."""

    @property
    def samples(self) -> int:
        """B."""

    @property
    def shape(self) -> Sequence[int]:
        """Shape of the parameter."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the sums."""

    @property
    def has_cheap_square(self) -> bool:
        """True where norms are cheaper without per-sample gradients."""

    def weighted(self, weight: Tensor) -> Tensor:
        """`sum_i a_i g_i` in the shape of the parameter, for weights `a` of shape `[B]`."""

    def square(self) -> Tensor:
        """`||g_i||²` of each sample, `[B]`."""

    def rows(self, part: slice) -> Tensor:
        """Gradients of some samples, `[b, *shape]`."""


def sums_and_square(parts: Sequence[Factors], weights: Tensor) -> tuple[list[Tensor], Tensor]:
    """Weighted sums and squared norms of the per-sample gradients of one parameter.

    Args:
        parts: Of all calls in a forward pass; their gradients are added before any norm is taken.
        weights: `[R, B]`.

    Returns:
        R sums in the shape of the parameter, and `||g_i||²`, `[B]`.
    """
    first = parts[0]
    weights = weights.to(first.dtype)
    if len(parts) == 1 and first.has_cheap_square:
        return [first.weighted(weight) for weight in weights], first.square()
    size = max(1, MOST_HELD // max(torch.Size(first.shape).numel(), 1))
    total: Tensor | None = None
    square = []
    for start in range(0, first.samples, size):
        part = slice(start, start + size)
        rows = first.rows(part).flatten(1)
        for other in parts[1:]:
            rows = rows + other.rows(part).flatten(1)
        summed = weights[:, part] @ rows
        total = summed if total is None else total.add_(summed)
        square.append(torch.linalg.vector_norm(rows, dim=1).square())
    assert total is not None
    return [row.view(first.shape) for row in total], torch.cat(square)


@dataclass(frozen=True)
class Direct:
    """Gradients of the samples as they are, for small parameters."""

    gradients: Tensor
    """`[B, *shape]`."""
    has_cheap_square = True

    @property
    def samples(self) -> int:
        return len(self.gradients)

    @property
    def dtype(self) -> torch.dtype:
        return self.gradients.dtype

    @property
    def shape(self) -> Sequence[int]:
        return self.gradients.shape[1:]

    def weighted(self, weight: Tensor) -> Tensor:
        return (weight @ self.gradients.flatten(1)).view(self.shape)

    def square(self) -> Tensor:
        return self.gradients.flatten(1).square().sum(1)

    def rows(self, part: slice) -> Tensor:
        return self.gradients[part]


@dataclass(frozen=True)
class Outer:
    """`g_i = sum_t left_it ⊗ right_it`, for a matrix that maps each position on its own."""

    left: Tensor
    """`[B, T, p]`."""
    right: Tensor
    """`[B, T, d]`."""

    @property
    def samples(self) -> int:
        return len(self.left)

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    def shape(self) -> Sequence[int]:
        return self.left.shape[2], self.right.shape[2]

    @property
    def has_cheap_square(self) -> bool:
        return _gram_is_cheaper(self.left.shape[1], *self.shape)

    def weighted(self, weight: Tensor) -> Tensor:
        left = self.left * weight[:, None, None]
        return left.flatten(0, 1).T @ self.right.flatten(0, 1)

    def square(self) -> Tensor:
        if self.left.shape[1] == 1:
            return self.left.square().sum((1, 2)) * self.right.square().sum((1, 2))
        return _gram_square(self.left, self.right)

    def rows(self, part: slice) -> Tensor:
        return self.left[part].transpose(1, 2) @ self.right[part]


@dataclass(frozen=True)
class Lookup:
    """`g_i = sum_t onehot(index_it) ⊗ gradient_it`, for a table of which rows are looked up."""

    index: Tensor
    """int64 `[B, T]`."""
    gradient: Tensor
    """`[B, T, D]`; zero where a lookup is not trained."""
    entries: int
    """Rows of the table."""
    has_cheap_square = True

    @property
    def samples(self) -> int:
        return len(self.index)

    @property
    def dtype(self) -> torch.dtype:
        return self.gradient.dtype

    @property
    def shape(self) -> Sequence[int]:
        return self.entries, self.gradient.shape[2]

    def weighted(self, weight: Tensor) -> Tensor:
        table = self.gradient.new_zeros(self.shape)
        rows = (self.gradient * weight[:, None, None]).flatten(0, 1)
        return table.index_add_(0, self.index.flatten(), rows)

    def square(self) -> Tensor:
        size = max(1, MOST_HELD // self.index.shape[1] ** 2)
        parts = []
        for index, rows in zip(self.index.split(size), self.gradient.split(size), strict=True):
            alike = index.unsqueeze(1) == index.unsqueeze(2)
            parts.append(((rows @ rows.mT) * alike).sum((1, 2)))
        return torch.cat(parts)

    def rows(self, part: slice) -> Tensor:
        index, gradient = self.index[part], self.gradient[part]
        table = gradient.new_zeros(len(index), *self.shape)
        return table.scatter_add_(1, index.unsqueeze(2).expand_as(gradient), gradient)


def _gram_is_cheaper(positions: int, left: int, right: int) -> bool:
    return positions**2 * (left + right) <= GRAM_WORTH * left * right or positions == 1


def _gram_square(left: Tensor, right: Tensor) -> Tensor:
    """`||sum_t left_it ⊗ right_it||²` from products of positions, `[B]`."""
    size = max(1, MOST_HELD // left.shape[1] ** 2)
    parts = zip(left.split(size), right.split(size), strict=True)
    return torch.cat([((a @ a.mT) * (b @ b.mT)).sum((1, 2)) for a, b in parts])
