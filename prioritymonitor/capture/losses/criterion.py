"""A criterion that was passed in, evaluated sample by sample."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...records import HeadGradients, Observation, PassHealth, TargetKind
from . import targets
from .form import Form
from .products import Products
from .several_calls import weighted_sum
from .shown import JudgedBy, judged_as_shown

Loss = nn.Module | Callable[..., Tensor]

_CLASSES_FIRST = (nn.CrossEntropyLoss, nn.NLLLoss, F.cross_entropy, F.nll_loss)
_ON_PROBABILITIES = (nn.BCELoss, F.binary_cross_entropy)
_ON_BITS = (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits)
_ON_NUMBERS = (
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss),
    *(F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss),
)


class Criterion:
    """Gives loss and residual of each row, and where its label stands.

    Args:
        criterion: As it was passed in.
    """

    def __init__(self, criterion: Loss) -> None:
        self.ignored: int | None = _option(criterion, "ignore_index")
        """The label that it leaves out; None for none."""
        self.takes_classes_first = _is_any(criterion, _CLASSES_FIRST)
        """True if the classes are the dimension after the samples, whatever the shape."""
        self._criterion = criterion
        self._function: Callable[..., Tensor] = criterion
        self._unreduced: Callable[..., Tensor] | None = None
        self._sums = _option(criterion, "reduction") == "sum"
        self._judge: targets.Judge | None = None
        # A copy shares everything but the reduction; its `forward` is called: no hook fires.
        if isinstance(criterion, nn.Module):
            self._function = criterion.forward
            if hasattr(criterion, "reduction"):
                twin: Any = copy.copy(criterion)
                twin.reduction = "none"
                self._unreduced = twin.forward
        elif "reduction" in inspect.signature(criterion).parameters:
            self._unreduced = partial(criterion, reduction="none")

    def __call__(
        self,
        logits: Tensor,
        given: Sequence[Tensor],
        gradient: Tensor,
        form: Form,
        is_log: bool,
        judged_by: JudgedBy = judged_as_shown,
    ) -> Observation:
        """Losses and residuals of K micro-batches.

        Args:
            logits: `[K, R, C]`, float32 or float64; a row is a sample, or a position of one.
            given: The targets of each call, mostly a single one: class labels `[K, R]`, or one
                value per logit `[K, R, C]`.
            gradient: What reached the logits, `[K, R, C]`.
            form: How the criterion takes a row.
            is_log: The rows are log-probabilities of logits; gradient and residual are those at
                the logits.
            judged_by: Tells the labels by which rows are judged.
        """
        gradient = gradient.to(logits.dtype)
        calls = [self._evaluate(logits, target, form, is_log) for target in given]
        sum_ = weighted_sum(calls, gradient) if len(calls) > 1 else None
        loss, residual = calls[0] if sum_ is None else (sum_.loss, sum_.residual)
        products = Products(gradient, residual)
        strength = products.along.sum(1) / products.square.sum(1)
        target = given[0] if sum_ is None else sum_.main(given)
        if self._judge is None:
            self._judge = self.find_judge(logits, target)
        visits, in_range = self._judge(logits, target, self.ignored, loss)
        finite = products.finite & loss.sum(1).isfinite()
        visits = replace(visits, counted=visits.counted & finite.unsqueeze(1))
        if visits.targets is TargetKind.ONE:
            is_of_classes = self._judge is targets.classes
            soft = target if is_of_classes and target.ndim > 2 else None
            parts = (sum_, given) if is_of_classes and soft is None and sum_ is not None else None
            visits = targets.judged(visits, logits, soft, parts, judged_by)
        return Observation(
            visits.flat(),
            PassHealth(finite, in_range, products.unexplained(strength.unsqueeze(1), strength)),
            HeadGradients(residual.flatten(0, 1), strength),
        )

    def _evaluate(
        self, logits: Tensor, target: Tensor, form: Form, is_log: bool
    ) -> tuple[Tensor, Tensor]:
        """Loss `[K, R]` and residual `[K, R, C]` of each row."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = self._losses(leaf, target, form)
            (residual,) = torch.autograd.grad(loss.sum(), leaf)
        if is_log:
            residual = through_log_softmax(residual, logits)
        return loss.detach().view(logits.shape[:2]), residual

    def find_judge(self, logits: Tensor, target: Tensor) -> targets.Judge:
        """What tells from logits `[K, R, C]` and targets where a label stands."""
        if _is_any(self._criterion, _ON_NUMBERS):
            one_hot = targets.is_one_hot(target, logits.shape[2])
            return targets.scores if one_hot else targets.numbers
        if _is_any(self._criterion, _ON_PROBABILITIES):
            return targets.probable_bits
        if _is_any(self._criterion, _ON_BITS) or logits.shape[2] == 1:
            return targets.bits
        return targets.classes

    def _losses(self, logits: Tensor, target: Tensor, form: Form) -> Tensor:
        """Loss of each row, `[K · R]`."""
        weight = getattr(self._criterion, "weight", None)
        if len(logits) > 1 and isinstance(weight, Tensor) and weight.ndim == form.ndim:
            # A weight for each row of a batch: the rows of several batches are too many for it.
            pairs = zip(logits.unsqueeze(1), target.unsqueeze(1), strict=True)
            return torch.cat([self._losses(*pair, form) for pair in pairs])
        rows, given = form.rows(logits), form.targets(target)
        loss = self._unreduced(rows, given) if self._unreduced is not None else None
        if loss is not None and loss.numel() == len(rows):
            return loss.flatten()
        if loss is not None and loss.shape == rows.shape:
            return loss.flatten(1).sum(1) if self._sums else loss.flatten(1).mean(1)
        return torch.func.vmap(self._alone)(rows, given).flatten()

    def _alone(self, row: Tensor, target: Tensor) -> Tensor:
        return self._function(row.unsqueeze(0), target.unsqueeze(0))


def through_log_softmax(gradient: Tensor, log_probability: Tensor) -> Tensor:
    """Gradient at logits, from that at their log-probabilities, `[..., C]` each."""
    gradient = gradient.to(log_probability.dtype)
    return gradient - log_probability.exp() * gradient.sum(-1, keepdim=True)


def _option(criterion: Loss, name: str) -> Any:
    """An option of a criterion; None if it has no such option."""
    if isinstance(criterion, nn.Module):
        return getattr(criterion, name, None)
    parameter = inspect.signature(criterion).parameters.get(name)
    return parameter.default if parameter is not None else None


def _is_any(criterion: Loss, kinds: tuple[Any, ...]) -> bool:
    """Whether it is one of some functions, or of some modules."""
    function = criterion.func if isinstance(criterion, partial) else criterion
    return function in kinds or type(function) in kinds
