"""Pure: how a sample fared so far, in; how noisy its label is taken to be, out."""

from __future__ import annotations

import math

from torch import Tensor

TEMPERATURE = 0.1
"""Width of the transition in units of the probability margin, which lies in [−1, 1]."""

MOST_NOISE = 0.9
"""Noise rate above which labels look wrong because little has been learnt yet."""

_TOLERANCE = 1e-4
_MOST_ROUNDS = 100


def noisy_weight(mean_margin: Tensor, noise_rate: float) -> Tensor:
    """How noisy a label is taken to be: `1 / (1 + exp(m / 0.1) (1 − π) / π)`.

    This is the posterior chance of a wrong label for a sample of mean margin m, at a noise rate π,
    if each tenth of margin makes a wrong label e times less likely. A label that the network mostly
    disagreed with has a negative margin. Where few labels are wrong, it takes more disagreement to
    be one of them: most samples with a slightly negative margin are then hard, not mislabelled.

    Args:
        mean_margin: Mean over visits of `p_y − max_{k≠y} p_k`, in [−1, 1], any shape; NaN, a sample
            never visited, gives the noise rate.
        noise_rate: Share π of noisy labels, in (0, 1).
    """
    prior_odds = math.log(noise_rate / (1 - noise_rate))
    return (prior_odds - mean_margin.nan_to_num(nan=0.0) / TEMPERATURE).sigmoid()


def consistent_noise_rate(mean_margin: Tensor) -> float:
    """The noise rate π that is the mean of the weights it leads to.

    Args:
        mean_margin: `[n]`; NaN for samples never visited, which are left out.

    Returns:
        π in [0.0001, 0.9999]; 0.5 if no sample was visited.
    """
    margin = mean_margin[~mean_margin.isnan()]
    rate = 0.5
    for _ in range(_MOST_ROUNDS if len(margin) else 0):
        before, rate = rate, noisy_weight(margin, rate).mean().item()
        rate = min(max(rate, 1e-4), 1 - 1e-4)
        if abs(rate - before) < _TOLERANCE:
            break
    return rate


def noisy_part(mean_margin: Tensor) -> Tensor:
    """Part of what is learnt of each sample that counts as the noisy labels' gain.

    This is `noisy_weight` without the benefit of the doubt: where few labels are wrong, a label
    that the network disagrees with is most likely right and hard, and still what is learnt of it
    is mostly learnt by heart. So both sides are even at a margin of zero, unless more than half of
    the labels are wrong, and that is more than the network's ignorance.

    Args:
        mean_margin: `[n]`; NaN for samples never visited.
    """
    rate = consistent_noise_rate(mean_margin)
    return noisy_weight(mean_margin, rate if 0.5 < rate <= MOST_NOISE else 0.5)
