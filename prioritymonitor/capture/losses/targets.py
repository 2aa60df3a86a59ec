"""Kinds of targets, and where each label stands among what the network holds probable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...records import Labels
from .observed import class_error, class_margin

_MOST_ERROR = math.sqrt(2)
"""Norm of the error in probabilities where all of it is on a wrong class."""


@dataclass(frozen=True)
class Standing:
    """Where the labels stand; the fields are those of `records.Batch`, `[K, R]` or `[K]`."""

    target: Tensor
    margin: Tensor
    error: Tensor
    rival: Tensor
    counted: Tensor
    in_range: Tensor
    labels: Labels


Judge = Callable[[Tensor, Tensor, int | None], Standing]
"""(outputs `[K, R, C]`, target `[K, R]` or `[K, R, C]`, ignored label) -> where labels stand."""


def classes(logits: Tensor, target: Tensor, ignored: int | None) -> Standing:
    """One class per row, by its number or by its probability."""
    hard = target if target.ndim == 2 and not target.is_floating_point() else target.argmax(2)
    counted = torch.ones_like(hard, dtype=torch.bool)
    if ignored is not None:
        counted = hard != ignored
    inside = (hard >= 0) & (hard < logits.shape[2])
    in_range = (inside | ~counted).all(1)
    hard = torch.where(inside, hard, 0)
    probability = logits.softmax(2)
    margin, rival = class_margin(probability, hard)
    return Standing(
        target=hard,
        margin=margin,
        error=class_error(probability, hard),
        rival=rival,
        counted=counted & inside,
        in_range=in_range,
        labels=Labels.ONE,
    )


def bits(logits: Tensor, target: Tensor, ignored: int | None) -> Standing:
    """Yes or no at each logit; a single logit makes two classes."""
    return probable_bits(logits.sigmoid(), target, ignored)


def probable_bits(probability: Tensor, target: Tensor, ignored: int | None) -> Standing:
    """The same for probabilities of yes."""
    yes = target.view_as(probability).to(probability.dtype)
    agreement = (2 * yes - 1) * (2 * probability - 1)
    hard = (yes[..., 0] > 0.5).long()
    is_one = probability.shape[2] == 1
    unknown = torch.full_like(hard, -1)
    return Standing(
        target=hard if is_one else unknown,
        margin=agreement.mean(2),
        error=_MOST_ERROR * (probability - yes).abs().mean(2),  # of the two classes yes and no
        rival=1 - hard if is_one else unknown,
        counted=torch.ones_like(hard, dtype=torch.bool),
        in_range=((yes >= 0) & (yes <= 1)).all(2).all(1),
        labels=Labels.ONE if is_one else Labels.SEVERAL,
    )


def scores(outputs: Tensor, target: Tensor, ignored: int | None) -> Standing:
    """One class per row, as a row of zeros and a one, which the outputs should equal."""
    hard = target.argmax(2)
    margin, rival = class_margin(outputs, hard)
    counted = torch.ones_like(hard, dtype=torch.bool)
    return Standing(
        target=hard,
        margin=margin.clamp(-1, 1),
        error=class_error(outputs, hard).clamp(max=_MOST_ERROR),
        rival=rival,
        counted=counted,
        in_range=counted.all(1),
        labels=Labels.ONE,
    )


def numbers(outputs: Tensor, target: Tensor, ignored: int | None) -> Standing:
    """Numbers without classes; neither margin nor error tells a wrong one."""
    unknown = torch.full(outputs.shape[:2], -1, device=outputs.device)
    counted = torch.ones_like(unknown, dtype=torch.bool)
    nothing = torch.full_like(outputs[..., 0], torch.nan)
    return Standing(
        target=unknown,
        margin=nothing,
        error=nothing,
        rival=unknown,
        counted=counted,
        in_range=counted.all(1),
        labels=Labels.NUMBERS,
    )


def is_one_hot(target: Tensor, classes: int) -> bool:
    """Whether the rows are zeros with a single one; waits for the device."""
    if classes < 2 or target.ndim < 3:
        return False
    is_bit = (target == 0) | (target == 1)
    return bool((is_bit.all(2) & (target.sum(2) == 1)).all())
