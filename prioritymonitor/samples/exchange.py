"""Rows of a table that ranks put together."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Exchange(Protocol):
    """What ranks that measure together can do."""

    rank: int
    """Number of this one."""
    members: list[int]
    """Numbers of all of them."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on the host."""

    def least(self, tensor: Tensor) -> Tensor:
        """The least over the ranks, on the host."""


def of_first(ranks: Exchange, was_seen: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Rows of all ranks, each as the rank of the lowest number has it that has seen it.

    Args:
        ranks: Those that exchange them.
        was_seen: What this one has seen, bool `[n]`.
        columns: `[n, ...]` each, on the host.

    Returns:
        Which rows anyone has seen, bool `[n]`, and the columns, with zeros where nobody has.
    """
    nobody = max(ranks.members) + 1
    first = ranks.least(torch.where(was_seen, ranks.rank, nobody).to(torch.int32))
    is_own = first == ranks.rank
    own = [torch.where(is_own.view(-1, *[1] * (one.ndim - 1)), one, 0) for one in columns]
    return first < nobody, *map(ranks.total, own)
