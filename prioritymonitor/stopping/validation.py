"""Held-out labels: how well the averaged weights predict them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..records import Record
from .reading import Reading, read_share

STANDARD_ERRORS = 1.5
"""Of the share itself; the fall is that of the same samples, and surer."""


def read_validation(history: Sequence[Record]) -> Reading | None:
    """Read the curve; the line is one and a half standard errors of its highest value.

    Args:
        history: The records of the epochs, the first one first.

    Returns:
        None where the share of the last epoch is not known.
    """
    reading = read_share(history, "validation", "the share of held-out labels predicted", 0.0)
    count = history[-1].get("validation_samples")
    if reading is None or not count:
        return None
    error = math.sqrt(reading.highest * (1 - reading.highest) / count)
    return replace(reading, line=STANDARD_ERRORS * error)
