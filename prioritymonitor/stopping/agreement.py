"""The neighbours' vote: how many predictions are what the neighbours' given labels say."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import EpochOfSamples, Record


def agreement(epoch: EpochOfSamples, earlier: Sequence[Record]) -> float:
    """Share of the samples that are predicted as their neighbours say, in [0, 1].

    It rises while what holds across samples is learnt, and falls as single labels are learnt by
    heart. NaN where the epoch visited no sample that neighbours voted on.
    """
    asked = (epoch.predicted >= 0) & (epoch.vote >= 0)
    return (epoch.predicted == epoch.vote)[asked].double().mean().item()
