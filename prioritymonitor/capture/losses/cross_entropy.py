"""Cross-entropy that nobody told us of, recognised by the gradient that the logits received.

`s_i (softmax(z_i) − onehot)` has one negative entry per row, at the label, and its size `s_i`
carries the reduction, the class weight and any scale of mixed precision or gradient accumulation.

Micro-batches of one shape are observed together, as `[K, R, C]`: with small models the time goes
into starting operations, not into doing them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...records import HeadGradients, Observation, PassHealth, TargetKind, Visits
from .products import Products, class_error, class_margin_
from .shown import JudgedBy, Shown, judged_as_shown, own_part, weights_in
from .soft_targets import Doubt, SoftTargets, find_soft_targets, is_any

_LEAST_WEIGHTED = 1e-5
"""Unexplained share from which on samples have weights of their own, which differ by 0.3 %."""

_MUCH = 1e-3
"""Unexplained share of passes that are not understood."""

_LEAST_SOFT = 1e-6
"""Unexplained share from which on the targets may be more than one class each."""


def recognise_cross_entropy(
    logits: Tensor,
    gradient: Tensor,
    judged_by: JudgedBy = judged_as_shown,
    may_be_soft: Doubt | None = None,
) -> Observation:
    """Recover labels, losses and residuals of a cross-entropy loss nobody told us of.

    Labels may be smoothed, or mixed in pairs. Class weights are recovered up to a common factor and
    returned with mean 1 over a micro-batch, so that the mean of the sample gradients is the
    gradient of the mean loss.

    Args:
        logits: `[K, R, C]` for K micro-batches, float32 or float64; a row is a sample, or a
            position of one.
        gradient: What reached the logits, `[K, R, C]`, in any floating type.
        judged_by: Tells the labels by which rows are judged.
        may_be_soft: What is known of the run so far.
    """
    type_of_gradient = torch.finfo(gradient.dtype)
    gradient = gradient.to(logits.dtype)
    log_total = logits.logsumexp(2, keepdim=True)  # on a CPU much faster than softmax
    probability = (logits - log_total).exp_()
    found = _of_one_class(logits, log_total, probability, gradient, type_of_gradient)
    finite = found.products.finite & log_total.sum((1, 2)).isfinite()
    least = max(_LEAST_SOFT, (type_of_gradient.eps / 2) ** 2)
    if (may_be_soft or Doubt())(found.unexplained > least):
        soft = find_soft_targets(probability, gradient, found.products.energy, least)
        found = _softened(found, soft, logits - log_total, least)
    elif logits.device.type != "cpu":
        found = _set_aside(found)
    counted = found.counted & finite.unsqueeze(1)
    shown = Shown(found.label, found.weight_of, counted, found.is_mixed, logits.shape[2])
    label, is_own = judged_by(shown)
    judged = probability
    if found.target is not None and is_any(found.is_mixed):
        judged = own_part(probability, found.target, label, found.is_mixed)
    margin, rival = class_margin_(judged, label)
    is_hard = found.target is None
    visits = Visits(
        given_label=label,
        sample_loss=found.loss,
        margin=margin,
        error=found.products.square.sqrt() if is_hard else class_error(judged, label),
        rival=rival,
        counted=counted,
        is_own=is_own,
        targets=TargetKind.ONE,
        classes=logits.shape[2],
    )
    health = PassHealth(finite, torch.ones_like(finite), found.unexplained)
    return Observation(visits.flat(), health, found.head(probability))


@dataclass(frozen=True)
class _Found:
    """What makes the gradients of K micro-batches."""

    label: Tensor
    """`[K, R]`."""
    loss: Tensor
    """`[K, R]`."""
    weight: Tensor
    """Of each row, with mean 1 over those that count, `[K, R]`."""
    strength: Tensor
    """`[K]`."""
    unexplained: Tensor
    """`[K]`."""
    counted: Tensor
    """False for rows that the loss ignores, bool `[K, R]`."""
    products: Products
    """With the residuals of single classes."""
    is_mixed: Tensor
    """Bool `[K]`."""
    target: Tensor | None = None
    """`[K, R, C]`; None where all targets are the labels."""
    floor: Tensor | None = None
    """Target of the classes that are no label, `[K]`."""

    def weight_of(self, label: Tensor) -> Tensor:
        """Weight of other labels in the targets, `[K, R]` each."""
        if self.target is None or self.floor is None:
            return (label == self.label).to(self.loss.dtype)
        return weights_in(self.target, self.floor.unsqueeze(1))(label)

    def head(self, probability: Tensor) -> HeadGradients:
        """The residuals; takes the memory of the probabilities."""
        if self.target is None:
            label = self.label.unsqueeze(2)
            residual = probability.scatter_(2, label, probability.gather(2, label) - 1)
        else:
            residual = probability.sub_(self.target)
        residual = residual.mul_(self.weight.unsqueeze(2)).flatten(0, 1)
        return HeadGradients(residual, self.strength)


def _of_one_class(
    logits: Tensor,
    log_total: Tensor,
    probability: Tensor,
    gradient: Tensor,
    type_of_gradient: torch.finfo,
) -> _Found:
    """By one label for each row, all of one weight or with a weight for each class."""
    target = _labels(logits, gradient)
    label = target.unsqueeze(2)
    own = probability.gather(2, label)
    # Everything follows from three products per sample.
    products = Products(gradient, probability.scatter_(2, label, own - 1))
    probability.scatter_(2, label, own)
    least = max(type_of_gradient.tiny, torch.finfo(logits.dtype).tiny ** 0.5)
    strength, ignored = _strength(products, least)
    square = products.square.masked_fill(ignored, 0)
    counted = (~ignored).to(logits.dtype)
    rounding = (4 * type_of_gradient.eps) ** 2
    scale = _scale(products, square, strength, counted, target, logits.shape[2], rounding)
    return _Found(
        label=target,
        loss=(log_total - logits.gather(2, label)).squeeze(2) * scale.weight,
        weight=scale.weight,
        strength=scale.strength,
        unexplained=scale.unexplained,
        counted=~ignored,
        products=products,
        is_mixed=torch.zeros_like(products.finite),
    )


def _softened(found: _Found, soft: SoftTargets, log_probability: Tensor, least: float) -> _Found:
    """The same with soft targets where those explain the gradients much better."""
    is_soft = (found.unexplained > least) & (soft.unexplained < found.unexplained / 2)
    by_row, everywhere = is_soft.unsqueeze(1), is_soft[:, None, None]
    counted = found.counted.to(found.weight.dtype)
    one_hot = torch.zeros_like(soft.target).scatter_(2, found.label.unsqueeze(2), 1)
    loss = -(soft.target * log_probability).sum(2) * counted
    return replace(
        found,
        label=torch.where(by_row, soft.target.argmax(2), found.label),
        loss=torch.where(by_row, loss, found.loss),
        weight=torch.where(by_row, counted, found.weight),
        strength=torch.where(is_soft, soft.strength, found.strength),
        unexplained=torch.where(is_soft, soft.unexplained, found.unexplained),
        is_mixed=is_soft & soft.is_mixed,
        target=torch.where(everywhere, soft.target, one_hot),
        floor=torch.where(is_soft, soft.floor, 0.0),
    )


def _set_aside(found: _Found) -> _Found:
    """The same without passes of which is not known yet whether their targets are soft."""
    is_told = found.unexplained <= _MUCH
    unexplained = torch.where(is_told, found.unexplained, 0.0)
    counted = found.counted & is_told.unsqueeze(1)
    return replace(found, unexplained=unexplained, counted=counted)


def _strength(products: Products, least: float) -> tuple[Tensor, Tensor]:
    """One factor `s` for all rows, `[K]`, and which rows the loss ignores, `[K, R]`."""
    silent = products.energy == 0
    strength = products.along.sum(1) / products.square.masked_fill(silent, 0).sum(1)
    # A row without any gradient is ignored by the loss, unless it would have rounded to zero.
    return strength, silent & (strength.unsqueeze(1) * products.square.sqrt() > least)


class _Scale(NamedTuple):
    """What makes the gradient of the logits of the residuals."""

    weight: Tensor
    """Of each row, with mean 1 over those that count, `[K, R]`."""
    strength: Tensor
    """`[K]`."""
    unexplained: Tensor
    """`[K]`."""


def _scale(
    products: Products,
    square: Tensor,
    strength: Tensor,
    counted: Tensor,
    target: Tensor,
    classes: int,
    rounding: float,
) -> _Scale:
    """One strength for all rows that count, or a weight for each class where that says more."""
    unexplained = products.unexplained(strength.unsqueeze(1) * counted, strength)
    along, square = (_per_class(values, target, classes) for values in (products.along, square))
    weighted = (along / square).nan_to_num(nan=0.0, posinf=0.0).gather(1, target) * counted
    is_weighted = unexplained > max(_LEAST_WEIGHTED, rounding)
    mean = weighted.sum(1) / counted.sum(1)
    return _Scale(
        weight=torch.where(is_weighted.unsqueeze(1), weighted / mean.unsqueeze(1), counted),
        strength=torch.where(is_weighted, mean, strength),
        unexplained=torch.where(is_weighted, products.unexplained(weighted, strength), unexplained),
    )


def _labels(logits: Tensor, gradient: Tensor) -> Tensor:
    """The label of each row, `[K, R]`."""
    lowest, target = gradient.min(2)
    # A sample that is fit to the last bit has no negative entry left; its label is its prediction.
    return torch.where(lowest < 0, target, logits.argmax(2))


def _per_class(values: Tensor, target: Tensor, classes: int) -> Tensor:
    """Sum of the values `[K, R]` of each class, `[K, C]`."""
    return values.new_zeros(len(values), classes).scatter_add_(1, target, values)
