"""What a witness says: where its curve was highest, how far it has fallen, if that is enough."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from ..records import Record

WINDOW = 3
"""Epochs over which a share is averaged: one alone swings with the last steps of each epoch."""

WEIGHTS = (1, 2, 1)
"""The one in the middle counts twice, so that a sharp peak keeps its place."""

ALIKE = 0.003
"""Part of the highest mean within which another can't be told from it."""


@dataclass(frozen=True)
class Reading:
    """A witness after the last epoch of a history."""

    name: str
    """What has a curve, for people."""
    peak: int
    """The last epoch, counted from 1, at which the curve could not be told from its highest."""
    highest: float
    """Its value there."""
    fall: float
    """By how much both the curve and the last value itself are lower now."""
    line: float
    """The fall from which on the witness says that noise has taken over."""
    why_silent: str | None = None
    """Why a fall tells nothing so far; None once it does."""

    @property
    def is_below(self) -> bool:
        """Whether the curve has fallen as far as the line, and that tells something."""
        return self.why_silent is None and self.fall > 0 and self.fall >= self.line

    @property
    def distance(self) -> str:
        """Fall and line, for people."""
        return f"fell {self.fall:.3f}, line {self.line:.3f}"


def read_share(history: Sequence[Record], key: str, name: str, tolerance: float) -> Reading | None:
    """Read a share of the samples, averaged over three epochs.

    The peak is the middle one of the three epochs whose mean is highest: the visits of an epoch
    are made before its end, by about as much as the averaged weights trail. It is the first epoch
    only if that alone is highest: there, little is learnt.

    Args:
        history: The records of the epochs, the first one first.
        key: Where a record has the share; None where it is not known.
        name: What it is, for people.
        tolerance: The part of the highest mean that a fall must reach.

    Returns:
        None where the share of the last epoch is not known.
    """
    means = means_of(history, key)
    if not means:
        return None
    highest = max(mean for _, mean in means)
    alike = [place for place, (_, mean) in enumerate(means) if mean >= (1 - ALIKE) * highest]
    peak = means[max(alike[-1] - WINDOW // 2, min(alike[-1], 1))][0]
    # A single low epoch is in three means, but not low itself in the next.
    now = max(means[-1][1], history[-1][key])
    return Reading(name, peak, highest, highest - now, tolerance * highest)


def means_of(history: Sequence[Record], key: str) -> list[tuple[int, float]]:
    """Epoch, and the mean of what is known of it and the two before it, the middle one twice.

    Args:
        history: The records of the epochs, the first one first.
        key: Of the value in a record.

    Returns:
        The epochs in which the value is known; empty where it is not known in the last one.
    """
    known = [(epoch, record[key]) for epoch, record in enumerate(history, 1)]
    known = [(epoch, value) for epoch, value in known if value is not None]
    if not known or known[-1][0] < len(history):
        return []
    values = [value for _, value in known]
    windows = (values[max(end - WINDOW, 0) : end] for end in range(1, len(values) + 1))
    return [(epoch, _mean(window)) for (epoch, _), window in zip(known, windows, strict=True)]


def _mean(window: Sequence[float]) -> float:
    weights = WEIGHTS[: len(window)]
    return float(sum(map(operator.mul, weights, window)) / sum(weights))
