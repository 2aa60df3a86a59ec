"""What a run has put on the user's objects: on loader, model, criterion and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .arguments import Settings
from .capture.held_out import HeldOut
from .capture.hooks import Guard
from .capture.loader.recorder import LoaderRecorder
from .capture.parameters import is_distributed, trained_parameters
from .capture.representations import FirstVisits
from .capture.scope import HeadScope, Scope
from .capture.step import StepCapture
from .records import Observation, Step
from .samples.grouping import Grouping
from .type_names import type_name


class Attached:
    """Nothing at first; `detach()` takes off whatever was put on, at any time and again.

    Args:
        on_error: Gets any exception of ours.
    """

    capture: StepCapture

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self.guard = Guard(on_error, lambda: self.capture.give_step_up())
        """What all hooks of the run share."""
        self.recorder: LoaderRecorder | None = None
        self.scope: Scope = HeadScope()
        self._first_visits: FirstVisits | None = None

    def to_loader(self, loader: Any, on_epoch_end: Callable[[], None]) -> LoaderRecorder:
        """Follow the batches of the train loader."""
        self.recorder = LoaderRecorder(loader, on_epoch_end, self.guard)
        return self.recorder

    def to_training(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: Settings,
        *,
        is_measured: Callable[[int], bool],
        grouping: Grouping,
        on_observation: Callable[[Observation], None],
        on_step: Callable[[Step], None],
        on_problem: Callable[[str], None],
    ) -> StepCapture:
        """Follow passes and steps; the arguments are those of `StepCapture` and its scope."""
        self._first_visits = grouping.first_visits
        known = settings.noisy
        self.capture = StepCapture(
            model,
            optimizer,
            settings.criterion,
            settings.head,
            recorder=self.recorder,
            is_measured=is_measured,
            one_by_one=known is not None and known.needs_inputs,
            scope_of=partial(
                self._scope_of,
                model,
                optimizer,
                engine=settings.engine,
                is_measured=is_measured,
                grouping=grouping,
                on_problem=on_problem,
            ),
            first_visits=self._first_visits,
            on_observation=on_observation,
            on_step=on_step,
            on_problem=on_problem,
            guard=self.guard,
        )
        return self.capture

    def _scope_of(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        called: nn.Module,
        *,
        engine: str | None,
        is_measured: Callable[[int], bool],
        grouping: Grouping,
        on_problem: Callable[[str], None],
    ) -> Scope:
        """What is measured where the loop calls the model, or a part of it."""
        if engine is None:
            return self.scope
        if any(map(is_distributed, called.parameters())):
            on_problem(
                'got scope="all" and parameters that are DTensors, as fully_shard makes them: sums '
                "of all gradients would take twice the whole model on each rank, so statistics of "
                "steps are those of the head"
            )
            return self.scope
        # Only here: it loads torch.func, and takes a tenth of a second.
        from .gradients.parameters import ENGINES
        from .gradients.parameters.all_parameters import AllParameters

        self.scope = AllParameters(
            called,
            optimizer,
            ENGINES[engine],
            is_measured=lambda: is_measured(self.capture.steps),
            noisy_weight=grouping.noisy_weight,
            guard=self.guard,
            on_problem=on_problem,
        )
        covered, trained = (len(trained_parameters(one, optimizer)) for one in (called, model))
        if covered < trained:
            on_problem(
                f"statistics of steps cover the {type_name(called)} that the loop calls, "
                f"and not all of {type_name(model)}, which is never called itself"
            )
        return self.scope

    def check_labels(self) -> list[str]:
        """Take identity from samples whose labels are not those that the loader gave.

        Returns:
            What else to tell of the labels of the epoch that ends.
        """
        why_none, message = self.capture.label_check.end_epoch()
        if why_none is not None and self.recorder is not None:
            self.recorder.lose_identity(why_none)
        return [] if message is None else [message]

    def held_out(self, model: nn.Module, settings: Settings) -> HeldOut | None:
        """The held-out samples, where there are any; nothing is put on them."""
        if settings.validation is None:
            return None
        return HeldOut(
            model,
            settings.validation,
            settings.criterion,
            logits_at=lambda: self.capture.head_finder.logits_at,
        )

    def detach(self) -> None:
        """Leave model, criterion, optimizer and loader as they were found."""
        self.guard.attachments.remove_all()
        self.scope.close()
        if self._first_visits is not None:
            self._first_visits.give_up("the monitor was closed before they could")
        if self.recorder is not None:
            self.recorder.close()
