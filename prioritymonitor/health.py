"""What went wrong while measuring, counted on the device and read once per epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .records import Batch

MOST_UNEXPLAINED = 1e-3
"""Share of the logits' gradient above which the loss is not what we take it for."""


@dataclass(frozen=True)
class HealthReport:
    """Counts since the last report."""

    not_finite: int
    """Micro-batches with NaN or infinite logits or gradients; they were left out."""
    misfit: float
    """Largest share of a logits' gradient that the loss did not explain."""
    untraced: int
    """Micro-batches whose samples could not be told."""
    batches: int


class Health:
    """Counts without waiting for the device."""

    def __init__(self) -> None:
        self.total_not_finite = 0
        self._batches = 0
        self._untraced = 0
        self._tally: Tensor | None = None

    def add(self, batch: Batch) -> None:
        """Take a micro-batch into account."""
        self._batches += 1
        self._untraced += batch.index is None
        broken = (~batch.finite).to(batch.misfit.dtype)
        if self._tally is None:
            self._tally = torch.zeros(2, dtype=broken.dtype, device=broken.device)
        self._tally[0] += broken
        self._tally[1] = torch.maximum(self._tally[1], batch.misfit)

    def read(self) -> HealthReport:
        """Counts since the last call; waits for the device."""
        not_finite, misfit = self._tally.tolist() if self._tally is not None else (0.0, 0.0)
        report = HealthReport(int(not_finite), misfit, self._untraced, self._batches)
        self.total_not_finite += report.not_finite
        self._batches = self._untraced = 0
        self._tally = None
        return report
