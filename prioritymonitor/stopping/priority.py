"""The clean priority: by how much more the updates taught clean labels than noisy ones.

By the gradient theorem the contributions of a group, summed over updates, are the decrease of its
loss. The curve rises while clean labels are learnt, and falls once noisy ones are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..records import MOST_NOISE, EpochOfSamples, Record
from .reading import WINDOW, Reading

TOLERANCE = 0.01
"""Share of the initial loss that the priority must have lost."""


def priority(epoch: EpochOfSamples, earlier: Sequence[Record]) -> float:
    """Its value after an epoch, in nats per sample visited so far.

    Args:
        epoch: The epoch.
        earlier: The records of the epochs before.
    """
    gained = priority_gain(epoch.decrease, epoch.noisy_part)
    if earlier and earlier[-1]["priority"] is not None:
        gained += earlier[-1]["priority"] * earlier[-1]["samples_seen"]
    return gained / max(epoch.samples_seen, 1)


def priority_curve(history: Sequence[Record]) -> dict[int, float]:
    """Epoch -> clean priority, in nats per sample visited by the end of the history.

    A record counts by the samples visited up to its own epoch; where they become more, as with
    epochs over part of the data, its value is one of fewer samples.
    """
    seen = max(history[-1]["samples_seen"] or 0, 1)
    return {
        epoch: record["priority"] * (record["samples_seen"] / seen)
        for epoch, record in enumerate(history, 1)
        if record["priority"] is not None
    }


def read_priority(history: Sequence[Record]) -> Reading | None:
    """Read the curve from the first epoch on after which labels could be judged.

    The fall is that which has lasted for three epochs; the line is 1 % of the initial loss.

    Args:
        history: The records of the epochs, the first one first.

    Returns:
        None where the priority of the last epoch is not known, or nothing could be judged yet.
    """
    curve, first = priority_curve(history), first_judged(history)
    if first is None or len(history) not in curve:
        return None
    peak = max((epoch for epoch in curve if epoch >= first), key=curve.__getitem__)
    initial_loss = history[-1]["initial_loss"]
    return Reading(
        name="the clean priority",
        peak=peak,
        highest=curve[peak],
        fall=curve[peak] - max(list(curve.values())[-WINDOW:]),
        # Without a positive initial loss any fall that lasts is enough.
        line=TOLERANCE * initial_loss if initial_loss and initial_loss > 0 else 0.0,
    )


def first_judged(history: Sequence[Record]) -> int | None:
    """The first epoch after which labels could be judged; None: none yet."""
    rates = ((epoch, record["noise_rate"]) for epoch, record in enumerate(history, 1))
    return next((epoch for epoch, rate in rates if rate is not None and rate < MOST_NOISE), None)


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
