"""The neighbours' vote: how many predictions are what the neighbours' given labels say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..records import MOST_VOTES, EpochOfSamples, Record
from .reading import Reading, means_of, read_share

AT_STAKE = 0.05
"""Share of contradicted labels above which a smaller fall is enough: so many are contradicted where
no label is wrong, by the errors of network and neighbours."""


def agreement(epoch: EpochOfSamples, earlier: Sequence[Record]) -> float:
    """Share of the samples that are predicted as their neighbours say, in [0, 1].

    It rises while what holds across samples is learnt, and falls as single labels are learnt by
    heart. NaN where the epoch visited no sample that neighbours voted on.
    """
    asked = (epoch.predicted >= 0) & (epoch.vote >= 0)
    return (epoch.predicted == epoch.vote)[asked].double().mean().item()


def read_agreement(history: Sequence[Record], tolerance: float) -> Reading | None:
    """Read the curve; the more labels are contradicted, the smaller a fall tells.

    What a fall is made of are the contradicted labels. Where no label is wrong, a few are, and as
    the network outgrows its neighbours, the agreement falls by some of them: it takes a fall by
    `tolerance` then. Where many are, it is less, in proportion, but never less than chance makes of
    so many samples: a standard error of the difference of two shares. As long as no label could be
    judged, no fall tells anything.

    Args:
        history: The records of the epochs, the first one first.
        tolerance: The part of the highest mean that a fall must reach where few are contradicted.

    Returns:
        None where the agreement of the last epoch is not known.
    """
    reading = read_share(history, "agreement", "the agreement with the neighbours", tolerance)
    if reading is None:
        return None
    if all(record["noise_rate"] is None for record in history):
        return replace(reading, line=math.inf)
    at_peak = dict(means_of(history, "contradicted")).get(reading.peak, 0.0)
    by_contradicted = reading.line * min(1.0, AT_STAKE / max(at_peak, AT_STAKE))
    voted = min(history[-1]["samples_seen"], MOST_VOTES)
    by_chance = math.sqrt(2 * reading.highest * (1 - reading.highest) / voted)
    return replace(reading, line=max(by_contradicted, by_chance))
