"""Per-sample gradients, micro-batch by micro-batch, added up by group."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ...records import GroupGradients
from .sum_check import SumCheck


class GroupSums:
    """What becomes of the per-sample gradients of one step; none of them is kept."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._squares: list[dict[str, Tensor]] = []
        self._weights: list[Tensor] = []

    def add(self, gradients: dict[str, Tensor], noisy_weight: Tensor) -> None:
        """Add some samples.

        Args:
            gradients: Parameter name -> gradients of the samples' own losses, `[b, *shape]`; at
                least one.
            noisy_weight: `[b]`.
        """
        squares = {}
        for name, gradient in gradients.items():
            rows = full_precision(gradient).flatten(1)
            share = noisy_weight.to(rows)
            added = (torch.stack([1 - share, share]) @ rows).view(2, *gradient.shape[1:])
            earlier = self._sums.get(name)
            self._sums[name] = added if earlier is None else earlier.add_(added)
            square = torch.linalg.vector_norm(rows, dim=1).square()
            squares[name] = square.to(noisy_weight.device)
        self._squares.append(squares)
        self._weights.append(noisy_weight)

    def group_gradients(
        self, parameters: dict[str, nn.Parameter], check: SumCheck
    ) -> GroupGradients | None:
        """The record of the step; None if nothing was added.

        Args:
            parameters: All that are trained; one without gradients counts as measured, with zeros.
            check: Says which of them can't be measured.
        """
        both = {name: (sums[0], sums[1]) for name, sums in self._sums.items()}
        check.compare(both)
        check.leave_out_early(both)
        coverage = check.tell(parameters)
        sums = {n: both[n] for n in both if n in parameters and check.wants(n)}
        if not sums:
            return None
        return GroupGradients(
            sums,
            torch.cat([_total(squares, sums) for squares in self._squares]),
            torch.cat(self._weights),
            coverage,
        )


def _total(squares: dict[str, Tensor], names: Collection[str]) -> Tensor:
    """Sum over the parameters of some names, `[b]`."""
    own = [square for name, square in squares.items() if name in names]
    return torch.stack(own).sum(0) if own else torch.zeros_like(next(iter(squares.values())))


def full_precision(tensor: Tensor) -> Tensor:
    """Detached, and in single precision if it is in half."""
    tensor = tensor.detach()
    is_half = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.float() if is_half else tensor
