"""Which group each sample belongs to: what is known, or what its past says."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import TargetKind, Visits
from .first_visits import FirstVisits
from .known_labels import KnownNoise
from .noisiness import chance_at_first_visit
from .table import SampleTable


class Grouping:
    """How noisy labels are taken to be.

    Args:
        known: Which labels are wrong, if the user told us.
        table: The past of the samples; None where they have no identity.
    """

    def __init__(self, known: KnownNoise | None, table: SampleTable | None) -> None:
        self._known = known
        self._table = table

    @property
    def first_visits(self) -> FirstVisits | None:
        """Gathers what samples look like; None where they have no identity."""
        return self._table.first_visits if self._table is not None else None

    def forget_samples(self) -> None:
        """Samples can't be told apart any more; what is in the table stays there."""
        if self._table is not None:
            self._table.first_visits.give_up("the samples can't be told apart")
        self._table = None

    def record(self, visits: Visits) -> None:
        """Add visits to the past of the samples."""
        if self._table is not None and visits.index is not None:
            known = self._known
            self._table.record(visits, known.is_noisy(visits) if known is not None else None)

    def noisy_weight(self, visits: Visits) -> Tensor:
        """In [0, 1], `[B]`; NaN where nothing tells."""
        if self._known is not None:
            return self._known.is_noisy(visits)
        if self._table is not None:
            return self._table.noisy_weight(visits)
        if visits.targets is TargetKind.NUMBERS:
            return torch.full_like(visits.margin, torch.nan)
        # A stream: nothing else is known.
        return chance_at_first_visit(visits.error, visits.classes)

    def true_label(self, visits: Visits) -> Tensor:
        """Class of each sample if its label is wrong, `[B]`."""
        return self._known.true_label(visits) if self._known is not None else visits.rival
