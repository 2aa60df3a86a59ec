"""Prediction changes: the signal of Label Wave (Yuan et al., ICLR 2025, arXiv 2502.07551)."""

from __future__ import annotations

from collections.abc import Sequence

from ..records import EpochOfSamples, Record


def prediction_changes(epoch: EpochOfSamples, earlier: Sequence[Record]) -> float:
    """Share of the samples that are predicted otherwise than in the epoch that saw them last.

    In [0, 1]. It falls while clean labels are learnt, and is lowest as wrong ones begin to be
    fitted. NaN where the epoch visited no sample that was seen before.
    """
    both = (epoch.predicted >= 0) & (epoch.predicted_before >= 0)
    return (epoch.predicted != epoch.predicted_before)[both].double().mean().item()
