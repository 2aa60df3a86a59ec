"""Histories of runs that nobody trained."""

from collections.abc import Sequence
from typing import Any

from prioritymonitor.tags import RECORD_KEYS


def history_of(**curves: Sequence[float | None]) -> list[dict[str, Any]]:
    """Records of so many epochs as the curves have values; all else is unknown in them."""
    rows = zip(*curves.values(), strict=True)
    nothing = dict.fromkeys(RECORD_KEYS)
    return [
        nothing | {"epoch": epoch} | dict(zip(curves, row, strict=True))
        for epoch, row in enumerate(rows, 1)
    ]
