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

_LEAST_WEIGHTED = 1e-5
"""Unexplained share from which on samples have weights of their own, which differ by 0.3 %."""

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
    given_type, own_type = torch.finfo(gradient.dtype), torch.finfo(logits.dtype)
    gradient = gradient.to(logits.dtype)
    log_total = logits.logsumexp(2, keepdim=True)  # on a CPU much faster than softmax
    probability = (logits - log_total).exp()
    lowest, target = gradient.min(2)
    # A sample that is fit to the last bit has no negative entry left; its label is its prediction.
    target = torch.where(lowest < 0, target, logits.argmax(2))
    label = target.unsqueeze(2)
    # Not one_hot(): it waits for the device, to check the labels.
    onehot = torch.zeros_like(probability).scatter_(2, label, 1.0)
    residual = probability - onehot

    # Everything else follows from three products per sample.
    products = _Products(gradient, residual)
    silent = products.energy == 0
    strength = products.along.sum(1) / products.square.masked_fill(silent, 0).sum(1)
    # A row without any gradient is ignored by the loss, unless it would have rounded to zero.
    least = max(given_type.tiny, own_type.tiny**0.5)
    ignored = silent & (strength.unsqueeze(1) * products.square.sqrt() > least)
    products.square.masked_fill_(ignored, 0)
    counted = (~ignored).to(logits.dtype)

    misfit = products.misfit(strength.unsqueeze(1) * counted, strength)
    by_class = _per_class(products.along, onehot) / _per_class(products.square, onehot)
    weighted = by_class.nan_to_num(nan=0.0, posinf=0.0).gather(1, target) * counted
    is_weighted = misfit > max(_LEAST_WEIGHTED, (4 * given_type.eps) ** 2)
    relative = weighted * (counted.sum(1) / weighted.sum(1)).unsqueeze(1)
    weight = torch.where(is_weighted.unsqueeze(1), relative, counted)
    loss = (log_total - logits.gather(2, label)).squeeze(2)
    finite = products.finite & log_total.sum((1, 2)).isfinite()
    return Observed(
        target=target.flatten(),
        residual=(residual * weight.unsqueeze(2)).flatten(0, 1),
        sample_loss=(loss * weight).flatten(),
        misfit=torch.where(is_weighted, products.misfit(weighted, strength), misfit),
        in_range=torch.ones_like(is_weighted),
        finite=finite,
        **_standing(probability, target, ~ignored & finite.unsqueeze(1)),
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
    products = _Products(gradient.to(logits.dtype), residual.view_as(logits))
    strength = products.along.sum(1) / products.square.sum(1)
    hard = target if target.ndim == 2 and not target.is_floating_point() else target.argmax(2)
    counted = torch.ones_like(hard, dtype=torch.bool)
    if ignore_index is not None:
        counted = hard != ignore_index
    inside = (hard >= 0) & (hard < logits.shape[2])
    in_range = (inside | ~counted).all(1)
    hard = torch.where(inside, hard, 0)
    finite = products.finite & loss.detach().view_as(hard).sum(1).isfinite()
    return Observed(
        target=hard.flatten(),
        residual=residual,
        sample_loss=loss.detach(),
        misfit=products.misfit(strength.unsqueeze(1), strength),
        in_range=in_range,
        finite=finite,
        **_standing(logits.softmax(2), hard, counted & inside & finite.unsqueeze(1)),
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


class _Products:
    """Products of the gradient and the residual of each sample, `[K, B]` each.

    With them, how well a multiple of the residual explains the gradient costs next to nothing.
    """

    def __init__(self, gradient: Tensor, residual: Tensor) -> None:
        self.energy = gradient.square().sum(2)
        self.along = (gradient * residual).sum(2)
        self.square = residual.square().sum(2)
        self.finite = self.energy.sum(1).isfinite()
        self._entries = gradient[0].numel()
        self._eps = torch.finfo(gradient.dtype).eps

    def misfit(self, factor: Tensor, strength: Tensor) -> Tensor:
        """Share of the gradient's energy that `factor` times the residual does not explain, `[K]`.

        Where every sample is fit, the gradient is the rounding of probabilities near 1; as much as
        rounding could do is no misfit.

        Args:
            factor: `[K, B]`.
            strength: Size of the gradient over the residual, `[K]`.
        """
        energy = self.energy.sum(1)
        unexplained = self.energy - 2 * factor * self.along + factor.square() * self.square
        rounding = self._entries * (_ROUNDINGS * self._eps * strength).square()
        return ((unexplained.sum(1) - rounding).clamp(min=0) / energy).nan_to_num(nan=0.0)


def _standing(probability: Tensor, target: Tensor, counted: Tensor) -> dict[str, Any]:
    """Where each label stands among the classes, and whether the sample counts."""
    label = target.unsqueeze(2)
    rival_probability, rival = probability.scatter(2, label, -1.0).max(2)
    own = probability.gather(2, label).squeeze(2)
    return {
        "margin": (own - rival_probability).flatten(),
        "rival": rival.flatten(),
        "counted": counted.flatten(),
    }
