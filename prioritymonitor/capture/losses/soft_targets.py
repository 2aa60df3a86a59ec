"""Targets of a cross-entropy that are no single class: smoothed labels, and labels mixed in pairs.

The gradient of a row is `g = s (p − t)`. Off the labels all targets are one number `c`, which is
ε/C with smoothing and 0 without, so that `g_k = s p_k − s c`: points on a line of slope s. At a
label the point lies below that line. Once s is known, the target is `t = p − g/s`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .products import ROUNDINGS

_ROUNDS = 3
"""Turns of finding the labels and the line through the other points; two are enough."""

_LEAST_PROBABLE = 0.5
"""Least probability, in units of 1/C, from which a first strength is taken."""

_MOST_SMOOTHING = 0.95
_MOST_NEGATIVE = 1e-3


class SoftTargets(NamedTuple):
    """What explains the gradients of K micro-batches best, of smoothed and of mixed labels."""

    target: Tensor
    """`[K, R, C]`."""
    floor: Tensor
    """Target of the classes that are no label, `[K]`."""
    strength: Tensor
    """`[K]`."""
    unexplained: Tensor
    """Share of the gradient's energy, in [0, 1], `[K]`."""
    is_mixed: Tensor
    """True where rows have two labels, bool `[K]`."""


def find_soft_targets(
    probability: Tensor, gradient: Tensor, energy: Tensor, least: float
) -> SoftTargets:
    """Fit strength and targets.

    Args:
        probability: `[K, R, C]`.
        gradient: What reached the logits, `[K, R, C]`, in the same type.
        energy: Square of the gradient of each row, `[K, R]`.
        least: Unexplained share that rounding may leave.
    """
    smoothed = _fit(probability, gradient, energy, labels=1)
    mixed = _fit(probability, gradient, energy, labels=2)
    unexplained = smoothed.unexplained
    is_mixed = (unexplained > least) & (mixed.unexplained < unexplained / 2)
    strength, floor, unexplained = (
        torch.where(is_mixed, *pair) for pair in zip(mixed, smoothed, strict=True)
    )
    target = probability - gradient / strength[:, None, None]
    return SoftTargets(target, floor, strength, unexplained, is_mixed)


class _Line(NamedTuple):
    strength: Tensor
    floor: Tensor
    unexplained: Tensor


def _fit(probability: Tensor, gradient: Tensor, energy: Tensor, labels: int) -> _Line:
    """The line through the points of all classes but so many labels of each row."""
    live = (energy > 0).to(probability.dtype).unsqueeze(2)
    # The points at labels lie below: where there is no smoothing, the steepest way from the origin
    # to a point is the line.
    strength = gradient / probability
    improbable = probability < _LEAST_PROBABLE / probability.shape[2]
    strength = strength.masked_fill_(improbable, -torch.inf).amax((1, 2))
    for _ in range(_ROUNDS):
        weight = live.expand_as(probability).clone()
        target = strength[:, None, None] * probability - gradient
        for _ in range(labels):
            label = target.argmax(2, keepdim=True)
            target.scatter_(2, label, -torch.inf)
            weight.scatter_(2, label, 0)
        strength, floor = _line(probability, gradient, weight)
    off = strength[:, None, None] * (probability - floor[:, None, None]) - gradient
    left = (weight * off).square_().sum((1, 2))
    rounding = ROUNDINGS * torch.finfo(gradient.dtype).eps * strength
    left = (left - gradient[0].numel() * rounding.square()).clamp(min=0)
    smoothing = floor * probability.shape[2]
    is_possible = (strength > 0) & (smoothing > -_MOST_NEGATIVE) & (smoothing < _MOST_SMOOTHING)
    unexplained = torch.where(is_possible, left / energy.sum(1), 1.0)
    return _Line(strength, floor, unexplained.nan_to_num(nan=1.0))


def _line(probability: Tensor, gradient: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Slope, and where it meets the axis, `[K]` each; weights are 0 or 1."""
    number = weight.sum((1, 2))
    middle, height = ((weight * one).sum((1, 2)) / number for one in (probability, gradient))
    aside = (probability - middle[:, None, None]).mul_(weight)
    slope = (aside * gradient).sum((1, 2)) / (aside * probability).sum((1, 2))
    return slope, middle - height / slope
