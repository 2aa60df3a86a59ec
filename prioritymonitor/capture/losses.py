"""Per-sample losses and residuals of a micro-batch, from its logits and their gradient.

Two ways, both exact. A criterion that was passed in is evaluated sample by sample. Without one,
cross-entropy is recognised by the gradient that the logits received: `s_i (softmax(z_i) − onehot)`
has one negative entry per row, at the label, and its size `s_i` carries the reduction, the class
weight and any scale of mixed precision or gradient accumulation.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits `[B, C]`, target) -> loss of each sample before reduction `[B]`."""


@dataclass(frozen=True)
class Observed:
    """What the loss did to each sample; the fields are those of `records.Batch`."""

    target: Tensor
    residual: Tensor
    sample_loss: Tensor
    margin: Tensor
    predicted: Tensor
    rival: Tensor
    counted: Tensor
    finite: Tensor
    in_range: Tensor
    misfit: Tensor


def recognise_cross_entropy(logits: Tensor, gradient: Tensor) -> Observed:
    """Recover labels, losses and residuals of a cross-entropy loss nobody told us of.

    Class weights are recovered up to a common factor and returned with mean 1 over the batch, so
    that the mean of the sample gradients is the gradient of the mean loss.

    Args:
        logits: `[B, C]`, float32 or float64.
        gradient: What reached the logits, `[B, C]`, in any floating type.
    """
    rounding = torch.finfo(gradient.dtype)
    gradient = gradient.to(logits.dtype)
    probability = logits.softmax(1)
    lowest, target = gradient.min(1)
    # A sample that is fit to the last bit has no negative entry left; its label is its prediction.
    target = torch.where(lowest < 0, target, logits.argmax(1))
    # Not one_hot(): it waits for the device, to check the labels.
    onehot = torch.zeros_like(probability).scatter_(1, target.unsqueeze(1), 1.0)
    residual = probability - onehot

    along = (gradient * residual).sum(1)
    square = residual.square().sum(1)
    silent = (gradient == 0).all(1)
    strength = along.sum() / square.masked_fill(silent, 0).sum()
    # A row without any gradient is ignored by the loss, unless it would have rounded to zero.
    ignored = silent & (strength * residual.abs().amax(1) > rounding.tiny)
    counted = ~ignored

    energy = gradient.square().sum()
    misfit = _misfit(gradient, strength * residual * counted.unsqueeze(1), energy)
    by_class = (onehot.T @ along) / (onehot.T @ square.masked_fill(ignored, 0))
    weighted = by_class.nan_to_num(nan=0.0, posinf=0.0)[target]
    misfit_weighted = _misfit(gradient, weighted.unsqueeze(1) * residual, energy)
    is_weighted = misfit > max(1e-8, (4 * rounding.eps) ** 2)
    relative = weighted / (weighted * counted).sum() * counted.sum()
    weight = torch.where(is_weighted, relative, torch.ones_like(relative)) * counted
    loss = -(logits.log_softmax(1) * onehot).sum(1)
    return Observed(
        target=target,
        residual=residual * weight.unsqueeze(1),
        sample_loss=loss * weight,
        misfit=torch.where(is_weighted, misfit_weighted, misfit),
        in_range=torch.ones_like(misfit, dtype=torch.bool),
        **_standing(probability, target, counted, logits, gradient),
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
        logits: `[B, C]`, float32 or float64.
        target: Class labels `[B]` or class probabilities `[B, C]`.
        gradient: What reached the logits, `[B, C]`.
    """
    gradient = gradient.to(logits.dtype)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = per_sample(leaf, target)
        (residual,) = torch.autograd.grad(loss.sum(), leaf)
    hard = target if target.ndim == 1 and not target.is_floating_point() else target.argmax(1)
    counted = torch.ones_like(hard, dtype=torch.bool)
    if ignore_index is not None:
        counted = hard != ignore_index
    inside = (hard >= 0) & (hard < logits.shape[1])
    in_range = (inside | ~counted).all()
    counted &= inside
    hard = torch.where(inside, hard, 0)
    strength = (gradient * residual).sum() / residual.square().sum()
    return Observed(
        target=hard,
        residual=residual,
        sample_loss=loss.detach(),
        misfit=_misfit(gradient, strength * residual, gradient.square().sum()),
        in_range=in_range,
        **_standing(logits.softmax(1), hard, counted, logits, gradient),
    )


def per_sample_loss(criterion: nn.Module | Callable[..., Tensor]) -> PerSampleLoss:
    """The criterion before its reduction.

    A criterion with a `reduction` is used with `reduction="none"`; any other is evaluated on each
    sample alone.
    """
    # The copy shares everything but the reduction; its `forward` is called, so hooks don't fire.
    if isinstance(criterion, nn.Module):
        function: Callable[..., Tensor] = criterion.forward
        if hasattr(criterion, "reduction"):
            unreduced: Any = copy.copy(criterion)
            unreduced.reduction = "none"
            return unreduced.forward  # type: ignore[no-any-return]
    else:
        function = criterion
        if "reduction" in inspect.signature(criterion).parameters:
            return lambda logits, target: criterion(logits, target, reduction="none")

    def alone(logits: Tensor, target: Tensor) -> Tensor:
        return function(logits.unsqueeze(0), target.unsqueeze(0))

    return torch.func.vmap(alone)


def _misfit(gradient: Tensor, explained: Tensor, energy: Tensor) -> Tensor:
    return ((gradient - explained).square().sum() / energy).nan_to_num(nan=0.0)


def _standing(
    probability: Tensor, target: Tensor, counted: Tensor, logits: Tensor, gradient: Tensor
) -> dict[str, Any]:
    """Where each label stands among the classes, and whether the numbers can be used."""
    top, classes = probability.topk(2, dim=1)
    leads = classes[:, 0] == target
    rival_probability = torch.where(leads, top[:, 1], top[:, 0])
    own = probability.gather(1, target.unsqueeze(1)).squeeze(1)
    finite = torch.isfinite(logits.sum() + gradient.sum())
    return {
        "margin": own - rival_probability,
        "predicted": classes[:, 0],
        "rival": torch.where(leads, classes[:, 1], classes[:, 0]),
        "counted": counted & finite,
        "finite": finite,
    }
