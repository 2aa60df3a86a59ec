"""One training step seen as one record, by hooks on model, criterion and optimizer alone."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..records import Batch, Step, Update
from .batches import HandedOut
from .head import HeadWatch
from .hooks import Hook, ModuleHook
from .loader import LoaderRecorder
from .passes import Observer, Pass, flat, last, plain

_MOST_WAITING = 16
"""Micro-batches that wait to be observed together."""

_MOST_RECENT = 4
"""Forward passes among which a criterion's call finds the one that gave its logits."""

_MOST_IN_STEP = 512
"""Micro-batches kept for one optimizer step; a loop that never steps must not fill the memory."""


class StepCapture:
    """Hooks on the user's objects until `close()`.

    A batch is taken as trained on only when the gradient of its logits arrives. That alone leaves
    out validation, passes without gradients and passes for metrics.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps.
        criterion: The loss, if it was passed in; None: cross-entropy is recognised.
        head: The head, if it was passed in.
        recorder: Knows what the train loader handed out last; None without a loader.
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
        recorder: LoaderRecorder | None,
        is_measured: Callable[[int], bool],
        one_by_one: bool,
        on_batch: Callable[[Batch], None],
        on_step: Callable[[Step], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.steps = 0
        """Optimizer steps made so far."""
        self.head_watch = HeadWatch(model, head, on_error)
        self._recorder = recorder
        self._is_measured = is_measured
        self._on_batch = on_batch
        self._on_step = on_step
        self._on_error = on_error
        self._observe = Observer(criterion)
        self._needs_labels = criterion is not None
        self._hooks_criterion = isinstance(criterion, nn.Module)
        self._most_waiting = 1 if one_by_one else _MOST_WAITING
        self._is_on = True
        self._recent: deque[tuple[weakref.ref[Tensor], Pass]] = deque(maxlen=_MOST_RECENT)
        self._waiting: list[Pass] = []
        self._of_step: list[Pass] = []
        self._before: tuple[Tensor, Tensor | None] | None = None
        self._in_step: list[HandedOut] | None = None

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
        self.turn_off()

    def turn_off(self) -> None:
        """Stop measuring; hooks stay, for they can't be taken off while they run."""
        self._is_on = False
        self._waiting, self._of_step = [], []
        self._recent.clear()

    # Forward and backward pass

    def _forward_done(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_on and torch.is_grad_enabled()):
            return
        logits, features = self.head_watch.read(output)
        if self._in_step is not None and self._before is None:
            self._remember_head()  # first pass inside a closure: the head is only known now
        if logits is None or not logits.requires_grad:
            return
        inputs = None
        if self._most_waiting == 1:
            inputs = args[0] if args else next(iter(kwargs.values()), None)
        # Held until the gradient arrives, and longer if observed together: only what is needed.
        features = features if self._is_measured(self.steps) else None
        handed_out = self._handed_out()
        forward = Pass(plain(logits), features, handed_out, inputs)
        if handed_out is not None:
            forward.seen_before = handed_out.seen
            handed_out.seen += len(logits)
        if self._hooks_criterion:
            self._recent.append((weakref.ref(logits), forward))
        else:
            self._await_gradient(logits, forward)

    def _handed_out(self) -> HandedOut | None:
        return self._recorder.current if self._recorder is not None else None

    def _criterion_done(self, criterion: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_on and torch.is_grad_enabled()):
            return
        named = inspect.signature(criterion.forward).bind(*args, **kwargs).arguments
        logits, target = list(named.values())[:2]
        if not logits.requires_grad:
            return
        forward = self._pass_of(logits)
        forward.logits, forward.target = plain(logits), target.detach()
        self._await_gradient(logits, forward)

    def _pass_of(self, logits: Tensor) -> Pass:
        """The forward pass that gave these logits; one without features if none is known to."""
        alive = [(given(), forward) for given, forward in reversed(self._recent)]
        known = [(given, forward) for given, forward in alive if given is not None]
        for given, forward in known:
            if given is logits or given is logits._base:
                return replace(forward)
        for given, forward in known:  # a copy, in another precision or shape
            if given.numel() == logits.numel():
                return replace(forward)
        return Pass(logits, None, self._handed_out(), None)

    def _await_gradient(self, logits: Tensor, forward: Pass) -> None:
        def arrived(gradient: Tensor) -> None:
            self._trained_on(forward, gradient.detach())

        logits.register_hook(Hook(arrived, self._on_error))  # type: ignore[no-untyped-call]

    def _trained_on(self, forward: Pass, gradient: Tensor) -> None:
        if not self._is_on:
            return
        forward.logits = flat(forward.logits)
        forward.gradient = gradient.reshape(forward.logits.shape)
        forward.backward = torch._C._current_graph_task_id()
        if forward.handed_out is not None:
            if self._is_evaluated_again(len(forward.logits), forward.handed_out):
                return
            self._identify(forward, forward.handed_out)
            assert self._recorder is not None
            self._recorder.trained_on(forward.handed_out)
        if self._is_measured(self.steps) and len(self._of_step) < _MOST_IN_STEP:
            self._drop_undone_passes(forward.backward)
            self._of_step.append(forward)
        else:
            self._waiting.append(forward)
            if len(self._waiting) >= self._most_waiting:
                self._observe_waiting()

    def _is_evaluated_again(self, count: int, handed_out: HandedOut) -> bool:
        """True for a closure that evaluates the same samples once more, as LBFGS does."""
        if self._in_step is None or handed_out.size is None or count > handed_out.size:
            return False
        if handed_out not in self._in_step:
            self._in_step.append(handed_out)
            return False
        return handed_out.used >= handed_out.size

    def _drop_undone_passes(self, backward: int) -> None:
        """Gradients that were reset without a step, as after an overflow, are part of no update."""
        head = self.head_watch.head
        if head is None or not head.weight.requires_grad or head.weight.grad is not None:
            return
        undone = [forward for forward in self._of_step if forward.backward != backward]
        self._waiting += undone
        self._of_step = [forward for forward in self._of_step if forward.backward == backward]

    def _identify(self, forward: Pass, handed_out: HandedOut) -> None:
        """Find out which samples of what the loader gave these are.

        Pieces of a batch come in the order in which they went through the model, or in that of
        their backward passes if other passes, as for a metric, came in between.
        """
        count = len(forward.logits)
        pieces = {
            piece.start: piece
            for start in (handed_out.used, forward.seen_before)
            if (piece := handed_out.piece(count, start)) is not None
        }
        forward.pieces = tuple(pieces.values())
        handed_out.used = min(handed_out.used + count, handed_out.size or 0)
        if self._needs_labels and forward.target is None and pieces:
            forward.target = forward.pieces[0].labels

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
                self._on_batch(self._observe(passes[start : start + self._most_waiting]))

    def _observe_step(self, passes: list[Pass]) -> list[Batch]:
        """The batches of a measured step; what waits is observed with them where it is alike."""
        kind = passes[0].kind
        waiting = [forward for forward in self._waiting if forward.kind == kind]
        if self._most_waiting > 1 and all(forward.kind == kind for forward in passes):
            self._waiting = [forward for forward in self._waiting if forward.kind != kind]
            batch = self._observe(waiting + passes)
            self._on_batch(batch)
            return [last(batch, passes)]
        batches = [self._observe([forward]) for forward in passes]
        for batch in batches:
            self._on_batch(batch)
        return batches

    # Optimizer step

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_on:
            return
        self._in_step = []
        self._before = None
        self._remember_head()

    def _remember_head(self) -> None:
        head = self.head_watch.head
        if head is not None and self._is_measured(self.steps):
            bias = None if head.bias is None else head.bias.detach().clone()
            self._before = (head.weight.detach().clone(), bias)

    def _step_done(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_on:
            return
        self._in_step = None
        passes, self._of_step = self._of_step, []
        self.steps += 1
        if self._recorder is not None:
            self._recorder.stepped()
        batches = tuple(self._observe_step(passes)) if passes else ()
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
