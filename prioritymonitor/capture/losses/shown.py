"""What the loss took the labels of rows to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
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


def own_part(probability: Tensor, target: Tensor, label: Tensor, is_mixed: Tensor) -> Tensor:
    """Probabilities without what the other label of a mixed row accounts for, `[K, R, C]`.

    A network that has learnt both labels of a row divides its probability as the target does. What
    is left says how sure it is of the row's own label, whatever the shares are.

    Args:
        probability: `[K, R, C]`.
        target: `[K, R, C]`.
        label: Own label of each row, `[K, R]`.
        is_mixed: The passes that are changed, bool `[K]`.
    """
    left = (probability - target.scatter(2, label.unsqueeze(2), 0)).clamp_(min=0)
    left /= left.sum(2, keepdim=True).clamp(min=torch.finfo(left.dtype).tiny)
    return torch.where(is_mixed[:, None, None], left, probability)
