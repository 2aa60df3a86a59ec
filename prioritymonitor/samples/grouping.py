"""Which group each sample of a batch belongs to: what is known, or what its past says."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Batch, Labels
from .known_labels import KnownNoise
from .noisiness import chance_at_first_visit
from .table import PriorityPath


class Grouping:
    """How noisy labels are taken to be.

    Args:
        known: Which labels are wrong, if the user told us.
    """

    def __init__(self, known: KnownNoise | None) -> None:
        self.path: PriorityPath | None = None
        """The past of the samples; None where they have no identity."""
        self._known = known

    def record(self, batch: Batch) -> None:
        """Add a batch that was trained on to the past of its samples."""
        if self.path is not None and batch.index is not None:
            known = self._known
            self.path.record(batch, known.is_noisy(batch) if known is not None else None)

    def noisy_weight(self, batch: Batch) -> Tensor:
        """In [0, 1], `[B]`; NaN where nothing tells."""
        if self._known is not None:
            return self._known.is_noisy(batch)
        if self.path is not None:
            return self.path.membership(batch)
        if batch.labels is Labels.NUMBERS:
            return torch.full_like(batch.margin, torch.nan)
        return chance_at_first_visit(batch.error)  # a stream: nothing else is known

    def true_label(self, batch: Batch) -> Tensor:
        """Class of each sample if its label is wrong, `[B]`."""
        return self._known.true_label(batch) if self._known is not None else batch.rival
