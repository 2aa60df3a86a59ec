"""Per-sample losses and residuals of micro-batches, from their logits and their gradients.

Two ways, both exact. A criterion that was passed in is evaluated sample by sample. Without one,
cross-entropy is recognised by the gradient that the logits received: `s_i (softmax(z_i) − onehot)`
has one negative entry per row, at the label, and its size `s_i` carries the reduction, the class
weight and any scale of mixed precision or gradient accumulation.

Micro-batches of one shape are observed together, as `[K, B, C]`: with small models the time goes
into starting operations, not into doing them.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_ROUNDINGS = 16.0
"""How many times the rounding of a probability near 1 a residual may be off."""

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits `[B, C]`, target) -> loss of each sample before reduction `[B]`."""


@dataclass(frozen=True)
class Observed:
    """What the loss did to each sample; the fields are those of `records.Batch`."""

    target: Tensor
    residual: Tensor
    sample_loss: Tensor
    margin: Tensor
    rival: Tensor
    counted: Tensor
    finite: Tensor
    in_range: Tensor
    misfit: Tensor


def recognise_cross_entropy(logits: Tensor, gradient: Tensor) -> Observed:
    """Recover labels, losses and residuals of a cross-entropy loss nobody told us of.

    Class weights are recovered up to a common factor and returned with mean 1 over a micro-batch,
    so that the mean of the sample gradients is the gradient of the mean loss.

    Args:
        logits: `[K, B, C]` for K micro-batches, float32 or float64.
        gradient: What reached the logits, `[K, B, C]`, in any floating type.
    """
    rounding = torch.finfo(gradient.dtype)
    gradient = gradient.to(logits.dtype)
    log_total = logits.logsumexp(2, keepdim=True)  # on a CPU much faster than softmax
    probability = (logits - log_total).exp()
    lowest, target = gradient.min(2)
    # A sample that is fit to the last bit has no negative entry left; its label is its prediction.
    target = torch.where(lowest < 0, target, logits.argmax(2))
    # Not one_hot(): it waits for the device, to check the labels.
    onehot = torch.zeros_like(probability).scatter_(2, target.unsqueeze(2), 1.0)
    residual = probability - onehot

    along = (gradient * residual).sum(2)
    square = residual.square().sum(2)
    silent = (gradient == 0).all(2)
    strength = (along.sum(1) / square.masked_fill(silent, 0).sum(1)).unsqueeze(1)
    # A row without any gradient is ignored by the loss, unless it would have rounded to zero.
    ignored = silent & (strength * residual.abs().amax(2) > rounding.tiny)
    square = square.masked_fill(ignored, 0)
    counted = (~ignored).to(logits.dtype)

    size, eps = strength.squeeze(1), torch.finfo(logits.dtype).eps
    misfit = _misfit(gradient, (strength * counted).unsqueeze(2) * residual, size, eps)
    by_class = _per_class(along, onehot) / _per_class(square, onehot)
    weighted = by_class.nan_to_num(nan=0.0, posinf=0.0).gather(1, target) * counted
    misfit_weighted = _misfit(gradient, weighted.unsqueeze(2) * residual, size, eps)
    is_weighted = misfit > max(1e-8, (4 * rounding.eps) ** 2)
    relative = weighted * (counted.sum(1) / weighted.sum(1)).unsqueeze(1)
    weight = torch.where(is_weighted.unsqueeze(1), relative, counted)
    loss = (log_total - logits.gather(2, target.unsqueeze(2))).squeeze(2)
    return Observed(
        target=target.flatten(),
        residual=(residual * weight.unsqueeze(2)).flatten(0, 1),
        sample_loss=(loss * weight).flatten(),
        misfit=torch.where(is_weighted, misfit_weighted, misfit),
        in_range=torch.ones_like(is_weighted),
        **_standing(probability, target, ~ignored, logits, gradient),
    )


