"""Labels that network and neighbours contradict: what is there to be learnt by heart."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import EpochOfSamples, Record


def contradicted(epoch: EpochOfSamples, earlier: Sequence[Record]) -> float:
    """Share of the samples for which prediction and neighbours agree on another class, in [0, 1].

    Of the samples that neighbours voted on; NaN where the epoch visited none of them.
    """
    asked = (epoch.predicted >= 0) & (epoch.vote >= 0)
    is_other = (epoch.predicted == epoch.vote) & (epoch.vote != epoch.given_label)
    return is_other[asked].double().mean().item()
