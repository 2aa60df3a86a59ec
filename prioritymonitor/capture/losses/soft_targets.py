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

_ROUNDS = 2
"""Turns of finding the labels and the line through the other points."""

_LEAST_PROBABLE = 0.5
"""Least probability, in units of 1/C, from which a first strength is taken."""

_LONGEST_WAIT = 64
"""Times that an accelerator is not asked, after more and more of them at the beginning."""

_MOST_SMOOTHING = 0.95
_MOST_NEGATIVE = 1e-3


class Doubt:
    """Whether targets may be soft, without a wait for the device in every step."""

    def __init__(self) -> None:
        self._asked = 0
        self._was_any: Tensor | None = None
        self._is_known = False

    def __call__(self, is_unexplained: Tensor) -> bool:
        """Whether some passes of a run need soft targets, as far as it is known.

        Args:
            is_unexplained: Whether single classes do not explain a pass, bool `[K]`.
        """
        if is_unexplained.device.type == "cpu":
            return is_any(is_unexplained)
        if self._is_known:
            return True
        is_any_now = is_unexplained.any()
        self._was_any = is_any_now if self._was_any is None else self._was_any | is_any_now
        self._asked += 1
        if self._asked % _LONGEST_WAIT == 0 or self._asked & (self._asked - 1) == 0:
            self._is_known = bool(self._was_any)
        return self._is_known


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
    line = _fit(probability, gradient, energy, labels=1)
    is_mixed = line.unexplained > least
    if is_any(is_mixed):
        mixed = _fit(probability, gradient, energy, labels=2)
        is_mixed &= mixed.unexplained < line.unexplained / 2
        line = _Line(*(torch.where(is_mixed, *pair) for pair in zip(mixed, line, strict=True)))
    target = probability - gradient / line.strength[:, None, None]
    return SoftTargets(target, line.floor, line.strength, line.unexplained, is_mixed)


def is_any(flags: Tensor) -> bool:
    """Whether any is set; True where the device would have to be waited for."""
    return flags.device.type != "cpu" or bool(flags.numpy().any())


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
