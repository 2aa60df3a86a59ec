"""Kinds of targets, and where each label stands among what the network holds probable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...records import TargetKind, Visits
from .products import class_error, class_margin_
from .several_calls import WeightedSum
from .shown import JudgedBy, Shown, own_part, weights_in

_MOST_ERROR = math.sqrt(2)
"""Norm of the error in probabilities where all of it is on a wrong class."""

_MIXED = 1e-3
"""Weight of other labels than the first from which on rows have several."""

Judge = Callable[[Tensor, Tensor, int | None, Tensor], tuple[Visits, Tensor]]
"""(outputs `[K, R, C]`, target `[K, R]` or `[K, R, C]`, ignored label, loss `[K, R]`) -> what the
rows show, `[K, R]` each, and whether all labels of a pass are classes, bool `[K]`."""


def classes(
    logits: Tensor, target: Tensor, ignored: int | None, loss: Tensor
) -> tuple[Visits, Tensor]:
    """One class per row, by its number or by its probability."""
    hard = target if target.ndim == 2 and not target.is_floating_point() else target.argmax(2)
    counted = torch.ones_like(hard, dtype=torch.bool)
    if ignored is not None:
        counted = hard != ignored
    inside = (hard >= 0) & (hard < logits.shape[2])
    in_range = (inside | ~counted).all(1)
    hard = torch.where(inside, hard, 0)
    probability = logits.softmax(2)
    margin, rival = class_margin_(probability, hard)
    visits = Visits(
        given_label=hard,
        sample_loss=loss,
        margin=margin,
        error=class_error(probability, hard),
        rival=rival,
        counted=counted & inside,
        targets=TargetKind.ONE,
        classes=logits.shape[2],
    )
    return visits, in_range


def judged(
    visits: Visits,
    logits: Tensor,
    target: Tensor | None,
    calls: tuple[WeightedSum, Sequence[Tensor]] | None,
    judged_by: JudgedBy,
) -> Visits:
    """Visits with one class per row `[K, R]`, judged by the labels that are the samples' own.

    Args:
        visits: By the labels of most weight.
        logits: `[K, R, C]`.
        target: Soft targets `[K, R, C]`; None for classes.
        calls: The calls of the criterion and their targets; None for a single one.
        judged_by: Tells the own labels.
    """
    label = visits.given_label

    def weight_of_label(other: Tensor) -> Tensor:
        return (other == label).to(logits.dtype)

    weight_of: Callable[[Tensor], Tensor] = weight_of_label
    is_mixed = torch.zeros_like(visits.counted[:, 0])
    if calls is not None:
        weight_of, is_mixed = partial(calls[0].weight_of, calls[1]), calls[0].is_mixed
    elif target is not None:
        weight_of = weights_in(target, target.amin(2))
        is_mixed = (weight_of(label) < 1 - _MIXED).any(1)
    shown = Shown(label, weight_of, visits.counted, is_mixed, visits.classes)
    own, is_own = judged_by(shown)
    if calls is not None:
        target = calls[0].target_of(calls[1], logits.shape[2])
    if target is not None:
        judged = own_part(logits.softmax(2), target, own, is_mixed)
        margin, rival = class_margin_(judged, own)
        error = class_error(judged, own)
        visits = replace(visits, given_label=own, margin=margin, error=error, rival=rival)
    return replace(visits, is_own=is_own)


def bits(
    logits: Tensor, target: Tensor, ignored: int | None, loss: Tensor
) -> tuple[Visits, Tensor]:
    """Yes or no at each logit; a single logit makes two classes."""
    return probable_bits(logits.sigmoid(), target, ignored, loss)


def probable_bits(
    probability: Tensor, target: Tensor, ignored: int | None, loss: Tensor
) -> tuple[Visits, Tensor]:
    """The same for probabilities of yes."""
    yes = target.view_as(probability).to(probability.dtype)
    agreement = (2 * yes - 1) * (2 * probability - 1)
    hard = (yes[..., 0] > 0.5).long()
    is_one = probability.shape[2] == 1
    unknown = torch.full_like(hard, -1)
    visits = Visits(
        given_label=hard if is_one else unknown,
        sample_loss=loss,
        margin=agreement.mean(2),
        error=_MOST_ERROR * (probability - yes).abs().mean(2),  # of the two classes yes and no
        rival=1 - hard if is_one else unknown,
        counted=torch.ones_like(hard, dtype=torch.bool),
        targets=TargetKind.ONE if is_one else TargetKind.SEVERAL,
        classes=2,
    )
    return visits, ((yes >= 0) & (yes <= 1)).all(2).all(1)


def scores(
    outputs: Tensor, target: Tensor, ignored: int | None, loss: Tensor
) -> tuple[Visits, Tensor]:
    """One class per row, as a row of zeros and a one, which the outputs should equal."""
    hard = target.argmax(2)
    margin, rival = class_margin_(outputs.clone(), hard)
    counted = torch.ones_like(hard, dtype=torch.bool)
    visits = Visits(
        given_label=hard,
        sample_loss=loss,
        margin=margin.clamp(-1, 1),
        error=class_error(outputs, hard).clamp(max=_MOST_ERROR),
        rival=rival,
        counted=counted,
        targets=TargetKind.ONE,
        classes=outputs.shape[2],
    )
    return visits, counted.all(1)


def numbers(
    outputs: Tensor, target: Tensor, ignored: int | None, loss: Tensor
) -> tuple[Visits, Tensor]:
    """Numbers without classes; neither margin nor error tells a wrong one."""
    unknown = torch.full(outputs.shape[:2], -1, device=outputs.device)
    counted = torch.ones_like(unknown, dtype=torch.bool)
    nothing = torch.full_like(outputs[..., 0], torch.nan)
    visits = Visits(
        given_label=unknown,
        sample_loss=loss,
        margin=nothing,
        error=nothing,
        rival=unknown,
        counted=counted,
        targets=TargetKind.NUMBERS,
        classes=2,
    )
    return visits, counted.all(1)


def is_one_hot(target: Tensor, classes: int) -> bool:
    """Whether the rows are zeros with a single one; waits for the device."""
    if classes < 2 or target.ndim < 3:
        return False
    is_bit = (target == 0) | (target == 1)
    return bool((is_bit.all(2) & (target.sum(2) == 1)).all())
