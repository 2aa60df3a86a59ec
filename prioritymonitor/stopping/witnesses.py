"""The witnesses of the stop: one table, a line for each.

A witness is a function of an epoch and the records of those before; it gives the value of its curve
after the epoch, which is written down in the record under the witness' name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records import EpochOfSamples, Record
from .agreement import agreement
from .prediction_changes import prediction_changes
from .priority import priority

Witness = Callable[[EpochOfSamples, Sequence[Record]], float]

WITNESSES: dict[str, Witness] = {
    "priority": priority,
    "agreement": agreement,
    "prediction_changes": prediction_changes,
}
