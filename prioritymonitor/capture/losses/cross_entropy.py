"""Cross-entropy that nobody told us of, recognised by the gradient that the logits received.

`s_i (softmax(z_i) − onehot)` has one negative entry per row, at the label, and its size `s_i`
carries the reduction, the class weight and any scale of mixed precision or gradient accumulation.

Micro-batches of one shape are observed together, as `[K, R, C]`: with small models the time goes
into starting operations, not into doing them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...records import HeadGradients, Observation, PassHealth, TargetKind, Visits
from .products import Products, class_margin_

_LEAST_WEIGHTED = 1e-5
"""Unexplained share from which on samples have weights of their own, which differ by 0.3 %."""


def recognise_cross_entropy(logits: Tensor, gradient: Tensor) -> Observation:
    """Recover labels, losses and residuals of a cross-entropy loss nobody told us of.

    Class weights are recovered up to a common factor and returned with mean 1 over a micro-batch,
    so that the mean of the sample gradients is the gradient of the mean loss.

    Args:
        logits: `[K, R, C]` for K micro-batches, float32 or float64; a row is a sample, or a
            position of one.
        gradient: What reached the logits, `[K, R, C]`, in any floating type.
    """
    given_type, own_type = torch.finfo(gradient.dtype), torch.finfo(logits.dtype)
    gradient = gradient.to(logits.dtype)
    log_total = logits.logsumexp(2, keepdim=True)  # on a CPU much faster than softmax
    target = _labels(logits, gradient)
    # One table for probabilities, margins and residuals: with many classes, memory is the cost.
    table = (logits - log_total).exp_()
    margin, rival = class_margin_(table, target)
    label = target.unsqueeze(2)
    residual = table.scatter_(2, label, table.gather(2, label) - 1)

    # Everything else follows from three products per sample.
    products = Products(gradient, residual)
    error = products.square.sqrt()
    least = max(given_type.tiny, own_type.tiny**0.5)
    strength, ignored = _strength(products, error, least)
    products.square.masked_fill_(ignored, 0)
    counted = (~ignored).to(logits.dtype)
    rounding = (4 * given_type.eps) ** 2
    scale = _scale(products, strength, counted, target, logits.shape[2], rounding)
    weight = scale.weight
    loss = (log_total - logits.gather(2, label)).squeeze(2)
    finite = products.finite & log_total.sum((1, 2)).isfinite()
    return Observation(
        Visits(
            given_label=target.flatten(),
            sample_loss=(loss * weight).flatten(),
            margin=margin.flatten(),
            error=error.flatten(),
            rival=rival.flatten(),
            counted=(~ignored & finite.unsqueeze(1)).flatten(),
            targets=TargetKind.ONE,
            classes=logits.shape[2],
        ),
        PassHealth(finite, in_range=torch.ones_like(finite), unexplained=scale.unexplained),
        HeadGradients(
            residual=residual.mul_(weight.unsqueeze(2)).flatten(0, 1),
            strength=scale.strength,
        ),
    )


def _strength(products: Products, error: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """One factor `s` for all rows, `[K]`, and which rows the loss ignores, `[K, R]`."""
    silent = products.energy == 0
    strength = products.along.sum(1) / products.square.masked_fill(silent, 0).sum(1)
    # A row without any gradient is ignored by the loss, unless it would have rounded to zero.
    return strength, silent & (strength.unsqueeze(1) * error > least)


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
    strength: Tensor,
    counted: Tensor,
    target: Tensor,
    classes: int,
    rounding: float,
) -> _Scale:
    """One strength for all rows that count, or a weight for each class where that says more."""
    unexplained = products.unexplained(strength.unsqueeze(1) * counted, strength)
    sums = (products.along, products.square)
    along, square = (_per_class(values, target, classes) for values in sums)
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
