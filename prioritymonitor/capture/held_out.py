"""Held-out samples: the share of their given labels that a model predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import described, is_from_signal, may_pass
from ..records import TargetKind
from . import private
from .fixed_randomness import fixed_randomness
from .head import logits_in
from .loader.batches import call_of, mapped
from .loader.first_samples import FirstSamples, LabelledBatch, UnusableError
from .losses import targets
from .losses.criterion import Criterion, Loss
from .parameters import is_distributed
from .rerun import in_eval_mode, unwrapped, without_trace


class HeldOut:
    """Runs a model over held-out samples in evaluation mode, with weights that are not its own.

    Nothing of the user's changes: all weights and buffers that a forward pass could write to are
    copies, random numbers begin at a seed, hooks and autocast are off, and modes and attributes of
    the modules are put back.

    Args:
        model: As the loop calls it.
        samples: The samples.
        criterion: The loss, if it was passed in; it says what the targets are.
        logits_at: Tells which of the model's outputs the logits are.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: FirstSamples,
        criterion: Loss | None,
        logits_at: Callable[[], int],
    ) -> None:
        self._model = model
        self._samples = samples
        self._criterion = Criterion(criterion) if criterion is not None else None
        self._logits_at = logits_at

    def tried(self, weights: dict[str, Tensor]) -> tuple[float, int]:
        """How well the given labels are predicted.

        Args:
            weights: Parameters and buffers by their name in the user's own module; it has its own
                for the rest.

        Returns:
            The share of them that is predicted, in [0, 1], and their number.

        Raises:
            UnusableError: The samples can't be judged, or the model can't be called with them.
        """
        module = unwrapped(self._model)
        device = _check_whole(module).device
        values = self._values(module, weights)
        tally = torch.zeros(2, dtype=torch.int64, device=device)
        with (
            fixed_randomness(device, self._samples.loader),
            without_trace(module, device),
            in_eval_mode(module),
        ):
            for batch in self._samples:
                tally += self._right_of(self._logits(module, values, batch), batch)
        right, count = tally.tolist()
        if count == 0:
            raise UnusableError("none of its labels is one of the model's classes")
        return right / count, count

    def _values(self, module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of all that a forward pass may write to, by name in the module.

        A frozen parameter is not copied: it may be most of the model, or of a kind of its own.
        """
        given = {id(own): weights[name] for name, own in _named(module) if name in weights}
        return {
            name: given.get(id(own), own).detach().to(own.device, own.dtype, copy=True)
            for name, own in _named(module)
            if id(own) in given or own.requires_grad or not isinstance(own, nn.Parameter)
        }

    def _logits(self, module: nn.Module, values: dict[str, Tensor], batch: LabelledBatch) -> Tensor:
        """Logits `[B, C]`."""
        first = next(module.parameters())

        def moved(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return leaf.to(first.device, first.dtype)  # as the loop must have given them
            return leaf.to(first.device) if hasattr(leaf, "to") else leaf

        try:
            args, kwargs = call_of(module, mapped(batch.content, moved))
            found = logits_in(functional_call(module, values, args, kwargs))
        except Exception as error:
            if may_pass(error) or is_from_signal(error):
                raise
            raise UnusableError(
                f"the model can't be called with its inputs ({described(error)}); pass a loader "
                "whose batches are (inputs, labels), or dicts of the model's own arguments and "
                '"labels", which the model takes as they are'
            ) from error
        if not found:
            raise UnusableError("the model's output holds no logits; pass a model that gives them")
        logits = found[min(self._logits_at(), len(found) - 1)]
        return logits.unsqueeze(1) if logits.ndim == 1 else logits

    def _right_of(self, logits: Tensor, batch: LabelledBatch) -> Tensor:
        """How many labels are predicted, of how many, `[2]`."""
        outputs, target = _one_class_each(logits, batch.labels.to(logits.device))
        judge = self._judge(outputs, target)
        ignored = self._criterion.ignored if self._criterion is not None else None
        visits, in_range = judge(outputs, target, ignored, torch.zeros_like(outputs[..., 0]))
        if visits.targets is not TargetKind.ONE:
            raise UnusableError(_not_one(visits.targets.value))
        if judge in (targets.bits, targets.probable_bits) and not bool(in_range):
            raise UnusableError(_not_one("neither 0 nor 1"))
        counted = visits.counted[0, : batch.wanted]
        right = (visits.margin[0, : batch.wanted] > 0) & counted
        return torch.stack((right.sum(), counted.sum()))

    def _judge(self, outputs: Tensor, target: Tensor) -> targets.Judge:
        has_classes = target.ndim == 2 and not target.is_floating_point()
        if has_classes and outputs.shape[2] > 1:
            return targets.classes  # also where the loop makes something else of them
        if self._criterion is not None:
            judge = self._criterion.find_judge(outputs, target)
        elif outputs.shape[2] > 1:
            judge = targets.classes
        else:
            raise UnusableError("got one logit per sample; pass the loss as criterion=")
        if judge is targets.classes:
            if target.ndim == 2 and target.is_floating_point():
                raise UnusableError(_not_one(TargetKind.NUMBERS.value))
            if target.ndim == 3 and bool(((target.sum(2) - 1).abs() > 0.01).any()):
                raise UnusableError(_not_one(TargetKind.SEVERAL.value))
        return judge


def _one_class_each(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[1, B, C]` in full precision, and labels `[1, B]`, or `[1, B, C]` by logit."""
    if logits.ndim > 2 and logits.shape[2:].numel() == 1:
        logits = logits.flatten(1)
    by_sample, by_logit = torch.Size([len(labels)]), logits.shape
    fitting = [shape for shape in (by_logit, by_sample) if shape.numel() == labels.numel()]
    if logits.ndim != 2 or len(logits) != len(labels) or not fitting:
        raise UnusableError(
            f"got labels {list(labels.shape)} for logits {list(logits.shape)}; the accuracy needs "
            "one class per sample"
        )
    outputs = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = labels.reshape(fitting[0])
    target = target if target.is_floating_point() else target.long()
    return outputs.unsqueeze(0), target.unsqueeze(0)


def _not_one(found: str) -> str:
    return f"its targets are {found}; the accuracy needs one class per sample"


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, by their first name."""
    return [*module.named_parameters(), *module.named_buffers()]


def _check_whole(module: nn.Module) -> nn.Parameter:
    """The first parameter; raises where a forward pass would wait for other ranks."""
    first = next(module.parameters())
    if any(map(is_distributed, module.parameters())) or private.gathers_parameters(module):
        raise UnusableError(
            "the parameters are spread over ranks, and one rank alone can't run the model; leave "
            "validation= out"
        )
    return first
