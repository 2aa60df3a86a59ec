"""What the loss took the labels of rows to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shown:
    """The labels of K passes of R rows, as the loss saw them."""

    label: Tensor
    """The label of most weight, int64 `[K, R]`."""
    weight_of: Callable[[Tensor], Tensor]
    """Weight in [0, 1] of other labels in the targets, `[K, R]` each."""
    counted: Tensor
    """False for rows without a gradient, bool `[K, R]`."""
    is_mixed: Tensor
    """True where the rows of a pass have more than one label each, bool `[K]`."""
    classes: int


JudgedBy = Callable[[Shown], tuple[Tensor, Tensor | None]]
"""What was shown -> the labels to judge the rows by, `[K, R]`, and whether a row says anything of
its own sample, bool `[K, R]`; None where all do."""


def judged_as_shown(shown: Shown) -> tuple[Tensor, None]:
    """For rows of which nothing else is known."""
    return shown.label, None


def weights_in(target: Tensor, floor: Tensor) -> Callable[[Tensor], Tensor]:
    """`Shown.weight_of` by soft targets.

    Args:
        target: `[K, R, C]`.
        floor: What smoothing gives to each class, `[K, R]` or `[K, 1]`.
    """

    def weight_of(label: Tensor) -> Tensor:
        own = target.gather(2, label.unsqueeze(2)).squeeze(2)
        return (own - floor) / (1 - target.shape[2] * floor)

    return weight_of
