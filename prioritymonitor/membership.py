"""Pure: how a sample fared so far, in; how noisy its label is taken to be, out."""

from __future__ import annotations

from torch import Tensor

TEMPERATURE = 0.2
"""Width of the transition in units of the probability margin, which lies in [−1, 1]."""


def noisy_weight(mean_margin: Tensor) -> Tensor:
    """`1 / (1 + exp(m / 0.2))` of the mean probability margin m.

    A label that the network mostly disagreed with has a negative mean margin and a weight above
    1/2. NaN, a sample never visited, gives 1/2: nothing is known of it.

    Args:
        mean_margin: Mean over visits of `p_y − max_{k≠y} p_k`, in [−1, 1], any shape.
    """
    return (-mean_margin.nan_to_num(nan=0.0) / TEMPERATURE).sigmoid()
