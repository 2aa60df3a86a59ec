"""Where tables come from, and what they look like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Json = dict[str, Any]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "−")
    return text if text != "−0.00" else "+0.00"


def pair(mean: float, worst: float) -> str:
    return f"{signed(mean)} / {signed(worst)}"


def plain(value: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value:.2f}".replace("-", "−")
    return text if text != "−0.00" else "0.00"


def plain_pair(mean: float | None, worst: float | None) -> str:
    return "–" if mean is None else f"{plain(mean)} / {plain(worst)}"


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")
