"""The clean priority: by how much more the updates taught clean labels than noisy ones.

By the gradient theorem the contributions of a group, summed over updates, are the decrease of its
loss. The curve rises while clean labels are learnt, and falls once noisy ones are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..records import EpochOfSamples, Record


def priority(epoch: EpochOfSamples, earlier: Sequence[Record]) -> float:
    """Its value after an epoch, in nats per sample visited so far.

    Args:
        epoch: The epoch.
        earlier: The records of the epochs before.
    """
    before = earlier[-1]["priority"] if earlier else None
    gain = priority_gain(epoch.decrease, epoch.noisy_part) / max(epoch.samples_seen, 1)
    return gain + (before or 0.0)


def priority_gain(decrease: Tensor, noisy_part: Tensor) -> float:
    """What the updates of an epoch add to the clean priority: clean minus noisy contributions.

    `sum_i (1 − w_i) Δ_i − sum_i w_i Δ_i`.

    Args:
        decrease: By how much the loss of each sample went down, `[n]`; NaN where it is not known.
        noisy_part: Part of it that counts as the noisy labels' gain, in [0, 1], `[n]`.

    Returns:
        In nats, of all samples together.
    """
    gain = (1 - 2 * noisy_part.double()) * decrease.double()
    return gain.nansum().item()
