"""One training step seen as one record, by hooks on model, criterion and optimizer alone."""

from __future__ import annotations

import inspect
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..gradients.parameters.all_parameters import AllParameters
from ..records import Batch, Step, Update
from .graph import Origin, find_origin, leave_mark
from .head import HeadWatch, Reading, unknown
from .hooks import Guard, Hook, ModuleHook
from .loader.handed_out import HandedOut
from .loader.recorder import LoaderRecorder
from .observer import Observer, last
from .parameters import ParameterChanges
from .passes import Forward, Pass, begin, begin_from, forward_of
from .resets import ResetWatch

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
        all_parameters: Measures all parameters; None: only the head is measured.
        on_batch: Called with each `Batch`, some steps late at most; `observe` brings it up to date.
        on_step: Called with each `Step`, after the optimizer step.
        guard: Times the hooks, and gets any exception of ours.
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
        all_parameters: AllParameters | None,
        on_batch: Callable[[Batch], None],
        on_step: Callable[[Step], None],
        guard: Guard,
    ) -> None:
        self.steps = 0
        """Optimizer steps made so far."""
        self.head_watch = HeadWatch(model, head, guard)
        self._recorder = recorder
        self._is_measured = is_measured
        self._all = all_parameters
        self._on_batch = on_batch
        self._on_step = on_step
        self._guard = guard
        self._observe = Observer(criterion)
        self._needs_labels = criterion is not None
        self._hooks_criterion = isinstance(criterion, nn.Module)
        self._most_waiting = 1 if one_by_one else _MOST_WAITING
        self._is_on = True
        self._key = object()
        self._recent: deque[Forward] = deque(maxlen=_MOST_RECENT)
        self._waiting: list[Pass] = []
        self._of_step: list[Pass] = []
        self._changes = ParameterChanges()
        self._resets = ResetWatch(optimizer, guard)
        self._in_step: list[HandedOut] | None = None

        self._handles = [
            model.register_forward_hook(ModuleHook(self._forward_done, guard), with_kwargs=True),
            optimizer.register_step_pre_hook(Hook(self._step_begins, guard)),
            optimizer.register_step_post_hook(Hook(self._step_done, guard)),
        ]
        if isinstance(criterion, nn.Module):
            hook = ModuleHook(self._criterion_done, guard)
            self._handles.append(criterion.register_forward_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self.head_watch.close()
        self.turn_off()
        if self._all is not None:
            self._all.close()

    def turn_off(self) -> None:
        """Stop measuring; hooks stay, for they can't be taken off while they run."""
        self._is_on = False
        self._waiting, self._of_step = [], []
        self._recent.clear()
        if self._all is not None:
            self._all.turn_off()

    # Forward and backward pass

    def _forward_done(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_on and torch.is_grad_enabled()):
            return
        is_measured = self._is_measured(self.steps)
        reading = self.head_watch.read((args, kwargs), output, is_measured=is_measured)
        if self._in_step is not None and self._changes.is_empty:
            self._remember_head()  # first pass inside a closure: the head is only known now
        if reading is None or not reading.logits.requires_grad:
            return
        if self._recorder is None and not is_measured:
            return  # without sample identities, nothing of this step is kept
        logits = reading.logits
        forward = self._forward_of(reading, args, kwargs)
        if self._all is not None:
            position = self.head_watch.position
            self._all.forward_done(forward, position, (args, kwargs), output)
        if len(logits) == 0:
            return
        if self._hooks_criterion:
            self._recent.append(forward)
            leave_mark(logits, self._key, forward)
        else:
            self._await_gradient(logits, begin(forward, logits), logits.grad_fn, logits.output_nr)

    def _forward_of(self, reading: Reading, args: Any, kwargs: Any) -> Forward:
        forward = forward_of(reading, self._handed_out(), kwargs.get("labels"))
        # Held until the gradient arrives, and longer if observed together: only what is needed.
        if self._is_measured(self.steps):
            forward.features = reading.features
        if self._most_waiting == 1:
            forward.inputs = args[0] if args else next(iter(kwargs.values()), None)
        return forward

    def _handed_out(self) -> HandedOut | None:
        return self._recorder.current if self._recorder is not None else None

    def _criterion_done(self, criterion: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_on and torch.is_grad_enabled()):
            return
        named = inspect.signature(criterion.forward).bind(*args, **kwargs).arguments
        logits, target = list(named.values())[:2]
        if not logits.requires_grad or len(logits) == 0:
            return
        origin = find_origin(logits, self._key)
        if origin is None:
            if self.head_watch.head is not None:
                return  # the loss of an auxiliary output
            origin = Origin(forward_of(unknown(logits), self._handed_out(), None), is_exact=False)
        class_dim = self._observe.class_dim(logits.shape, origin.mark)
        forward = begin_from(origin, logits, class_dim, target, self._observe.ignored)
        forward.take_target(target.detach(), class_dim)
        self._await_gradient(logits, forward, origin.node, origin.output)

    def _await_gradient(self, logits: Tensor, forward: Pass, node: Any, output: int) -> None:
        def arrived(gradient: Tensor) -> None:
            if self._all is not None:
                self._all.backward_begins(forward.source)
            self._trained_on(forward, gradient.detach())

        logits.register_hook(Hook(arrived, self._guard))
        if self._all is not None:
            self._all.await_gradient(forward, node, output)

    def _trained_on(self, forward: Pass, gradient: Tensor) -> None:
        if not self._is_on:
            return
        forward.take_gradient(gradient)
        handed_out = forward.source.handed_out
        if handed_out is not None:
            if handed_out.is_evaluated_again(forward.samples, self._in_step):
                return
            self._identify(forward, handed_out)
            assert self._recorder is not None
            self._recorder.trained_on(handed_out)
        if self._is_measured(self.steps) and len(self._of_step) < _MOST_IN_STEP:
            self._drop_undone_passes(forward.backward)
            self._resets.backward_began()
            self._of_step.append(forward)
            if self._all is not None:
                forward.batch = self._observe([forward])
                self._on_batch(forward.batch)
        else:
            self._waiting.append(forward)
            if len(self._waiting) >= self._most_waiting:
                self._observe_waiting()

    def _drop_undone_passes(self, backward: int) -> None:
        """Gradients that were reset without a step, as after an overflow, are part of no update."""
        undone = [forward for forward in self._of_step if forward.backward != backward]
        if not undone or not self._resets.was_reset():
            return
        if self._all is not None:
            self._all.discard()
        self._waiting += [forward for forward in undone if forward.batch is None]
        self._of_step = [forward for forward in self._of_step if forward.backward == backward]

    def _identify(self, forward: Pass, handed_out: HandedOut) -> None:
        """Find out which samples of what the loader gave these are."""
        forward.pieces = handed_out.take(forward.samples, forward.source.seen_before)
        if self._needs_labels and forward.target is None:
            forward.take_labels(self._observe.class_dim(forward.shape, forward.source))

    # Observation

    def observe(self) -> None:
        """Bring `on_batch` up to date; the micro-batches of an unfinished step wait for it."""
        try:
            self._observe_waiting()
        except Exception as error:
            self._guard.on_error(error)

    def _observe_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, alike in itertools.groupby(waiting, key=lambda forward: forward.kind):
            passes = list(alike)
            for start in range(0, len(passes), self._most_waiting):
                self._on_batch(self._observe(passes[start : start + self._most_waiting]))

    def _observe_step(self, passes: list[Pass]) -> list[Batch]:
        """The batches of a measured step; what waits is observed with them where it is alike."""
        if self._all is not None:
            return [forward.batch for forward in passes if forward.batch is not None]
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

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if not self._is_on:
            return None
        self._in_step = []
        self._changes.take()
        self._remember_head()
        return self._all.step_begins(args, kwargs) if self._all is not None else None

    def _remember_head(self) -> None:
        head = self.head_watch.head
        if head is not None and self._is_measured(self.steps):
            self._changes.remember(dict(head.named_parameters(recurse=False)))

    def _step_done(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        gradients, changes = None, None
        if self._all is not None:
            gradients, changes = self._all.step_done(has_passes=bool(self._of_step))
        if not self._is_on:
            return
        self._in_step = None
        passes, self._of_step = self._of_step, []
        self.steps += 1
        if self._recorder is not None:
            self._recorder.stepped()
        batches = tuple(self._observe_step(passes)) if passes else ()
        update = self._head_update() if batches else None
        self._on_step(Step(batches, update, gradients, changes, self._all is not None))

    def _head_update(self) -> Update | None:
        changes = self._changes.take()
        if "weight" not in changes:
            return None
        return Update(changes["weight"].flatten(1), changes.get("bias"))
