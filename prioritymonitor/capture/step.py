"""One training step seen as one record, by hooks on model, criterion and optimizer alone."""

from __future__ import annotations

import inspect
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..records import Observation, Step
from .arrivals import await_gradient, await_gradient_before_copies
from .called import CalledModule, Part, Trial
from .graph import Derivation, before_copies, find_derivation, leave_mark
from .head import HeadFinder, Logits, unknown
from .hooks import Guard, Hook, ModuleHook
from .identity import Identity
from .label_check import LabelCheck
from .links import Chain
from .loader.handed_out import HandedOut
from .loader.recorder import LoaderRecorder
from .missing_steps import MissingSteps
from .observer import Observer
from .parameters import ParameterChanges, head_update
from .passes import Forward, Pass, begin, begin_from, forward_of
from .representations import FirstVisits, Representations
from .resets import GradientResets
from .scope import Scope
from .trained_passes import TrainedPasses

_MOST_RECENT = 4
"""Forward passes among which a criterion's call finds the one that gave its logits."""


class StepCapture:
    """Hooks on the user's objects until the guard's attachments are removed.

    A pass is taken as trained on only when the gradient of its logits arrives. That alone leaves
    out validation, passes without gradients and passes for metrics. It has an attribute for each
    thing that hooks of different objects must know of each other.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps.
        criterion: The loss, if it was passed in; None: cross-entropy is recognised.
        head: The head, if it was passed in.
        recorder: Knows what the train loader handed out last; None without a loader.
        is_measured: Tells from the number of optimizer steps made so far whether the next one is
            measured.
        one_by_one: Observe each micro-batch alone, because someone wants to see its inputs.
        scope_of: What is measured of the gradients, in passes of the model or of a part of it.
        first_visits: Wants to know what samples look like before they are learnt; None: nobody.
        on_observation: Called with each `Observation`, some steps late at most; `observe` brings it
            up to date.
        on_step: Called with each `Step`, after the optimizer step.
        on_problem: Gets a sentence on a loop that can't be measured.
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
        scope_of: Callable[[nn.Module], Scope],
        first_visits: FirstVisits | None,
        on_observation: Callable[[Observation], None],
        on_step: Callable[[Step], None],
        on_problem: Callable[[str], None],
        guard: Guard,
    ) -> None:
        self.steps = 0
        """Optimizer steps made so far."""
        self.head_finder = HeadFinder(model, head, guard)
        self.representations = Representations(model, first_visits, guard)
        self._identity = Identity(recorder)
        self._is_measured = is_measured
        self._keeps_inputs = one_by_one
        self._scope_of, self._scope = scope_of, scope_of(model)
        self._on_step = on_step
        self._guard = guard
        self._observer = Observer(criterion, lambda: recorder and recorder.dataset)
        self._needs_labels = criterion is not None
        self._hooks_criterion = isinstance(criterion, nn.Module)
        self._is_on = True
        self._key = object()
        self._recent: deque[Forward] = deque(maxlen=_MOST_RECENT)
        self._head_changes = ParameterChanges()
        self._in_step: list[HandedOut] | None = None
        self._head = head
        self.missing_steps = MissingSteps(model, optimizer, guard, on_problem)
        self.calls = CalledModule(model, head, criterion, guard, self._tried, self._follow_part)
        self._passes = TrainedPasses(
            self._observer,
            GradientResets(optimizer, guard),
            one_by_one=one_by_one,
            at_once=self._scope.is_of_all,
            on_observation=on_observation,
        )
        self._follow_calls(model)
        guard.attach(optimizer.register_step_pre_hook, Hook(self._step_begins, guard))
        guard.attach(optimizer.register_step_post_hook, Hook(self._step_done, guard))
        if isinstance(criterion, nn.Module):
            called = ModuleHook(self._criterion_done, guard)
            guard.attach(criterion.register_forward_hook, called, with_kwargs=True)

    def _follow_calls(self, module: nn.Module) -> None:
        done = ModuleHook(self._forward_done, self._guard)
        self._guard.attach(module.register_forward_hook, done, with_kwargs=True)

    def _follow_part(self, part: Part, chain: Chain | None) -> None:
        """Take the calls of a part of the model for those of the model."""
        self.head_finder.close()
        self.head_finder = part.finder
        self.representations.follow(part.module, chain)
        self._scope.close()
        self._scope = self._scope_of(part.module)
        self._follow_calls(part.module)
        if self._in_step is not None:
            self._remember_head()
        for forward in part.is_found():
            self._represent(forward, forward.trial.device, forward.trial.call)

    @property
    def label_check(self) -> LabelCheck:
        """Compares the labels that the loss sees with those that the loader gave."""
        return self._observer.label_check

    def turn_off(self) -> None:
        """Measure no more; hooks stay, for they can't be taken off while they run."""
        self._is_on = False
        self._passes.clear()
        self._recent.clear()
        self._scope.turn_off()

    def give_step_up(self) -> None:
        """A hook broke off: what it would have seen of this step is missing."""
        self._passes.give_step_up()
        self._scope.give_step_up()

    def observe(self) -> None:
        """Bring `on_observation` up to date; the passes of an unfinished step wait for it."""
        self._passes.observe()

    # Forward and backward pass

    def _forward_done(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_on and torch.is_grad_enabled()) or module is not self.calls.module:
            return
        is_measured = self._is_measured(self.steps)
        found = self.head_finder.logits_of((args, kwargs), output, is_measured=is_measured)
        if self._in_step is not None and self._head_changes.is_empty:
            self._remember_head()  # first pass inside a closure: the head is only known now
        if found is None or not found.tensor.requires_grad:
            return
        if not self._identity.is_known and not is_measured and not self.missing_steps.is_possible():
            return self.calls.was_called()  # without identities, nothing of this step is kept
        forward = self._forward_of(self.head_finder, found, args, kwargs)
        call = self.representations.data_of(module, (args, kwargs))
        self._represent(forward, found.tensor.device, call)
        self.calls.model_gave(forward)
        self._scope.forward_done(forward, (args, kwargs), output)
        self._await_loss(forward, found.tensor)

    def _tried(self, trial: Trial, args: Any, kwargs: Any, output: Any) -> None:
        """A part of the model was called, which may be the one that the loop trains by."""
        if not self._is_on:
            return
        finder, is_measured = trial.part.finder, self._is_measured(self.steps)
        found = finder.logits_of((args, kwargs), output, is_measured=is_measured)
        if found is not None and found.tensor.requires_grad:
            forward = self._forward_of(finder, found, args, kwargs)
            forward.trial = trial
            trial.part.count(forward)
            self._await_loss(forward, found.tensor)

    def _await_loss(self, forward: Forward, logits: Tensor) -> None:
        if len(logits) == 0:
            return
        if self._hooks_criterion:
            self._recent.append(forward)
            leave_mark(logits, self._key, forward)
        else:
            one = begin(forward, logits)
            node, output = before_copies(logits)
            if node is not logits.grad_fn:
                await_gradient_before_copies(one, node, output, self._arrived, self._guard)
            self._await_gradient(logits, one, node, output)

    def _forward_of(self, finder: HeadFinder, found: Logits, args: Any, kwargs: Any) -> Forward:
        forward = forward_of(found, self._identity.candidates(), kwargs.get("labels"))
        forward.logits_at = finder.logits_at
        # Held until the gradient arrives, and longer if observed together: only what is needed.
        if self._is_measured(self.steps):
            forward.features = found.features
        if self._keeps_inputs:
            forward.inputs = args[0] if args else next(iter(kwargs.values()), None)
        return forward

    def _represent(self, forward: Forward, device: torch.device, call: Any) -> None:
        head = self.head_finder.head
        forward.representation = self.representations.of(forward, device, head, call)

    def _criterion_done(self, criterion: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_on and torch.is_grad_enabled()):
            return
        named = inspect.signature(criterion.forward).bind(*args, **kwargs).arguments
        logits, target = list(named.values())[:2]
        if not logits.requires_grad or len(logits) == 0:
            return
        derivation = find_derivation(logits, self._key)
        if derivation is None:
            if self.head_finder.head is not None:
                return  # the loss of an auxiliary output
            derivation = Derivation(
                forward_of(unknown(logits), self._identity.candidates(), None), is_exact=False
            )
        class_dim = self._observer.class_dim(logits.shape, derivation.mark)
        earlier = derivation.mark.pass_of(logits)
        if earlier is not None and earlier.take_more(target.detach(), class_dim):
            return
        one = begin_from(derivation, logits, class_dim, target, self._observer.ignored)
        one.take_target(target.detach(), class_dim)
        one.source.latest = weakref.ref(logits), weakref.ref(one)
        self._await_gradient(logits, one, derivation.node, derivation.output)

    def _await_gradient(self, logits: Tensor, one: Pass, node: Any, output: int) -> None:
        await_gradient(one, logits, self._arrived, self._guard)
        self._scope.await_gradient(one, node, output)

    def _arrived(self, one: Pass, gradient: Tensor) -> None:
        if self._is_on and not self.calls.turns_out(one, gradient):
            return
        source = one.source
        if source.trial is not None:
            self._scope.give_step_up()  # the pass began before anybody followed its layers
            source.trial = None
        self._scope.backward_begins(source)
        self._trained_on(one, gradient)

    def _trained_on(self, one: Pass, gradient: Tensor) -> None:
        if not self._is_on:
            return
        one.take_gradient(gradient)
        batch, self.calls.has_trained = self._identity.batch_of(one), True
        if self._in_step is None:
            is_of_loop = batch is not None or not self._identity.is_known
            self.missing_steps.trained_on(batch, is_of_loop)
        if batch is not None:
            if batch.is_evaluated_again(one.samples, self._in_step):
                return
            self.representations.are_of(batch, one.source)
            self._identity.take(one, batch)
            if self._needs_labels and one.target is None:
                one.take_labels(self._observer.class_dim(one.shape, one.source))
        if not self._is_measured(self.steps):
            self._passes.add(one)
        elif self._passes.add_to_step(one):
            self._scope.discard()

    # Optimizer step

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if not self._is_on:
            return None
        self._in_step = []
        if not self.calls.is_known:
            self.representations.remember()
        self._head_changes.take()
        self._remember_head()
        return self._scope.step_begins(args, kwargs)

    def _remember_head(self) -> None:
        head = self.head_finder.head
        if head is not None and self._is_measured(self.steps):
            self._head_changes.remember(dict(head.named_parameters(recurse=False)))

    def _step_done(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._in_step = None
        parameters = self._scope.step_done(has_passes=self._passes.has_step())
        if not self._is_on or self.missing_steps.was_none(optimizer):
            return
        self.steps += 1
        self.calls.step_made()
        self.missing_steps.step_made()
        self._identity.stepped()
        observations = self._passes.take_step()
        update = head_update(self._head_changes) if observations else None
        self._on_step(Step(observations, update, parameters, self._scope.is_of_all))
