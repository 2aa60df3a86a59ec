"""Per-sample gradients, micro-batch by micro-batch, added up by group."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ...records import GroupGradients


class GroupSums:
    """What becomes of the per-sample gradients of one step; none of them is kept."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._squares: list[dict[str, Tensor]] = []
        self._weights: list[Tensor] = []

    @property
    def sums(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameter name -> clean and noisy sum."""
        return {name: (both[0], both[1]) for name, both in self._sums.items()}

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
        self, parameters: dict[str, nn.Parameter], left_out: Collection[str]
    ) -> GroupGradients | None:
        """The record of the step; None if nothing was added.

        Args:
            parameters: All that are trained; one without gradients counts as measured, with zeros.
            left_out: Those that can't be measured.
        """
        measured = {name for name in parameters if name not in left_out}
        sums = {name: both for name, both in self.sums.items() if name in measured}
        if not sums:
            return None
        square = [self._square(batch, measured) for batch in self._squares]
        every = sum(parameter.numel() for parameter in parameters.values())
        covered = sum(parameters[name].numel() for name in measured)
        return GroupGradients(
            sums, torch.cat(square), torch.cat(self._weights), coverage=covered / every
        )

    def _square(self, batch: dict[str, Tensor], measured: set[str]) -> Tensor:
        total = torch.zeros_like(next(iter(batch.values())))
        for name, square in batch.items():
            total = total + square if name in measured else total
        return total


def full_precision(tensor: Tensor) -> Tensor:
    """Detached, and in single precision if it is in half."""
    tensor = tensor.detach()
    is_half = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.float() if is_half else tensor
