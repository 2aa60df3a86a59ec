"""What a loop does that keeps a monitor from concluding anything: said early, with what to do."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from .arguments import Settings
from .capture.health import Health
from .capture.loader.recorder import LoaderRecorder
from .capture.step import StepCapture
from .records import Observation, Step
from .type_names import type_name

_MOST_STEPS = 50
"""Steps after which a loop has shown how it goes about it."""

_LEAST_STEPS = 8
"""The same where an epoch has fewer."""

_MOST_TIMES = 100
"""Times that the loader of an epoch may go over its data set; who draws more means no end."""

_EPOCHS_UNREAD = 2
"""Epochs after which somebody should have asked whether to stop."""


class Loop:
    """Looks at the user's loop, and says what it sees; nothing it says ends anything.

    Args:
        model: The model that was passed in.
        optimizer: The optimizer that was passed in.
        recorder: Follows the train loader; None without one.
        settings: What the monitor was made with.
        say: Tells the user about a problem.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        recorder: LoaderRecorder | None,
        settings: Settings,
        say: Callable[[str], None],
    ) -> None:
        self.has_identity = recorder is not None and recorder.no_identity is None
        """Whether batches ought to be traced to samples."""
        self.advice_was_read = False
        """Whether somebody asked for the advice."""
        self._model, self._optimizer = type_name(model), type_name(optimizer)
        self._recorder = recorder
        self._health = Health(
            has_criterion=settings.criterion is not None,
            has_named_head=settings.head is not None,
        )
        self._may_stop = settings.stop is not None
        self._say = say
        self._steps = 0
        self._epochs = 0
        self._batch_size = 0.0

    def why_no_identity(self) -> str | None:
        """Why samples can't be told apart; None if they can, or if nobody ever could."""
        recorder = self._recorder
        if recorder is not None and recorder.not_followed is not None:
            self._say(f"not all samples are followed: {recorder.not_followed}")
        return recorder.no_identity if recorder is not None else None

    def observed(self, observation: Observation) -> None:
        """Some micro-batches were trained on.

        Raises:
            ValueError: At the first ones, if their loss or labels can't be measured.
        """
        self._tell(self._health.add(observation))

    def step_made(self, step: Step, capture: StepCapture, expected_steps: float) -> None:
        """The optimizer made a step.

        Args:
            step: The step.
            capture: What saw it.
            expected_steps: How many of them an epoch has.
        """
        self._steps += 1
        if self._steps == 1 and self._recorder is None:
            self._say(
                "no train_loader was passed: samples have no identity, so there are no suspects "
                "and no stop. Pass the DataLoader that the loop iterates over; without one, "
                "statistics of steps are measured, and monitor.end_epoch() ends an epoch of them"
            )
        if capture.calls.is_settled:
            self._tell(self._health.add_first_step(step))
        for observation in step.observations:
            micro_batches = len(observation.health.finite)
            self._batch_size = len(observation.visits.given_label) / micro_batches
        if self._steps == min(_MOST_STEPS, max(_LEAST_STEPS, int(expected_steps))):
            self._has_settled(capture)
        if capture.calls.has_trained:
            self._tell(self._health.add_step(expected_steps, self.has_identity))

    def _has_settled(self, capture: StepCapture) -> None:
        # Without a loader, nothing is looked at between the steps that are measured.
        is_seen = capture.calls.is_known and self._recorder is None
        if not (capture.calls.has_trained or is_seen):
            self._say(
                f"{self._optimizer} has made {self._steps} steps, and no gradient was seen at "
                f"logits that {self._model} gives: pass the model that the loop calls, and "
                "criterion= unless the loss is a cross-entropy on its logits; one in a larger "
                "compiled function is not seen, so compile it by itself: torch.compile(model)"
            )
        if self._recorder is not None and not self._epochs:
            self._look_for_the_end(self._recorder)

    def _look_for_the_end(self, recorder: LoaderRecorder) -> None:
        batches, size = recorder.batches, recorder.dataset_size
        times = (batches or 0) * self._batch_size / (size or 1)
        if batches is None:
            found = (
                f"has no length, and {self._steps} steps have not come to its end: if it has none"
            )
        elif size is not None and times > _MOST_TIMES:
            found = (
                f"has {batches:,} batches, {times:,.0f} times its data set: no epoch of it will end"
            )
        else:
            return
        then = "suspects and the stop are there from then on"
        if size is None:
            then = "that tells statistics of steps by epoch, without suspects and a stop"
        elif self._batch_size:
            then = f"{max(size / self._batch_size, 1):,.0f} steps are once its data set, and {then}"
        self._say(
            f"train_loader {found}, call monitor.end_epoch() where an epoch of yours ends; {then}"
        )

    def end_epoch(self, epoch: int) -> None:
        """An epoch ends.

        Args:
            epoch: Which one, from 1.

        Raises:
            ValueError: What was measured in it can't be trusted.
        """
        self._tell(self._health.end_epoch(epoch, self.has_identity))
        self._epochs += 1
        may_stop = self._may_stop and self.has_identity
        if may_stop and not self.advice_was_read and self._epochs == _EPOCHS_UNREAD:
            self._say(
                f"{self._epochs} epochs have ended, and nobody has read monitor.should_stop: read "
                "it after each epoch and end the training where it is True, as in `if "
                "monitor.should_stop: break`, or make the monitor with stop=None"
            )

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            self._say(problem)
