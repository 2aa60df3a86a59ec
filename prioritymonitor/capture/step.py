"""One training step seen as one record, by hooks on model, criterion and optimizer alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..records import Batch, Step, Update
from .head import HeadWatch
from .hooks import Hook
from .loader import HandedOut
from .losses import Observed, evaluate_criterion, per_sample_loss, recognise_cross_entropy

_MOST_BATCHES = 512
"""Micro-batches kept for one optimizer step; a loop that never steps must not fill the memory."""


@dataclass
class _Forward:
    """A forward pass that may still get a backward pass."""

    logits: Tensor
    features: Tensor | None
    handed_out: HandedOut | None
    inputs: Any


class StepCapture:
    """Hooks on the user's objects until `close()`.

    A batch is taken as trained on only when the gradient of its logits arrives. That alone leaves
    out validation, passes without gradients and passes for metrics.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps.
        criterion: The loss, if it was passed in; None: cross-entropy is recognised.
        head: The head, if it was passed in.
        current_batch: Gives what the train loader handed out last.
        is_measured: Tells from the number of optimizer steps made so far whether the next one is
            measured.
        on_batch: Called with each `Batch`, in the backward pass.
        on_step: Called with each `Step`, after the optimizer step.
        on_error: Gets any exception of ours.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: nn.Module | Callable[..., Tensor] | None,
        head: nn.Module | None,
        *,
        current_batch: Callable[[], HandedOut | None],
        is_measured: Callable[[int], bool],
        on_batch: Callable[[Batch], None],
        on_step: Callable[[Step], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.steps = 0
        """Optimizer steps made so far."""
        self.head_watch = HeadWatch(model, head, on_error)
        self._current_batch = current_batch
        self._is_measured = is_measured
        self._on_batch = on_batch
        self._on_step = on_step
        self._on_error = on_error
        self._ignore_index = getattr(criterion, "ignore_index", None)
        self._per_sample = per_sample_loss(criterion) if criterion is not None else None
        self._hooks_criterion = isinstance(criterion, nn.Module)
        self._forward: _Forward | None = None
        self._batches: list[Batch] = []
        self._before: tuple[Tensor, Tensor | None] | None = None
        self._in_step: set[int] | None = None

        self._handles = [
            model.register_forward_hook(Hook(self._forward_done, on_error), with_kwargs=True),
            optimizer.register_step_pre_hook(Hook(self._step_begins, on_error)),
            optimizer.register_step_post_hook(Hook(self._step_done, on_error)),
        ]
        if isinstance(criterion, nn.Module):
            hook = Hook(self._criterion_done, on_error)
            self._handles.append(criterion.register_forward_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self.head_watch.close()
        self._batches.clear()
        self._forward = None

    # Forward and backward pass

    def _forward_done(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        logits, features = self.head_watch.read(output)
        if self._in_step is not None and self._before is None:
            self._remember_head()  # first pass inside a closure: the head is only known now
        if logits is None or not logits.requires_grad:
            return
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        forward = _Forward(_plain(logits), features, self._current_batch(), inputs)
        if self._hooks_criterion:
            self._forward = forward  # the criterion's call will show the labels
        else:
            self._await_gradient(logits, forward, target=None)

    def _criterion_done(self, criterion: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        named = dict(zip(("input", "target"), args, strict=False)) | kwargs
        logits, target = named["input"], named["target"]
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return
        forward, self._forward = self._forward, None
        if forward is None:
            forward = _Forward(logits, None, self._current_batch(), None)
        forward.logits = _plain(logits)
        self._await_gradient(logits, forward, target.detach())

    def _await_gradient(self, logits: Tensor, forward: _Forward, target: Tensor | None) -> None:
        def arrived(gradient: Tensor) -> None:
            # Autocast would round our products to half precision if backward runs inside it.
            with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                self._trained_on(forward, target, gradient.detach())

        logits.register_hook(Hook(arrived, self._on_error))  # type: ignore[no-untyped-call]

    def _trained_on(self, forward: _Forward, target: Tensor | None, gradient: Tensor) -> None:
        if self._in_step is not None and forward.handed_out is not None:
            if id(forward.handed_out) in self._in_step:
                return  # a closure that evaluates the same batch again, as LBFGS does
            self._in_step.add(id(forward.handed_out))
        logits = _flat(forward.logits)
        index, labels = self._identity(forward.handed_out, len(logits))
        target = labels if target is None else target
        observed = self._observe(logits, target, gradient.reshape(logits.shape))
        head = self.head_watch.head
        if head is not None and head.weight.requires_grad and head.weight.grad is None:
            self._batches.clear()  # gradients were reset without a step, as after an overflow
        batch = Batch(
            **{field.name: getattr(observed, field.name) for field in fields(Observed)},
            features=forward.features,
            index=None if index is None else index.to(logits.device, non_blocking=True),
            inputs=forward.inputs,
        )
        if self._is_measured(self.steps) and len(self._batches) < _MOST_BATCHES:
            self._batches.append(batch)
        self._on_batch(batch)

    def _identity(
        self, handed_out: HandedOut | None, size: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Positions and labels of the samples just trained on; None where they can't be told."""
        span = handed_out.span(size) if handed_out is not None else None
        if handed_out is None or span is None:
            return None, None
        handed_out.used = span.stop
        index, labels = handed_out.index, handed_out.labels
        return (
            None if index is None else index[span],
            None if labels is None or len(labels) < span.stop else labels[span],
        )

    def _observe(self, logits: Tensor, target: Tensor | None, gradient: Tensor) -> Observed:
        if self._per_sample is None:
            return recognise_cross_entropy(logits, gradient)
        if target is None:
            raise ValueError(
                "no labels were found in the batches of train_loader; pass the criterion as an "
                "nn.Module, so that its call shows them"
            )
        target = target.to(logits.device)
        return evaluate_criterion(self._per_sample, self._ignore_index, logits, target, gradient)

    # Optimizer step

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = set()
        self._before = None
        self._remember_head()

    def _remember_head(self) -> None:
        head = self.head_watch.head
        if head is not None and self._is_measured(self.steps):
            bias = None if head.bias is None else head.bias.detach().clone()
            self._before = (head.weight.detach().clone(), bias)

    def _step_done(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = None
        batches, self._batches = tuple(self._batches), []
        update = None
        head = self.head_watch.head
        if self._before is not None and head is not None:
            weight, bias = self._before
            update = Update(
                (head.weight.detach() - weight).flatten(1),
                None if bias is None or head.bias is None else head.bias.detach() - bias,
            )
        self.steps += 1
        with torch.no_grad():
            self._on_step(Step(batches, update))


def _plain(logits: Tensor) -> Tensor:
    """A private copy in full precision; the user may go on to change the logits in place."""
    logits = logits.detach()
    return logits.clone() if logits.dtype == torch.float64 else logits.to(torch.float32, copy=True)


def _flat(logits: Tensor) -> Tensor:
    """`[B, C]` from logits with trailing dimensions of size one."""
    flat = logits.flatten(1) if logits.ndim > 1 else logits
    if flat.ndim != 2 or logits.shape[1] != flat.shape[1] or flat.shape[1] < 2:
        raise ValueError(
            f"got logits of shape {list(logits.shape)}; one row of at least two class scores per "
            "sample, [batch, classes], can be measured"
        )
    return flat