def evaluate_criterion(
    per_sample: PerSampleLoss,
    ignore_index: int | None,
    logits: Tensor,
    target: Tensor,
    gradient: Tensor,
) -> Observed:
    """Losses and residuals under a criterion that was passed in.

    Args:
        per_sample: From `per_sample_loss`.
        ignore_index: The label that the criterion leaves out; None for none.
        logits: `[K, B, C]` for K micro-batches, float32 or float64.
        target: Class labels `[K, B]` or class probabilities `[K, B, C]`.
        gradient: What reached the logits, `[K, B, C]`.
    """
    with torch.enable_grad():
        leaf = logits.flatten(0, 1).detach().requires_grad_()
        loss = per_sample(leaf, target.flatten(0, 1))
        (residual,) = torch.autograd.grad(loss.sum(), leaf)
    gradient, explained = gradient.to(logits.dtype), residual.view_as(logits)
    strength = (gradient * explained).sum((1, 2)) / explained.square().sum((1, 2))
    eps = torch.finfo(logits.dtype).eps
    hard = target if target.ndim == 2 and not target.is_floating_point() else target.argmax(2)
    counted = torch.ones_like(hard, dtype=torch.bool)
    if ignore_index is not None:
        counted = hard != ignore_index
    inside = (hard >= 0) & (hard < logits.shape[2])
    in_range = (inside | ~counted).all(1)
    hard = torch.where(inside, hard, 0)
    return Observed(
        target=hard.flatten(),
        residual=residual,
        sample_loss=loss.detach(),
        misfit=_misfit(gradient, strength[:, None, None] * explained, strength, eps),
        in_range=in_range,
        **_standing(logits.softmax(2), hard, counted & inside, logits, gradient),
    )


def per_sample_loss(criterion: nn.Module | Callable[..., Tensor]) -> PerSampleLoss:
    """The criterion before its reduction.

    A criterion with a `reduction` is used with `reduction="none"`; any other is evaluated on each
    sample alone.
    """
    # The copy shares everything but the reduction; its `forward` is called, so hooks don't fire.
    function: Callable[..., Tensor] = criterion
    unreduced: Callable[..., Tensor] | None = None
    if isinstance(criterion, nn.Module):
        function = criterion.forward
        if hasattr(criterion, "reduction"):
            twin: Any = copy.copy(criterion)
            twin.reduction = "none"
            unreduced = twin.forward
    elif "reduction" in inspect.signature(criterion).parameters:
        unreduced = functools.partial(criterion, reduction="none")

    def alone(logits: Tensor, target: Tensor) -> Tensor:
        return function(logits.unsqueeze(0), target.unsqueeze(0))

    def losses(logits: Tensor, target: Tensor) -> Tensor:
        loss = unreduced(logits, target) if unreduced is not None else None
        if loss is None or loss.shape != logits.shape[:1]:  # its reduction is not what it seems
            loss = torch.func.vmap(alone)(logits, target)
        return loss

    return losses


def ignored_label(criterion: nn.Module | Callable[..., Tensor] | None) -> int | None:
    """The label that a criterion leaves out; None for none."""
    if criterion is None or isinstance(criterion, nn.Module):
        return getattr(criterion, "ignore_index", None)
    parameter = inspect.signature(criterion).parameters.get("ignore_index")
    return parameter.default if parameter is not None else None


def _per_class(values: Tensor, onehot: Tensor) -> Tensor:
    """Sum of the values `[K, B]` of each class, `[K, C]`."""
    return torch.bmm(values.unsqueeze(1), onehot).squeeze(1)


def _misfit(gradient: Tensor, explained: Tensor, strength: Tensor, eps: float) -> Tensor:
    """Share of the gradient's energy that is not explained, `[K]`, what rounding did left out.

    Where every sample is fit, the gradient is the rounding of probabilities near 1.

    Args:
        gradient: `[K, B, C]`.
        explained: `[K, B, C]`.
        strength: Size of the gradient of a sample over its residual, `[K]`.
        eps: Rounding of the numbers, relative to 1.
    """
    energy = gradient.square().sum((1, 2))
    unexplained = (gradient - explained).square().sum((1, 2))
    rounding = gradient[0].numel() * (_ROUNDINGS * eps * strength).square()
    return ((unexplained - rounding).clamp(min=0) / energy).nan_to_num(nan=0.0)


def _standing(
    probability: Tensor, target: Tensor, counted: Tensor, logits: Tensor, gradient: Tensor
) -> dict[str, Any]:
    """Where each label stands among the classes, and whether the numbers can be used."""
    label = target.unsqueeze(2)
    rival_probability, rival = probability.scatter(2, label, -1.0).max(2)
    own = probability.gather(2, label).squeeze(2)
    finite = torch.isfinite(logits.sum((1, 2)) + gradient.sum((1, 2)))
    return {
        "margin": (own - rival_probability).flatten(),
        "rival": rival.flatten(),
        "counted": (counted & finite.unsqueeze(1)).flatten(),
        "finite": finite,
    }
