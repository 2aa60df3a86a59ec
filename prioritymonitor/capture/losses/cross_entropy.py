"""Cross-entropy that nobody told us of, recognised by the gradient that the logits received.

`s_i (softmax(z_i) − onehot)` has one negative entry per row, at the label, and its size `s_i`
carries the reduction, the class weight and any scale of mixed precision or gradient accumulation.

Micro-batches of one shape are observed together, as `[K, R, C]`: with small models the time goes
into starting operations, not into doing them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...records import HeadGradients, Observation, PassHealth, TargetKind, Visits
from .products import Products, class_margin

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
    probability = (logits - log_total).exp()
    target, onehot = _labels(logits, gradient)
    residual = probability - onehot

    # Everything else follows from three products per sample.
    products = Products(gradient, residual)
    error, silent = products.square.sqrt(), products.energy == 0
    strength = products.along.sum(1) / products.square.masked_fill(silent, 0).sum(1)
    # A row without any gradient is ignored by the loss, unless it would have rounded to zero.
    least = max(given_type.tiny, own_type.tiny**0.5)
    ignored = silent & (strength.unsqueeze(1) * error > least)
    products.square.masked_fill_(ignored, 0)
    counted = (~ignored).to(logits.dtype)

    unexplained = products.unexplained(strength.unsqueeze(1) * counted, strength)
    by_class = _per_class(products.along, onehot) / _per_class(products.square, onehot)
    weighted = by_class.nan_to_num(nan=0.0, posinf=0.0).gather(1, target) * counted
    is_weighted = unexplained > max(_LEAST_WEIGHTED, (4 * given_type.eps) ** 2)
    mean_weight = weighted.sum(1) / counted.sum(1)
    weight = torch.where(is_weighted.unsqueeze(1), weighted / mean_weight.unsqueeze(1), counted)
    loss = (log_total - logits.gather(2, target.unsqueeze(2))).squeeze(2)
    finite = products.finite & log_total.sum((1, 2)).isfinite()
    margin, rival = class_margin(probability, target)
    return Observation(
        Visits(
            given_label=target.flatten(),
            sample_loss=(loss * weight).flatten(),
            margin=margin.flatten(),
            error=error.flatten(),
            rival=rival.flatten(),
            counted=(~ignored & finite.unsqueeze(1)).flatten(),
            targets=TargetKind.ONE,
        ),
        PassHealth(
            finite=finite,
            in_range=torch.ones_like(is_weighted),
            unexplained=torch.where(
                is_weighted, products.unexplained(weighted, strength), unexplained
            ),
        ),
        HeadGradients(
            residual=(residual * weight.unsqueeze(2)).flatten(0, 1),
            strength=torch.where(is_weighted, mean_weight, strength),
        ),
    )


def _labels(logits: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The label of each row, `[K, R]`, and its one-hot row, `[K, R, C]`."""
    lowest, target = gradient.min(2)
    # A sample that is fit to the last bit has no negative entry left; its label is its prediction.
    # On a CPU it costs nothing to see whether there is such a sample; elsewhere it would be a wait.
    if logits.device.type != "cpu" or not bool((lowest < 0).all()):
        target = torch.where(lowest < 0, target, logits.argmax(2))
    # Not one_hot(): it waits for the device, to check the labels.
    return target, torch.zeros_like(logits).scatter_(2, target.unsqueeze(2), 1.0)


def _per_class(values: Tensor, onehot: Tensor) -> Tensor:
    """Sum of the values `[K, R]` of each class, `[K, C]`."""
    return torch.bmm(values.unsqueeze(1), onehot).squeeze(1)
