"""The witnesses of the stop: one table, a line for each.

A witness is a function of an epoch and the records of those before; it gives the value of its curve
after the epoch, which is written down in the record under the witness' name. The accuracy on
held-out samples is written down before: it is known where samples of the train loader are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..records import EpochOfSamples, Record
from .priority import priority

Witness = Callable[[EpochOfSamples, Sequence[Record]], float]

WITNESSES: dict[str, Witness] = {"priority": priority}
