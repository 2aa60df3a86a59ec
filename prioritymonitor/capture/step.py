"""One training step seen as one record, by hooks on model, criterion and optimizer alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..records import Batch, Step, Update
from .head import HeadWatch
from .hooks import Hook, ModuleHook
from .loader import HandedOut
from .losses import Observed, evaluate_criterion, per_sample_loss, recognise_cross_entropy

_MOST_WAITING = 8
"""Micro-batches that wait to be observed together."""

_MOST_IN_STEP = 512
"""Micro-batches kept for one optimizer step; a loop that never steps must not fill the memory."""


@dataclass
class _Pass:
    """A forward pass, and what its backward pass added to it."""

    logits: Tensor
    features: Tensor | None
    handed_out: HandedOut | None
    inputs: Any
    target: Tensor | None = None
    gradient: Tensor | None = None
    index: Tensor | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Passes of one kind can be observed together."""
        target = None if self.target is None else (self.target.shape, self.target.dtype)
        assert self.gradient is not None
        return self.logits.shape, self.gradient.dtype, target, self.index is None


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
        one_by_one: Observe each micro-batch alone, because someone wants to see its inputs.
        on_batch: Called with each `Batch`, some steps late at most; `observe` brings it up to date.
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
        one_by_one: bool,
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
        self._most_waiting = 1 if one_by_one else _MOST_WAITING
        self._forward: _Pass | None = None
        self._waiting: list[_Pass] = []
        self._of_step: list[_Pass] = []
        self._before: tuple[Tensor, Tensor | None] | None = None
        self._in_step: set[int] | None = None

        self._handles = [
            model.register_forward_hook(ModuleHook(self._forward_done, on_error), with_kwargs=True),
            optimizer.register_step_pre_hook(Hook(self._step_begins, on_error)),
            optimizer.register_step_post_hook(Hook(self._step_done, on_error)),
        ]
        if isinstance(criterion, nn.Module):
            hook = ModuleHook(self._criterion_done, on_error)
            self._handles.append(criterion.register_forward_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self.head_watch.close()
        self._waiting, self._of_step, self._forward = [], [], None

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
        forward = _Pass(_plain(logits), features, self._current_batch(), inputs)
        if self._hooks_criterion:
            self._forward = forward  # the criterion's call will show the labels
        else:
            self._await_gradient(logits, forward)

    def _criterion_done(self, criterion: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        named = dict(zip(("input", "target"), args, strict=False)) | kwargs
        logits, target = named["input"], named["target"]
        if not (torch.is_grad_enabled() and logits.requires_grad):
            return
        forward, self._forward = self._forward, None
        if forward is None:
            forward = _Pass(logits, None, self._current_batch(), None)
        forward.logits, forward.target = _plain(logits), target.detach()
        self._await_gradient(logits, forward)

    def _await_gradient(self, logits: Tensor, forward: _Pass) -> None:
        def arrived(gradient: Tensor) -> None:
            self._trained_on(forward, gradient.detach())

        logits.register_hook(Hook(arrived, self._on_error))  # type: ignore[no-untyped-call]

    def _trained_on(self, forward: _Pass, gradient: Tensor) -> None:
        if self._in_step is not None and forward.handed_out is not None:
            if id(forward.handed_out) in self._in_step:
                return  # a closure that evaluates the same batch again, as LBFGS does
            self._in_step.add(id(forward.handed_out))
        forward.logits = _flat(forward.logits)
        forward.gradient = gradient.reshape(forward.logits.shape)
        self._identify(forward)
        if self._is_measured(self.steps) and len(self._of_step) < _MOST_IN_STEP:
            head = self.head_watch.head
            if head is not None and head.weight.requires_grad and head.weight.grad is None:
                # Gradients were reset without a step, as after an overflow.
                self._waiting += self._of_step
                self._of_step = []
            self._of_step.append(forward)
        else:
            self._waiting.append(forward)
            if len(self._waiting) >= self._most_waiting:
                self._observe_waiting()

    def _identify(self, forward: _Pass) -> None:
        """Find positions, and labels if the criterion shows none, in what the loader gave."""
        handed_out = forward.handed_out
        span = handed_out.span(len(forward.logits)) if handed_out is not None else None
        if handed_out is None or span is None:
            return
        handed_out.used = span.stop
        if handed_out.index is not None:
            forward.index = handed_out.index[span]
        if self._per_sample is not None and forward.target is None:
            labels = handed_out.labels
            forward.target = None if labels is None else labels[span]

    # Observation

    def observe(self) -> None:
        """Bring `on_batch` up to date; the micro-batches of an unfinished step wait for it."""
        try:
            self._observe_waiting()
        except Exception as error:
            self._on_error(error)

    def _observe_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, alike in itertools.groupby(waiting, key=lambda forward: forward.kind):
            passes = list(alike)
            for start in range(0, len(passes), self._most_waiting):
                self._on_batch(self._observed(passes[start : start + self._most_waiting]))

    def _observed(self, passes: list[_Pass]) -> Batch:
        # Autocast would round our products to half precision where the loop runs inside it.
        device = passes[0].logits.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            logits = torch.stack([forward.logits for forward in passes])
            gradient = torch.stack([cast(Tensor, forward.gradient) for forward in passes])
            if self._per_sample is None:
                observed = recognise_cross_entropy(logits, gradient)
            else:
                target = torch.stack(_targets(passes)).to(device)
                observed = evaluate_criterion(
                    self._per_sample, self._ignore_index, logits, target, gradient
                )
        index = [forward.index for forward in passes if forward.index is not None]
        alone = passes[0] if len(passes) == 1 else None
        return Batch(
            **{field.name: getattr(observed, field.name) for field in fields(Observed)},
            features=alone.features if alone is not None else None,
            index=torch.cat(index).to(device, non_blocking=True) if index else None,
            inputs=alone.inputs if alone is not None else None,
        )

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
        passes, self._of_step = self._of_step, []
        number, self.steps = self.steps, self.steps + 1
        if passes:
            self._observe_waiting()
        batches = tuple(self._observed([forward]) for forward in passes)
        for batch in batches:
            self._on_batch(batch)
        update = self._head_update() if batches else None
        self._on_step(Step(batches, update))

    def _head_update(self) -> Update | None:
        head, before = self.head_watch.head, self._before
        if head is None or before is None:
            return None
        weight, bias = before
        return Update(
            (head.weight.detach() - weight).flatten(1),
            None if bias is None or head.bias is None else head.bias.detach() - bias,
        )


def _targets(passes: list[_Pass]) -> list[Tensor]:
    targets = [forward.target for forward in passes if forward.target is not None]
    if len(targets) < len(passes):
        raise ValueError(
            "no labels were found in the batches of train_loader; pass the criterion as an "
            "nn.Module, so that its call shows them"
        )
    return targets


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
