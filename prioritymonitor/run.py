"""One training run: puts the rooms together, and is the sole owner of its epoch and its phase.

Data flows one way: capture shows visits of samples and measured steps; the table of samples and the
gradients make numbers of them; at an epoch's end the witnesses and the rule make a decision, which
says whose weights are kept, and the report writes it down.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from . import in_use, ranks
from .arguments import Settings
from .attached import Attached
from .data_parallel import NotJudged
from .errors import contained, described, may_pass
from .judge import Judge
from .loop import Loop
from .records import (
    NOTHING_YET,
    Decision,
    Observation,
    Phase,
    Record,
    Step,
    StopReason,
    TargetKind,
)
from .report.folder import RunFolder
from .report.log import Log
from .report.sink import RunInfo
from .report.sinks import Sinks, all_sinks
from .samples.grouping import Grouping
from .samples.table import SampleTable
from .steps import Steps
from .tags import RECORD_KEYS
from .validation import Validation


class Run:
    """Attached to model, optimizer and loader from `attach()` until `close()`.

    It has an attribute for each room that it puts together, and those of its epoch and phase.
    Whatever changes them holds the lock of the guard; what others read is replaced as a whole.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = secrets.token_hex(8)
        self.phase = Phase.CLOSED
        self.decision = NOTHING_YET
        self.epoch = 0
        self.records: tuple[Record, ...] = ()
        self.log = Log(ranks.is_first)
        log_dir = settings.log_dir
        self.folder = RunFolder(log_dir, self.log.once) if log_dir is not None else None
        sinks = all_sinks(self.log, self.folder, settings.writer)
        self.reports = Sinks(sinks, self.log.once, ranks.is_first)
        self.table = SampleTable(0, None)
        """What is known of the samples; empty where they never had an identity."""
        self.judge: Judge | None = None
        """Follows them; None where they never had an identity."""
        self.attached = Attached(self._failed)
        self.guard = self.attached.guard
        self.expected_steps = 100.0  # of an epoch, by the last one
        self.resumes_as = Phase.NOT_BEGUN  # the phase before it was closed
        self._has_begun = False
        self._training_thread = threading.get_ident()
        self.steps_at_end = 0

    # Attached and taken off

    def attach(
        self, model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any] | None
    ) -> None:
        """Put hooks on the user's objects: all of them, or none if it breaks off."""
        try:
            self.phase = Phase.NOT_BEGUN
            self._attach(model, optimizer, loader)
        except BaseException:
            self.attached.detach()
            self.phase = Phase.CLOSED
            raise
        in_use.take_over(self, model, optimizer)

    def _attach(self, model: nn.Module, optimizer: Optimizer, loader: Any) -> None:
        settings, say = self.settings, self.log.once
        recorder = None if loader is None else self.attached.to_loader(loader, self._end_epoch)
        if recorder is not None and recorder.dataset_size is not None:
            self.expected_steps = float(recorder.batches or self.expected_steps)
            self.judge = Judge.of(model, recorder.dataset_size, settings, say)
            self.table, recorder.others = self.judge.table, self.judge.others
            self.id = self.judge.others.id_of_run(self.id)
        else:
            message = "samples have no identity without train_loader: no suspects and no stop"
            if recorder is not None:  # else it is said at the first step
                why_none = f"samples have no identity, {recorder.no_identity}"
                say(message := f"{why_none}: no suspects and no stop")
            self._enter(Phase.IDENTITY_LOST, StopReason.NO_IDENTITY, message)
        self.grouping = Grouping(settings.noisy, self.table if self.judge else None)
        overhead = self.guard.stopwatch.share
        others = self.judge.others if self.judge is not None else None
        self.steps = Steps(settings.every, self.grouping, self.reports, overhead, say, others)
        self.loop = Loop(model, optimizer, recorder, settings, say)
        held_out = self.attached.held_out(model, settings)
        self.validation = Validation(held_out, self.guard.stopwatch, self.reports, self.log)
        self.attached.to_training(
            model,
            optimizer,
            settings,
            is_measured=self.steps.is_measured,
            grouping=self.grouping,
            on_observation=self._observed,
            on_step=self._step_made,
            on_problem=say,
        )

    def close(self) -> None:
        """Leave model, optimizer and loader as found, and write what is left.

        If it is interrupted, it can be called again.
        """
        with self.guard.lock:
            if self.phase is Phase.CLOSED:
                return
            self.bring_up_to_date(is_last=True)
            if self.judge is not None:
                self.judge.others.leave(None)
            self.attached.detach()
            self.reports.close(self.table.suspect_columns)
            self.resumes_as, self.phase = self.phase, Phase.CLOSED

    # Passes and steps

    def _observed(self, observation: Observation) -> None:
        if self.judge is not None:
            self.judge.others.begins_with(observation)
        self.loop.observed(observation)
        if observation.visits.targets is TargetKind.NUMBERS:
            self._forget_samples(StopReason.NO_CLASSES)
        self._check_identity()
        self.grouping.record(observation.visits)

    def _step_made(self, step: Step) -> None:
        self._training_thread = threading.get_ident()
        if not self._has_begun:
            self._begin(step)
        self.steps.add(self.attached.capture.steps, step)
        if self.judge is not None:
            self.judge.step_made(self.expected_steps)
        self._check_identity()
        self.loop.step_made(step, self.attached.capture, self.expected_steps)
        if not ranks.is_alone():
            self._settle()  # all at the same step, whoever reads the advice

    def _begin(self, step: Step) -> None:
        """Say what the run is: by now it is known whether a state was loaded."""
        self._has_begun = True
        if self.phase is Phase.NOT_BEGUN:
            self.phase = Phase.MEASURING
        classes = step.observations[0].head.residual.shape[-1] if step.observations else None
        shapes = {"samples": self.table.history.size or None, "classes": classes}
        settings, known = vars(self.settings), (self.records, self.table.columns)
        if self.judge is not None:
            self.id = self.judge.others.id_of_run(self.id)
        self.reports.begin(RunInfo(self.id, settings, shapes, settings["class_names"], *known))

    def _check_identity(self) -> None:
        """Before anything is concluded from it."""
        if (why_none := self.loop.why_no_identity()) is not None:
            self._forget_samples(StopReason.NO_IDENTITY, why_none)

    # Epochs

    def settle(self) -> None:
        """End an epoch whose last batch was used, where the caller is the one who trains.

        Other threads close nothing, nor does one rank of several: the others may not ask.
        """
        if threading.get_ident() == self._training_thread and ranks.is_alone():
            with self.guard.lock:
                self._settle()

    def _settle(self, is_last: bool = False) -> None:
        if self.attached.recorder is not None and self.phase is not Phase.FAILED:
            self.attached.recorder.settle(is_last)

    def end_epoch(self) -> None:
        """End the epoch that is under way, if one is."""
        recorder, capture = self.attached.recorder, self.attached.capture
        with self.guard.lock, contained(self._failed):
            if capture.steps == self.steps_at_end:
                capture.missing_steps.epoch_ended()  # left open: its step may come
            elif recorder is not None:
                recorder.end_epoch()
            else:
                self._end_epoch()

    def _end_epoch(self) -> None:
        if self.phase in (Phase.FAILED, Phase.CLOSED):
            return
        capture = self.attached.capture
        capture.observe()
        self.steps.report()
        steps, epoch = capture.steps, self.epoch + 1
        if steps == self.steps_at_end:
            return capture.missing_steps.epoch_ended()  # nobody was trained, as far as we see
        self.log.once(*self.attached.check_labels())
        self.loop.end_epoch(epoch)
        self._check_identity()
        record = dict.fromkeys(RECORD_KEYS) | {"epoch": epoch, "step": steps, "time": time.time()}
        if self.judge is not None:
            self.expected_steps = self.judge.count_steps(self.expected_steps)
        keeper = self.judge.keeper if self.judge is not None else None
        record |= self.validation.end_epoch(keeper, steps)
        had_stopped, decision = self.decision.stop, self._judge(record)
        self.steps.end_epoch()
        record |= {"best_epoch": decision.best_epoch, "stop": decision.stop}
        record["reason"] = decision.reason.name
        # Nothing that has failed before this line leaves a part of an epoch behind.
        self.epoch, self.steps_at_end = epoch, steps
        self.decision, self.records = decision, (*self.records, record)
        self.reports.epoch(record, self.table.columns)
        if decision.stop and not had_stopped:
            self.phase = Phase.STOPPED
            self.reports.stop(decision, steps, self.table.suspect_columns)

    def _judge(self, record: Record) -> Decision:
        if self.judge is not None and self.phase is not Phase.IDENTITY_LOST:
            try:
                return self.judge.end_epoch(record, self.records, self.decision)
            except NotJudged as error:
                self._forget_samples(error.reason, str(error), aloud=error.is_untold)
        now = self.decision.epoch if self.decision.stop else record["epoch"]
        return replace(self.decision, epoch=now)

    # What goes wrong

    def _forget_samples(self, reason: StopReason, why: str = "", aloud: bool = False) -> None:
        """Samples can't be told apart, or not any more."""
        if self.phase is Phase.IDENTITY_LOST:
            return
        self.loop.has_identity = False
        self.grouping.forget_samples()
        if why and reason is StopReason.NO_IDENTITY:
            why = f"samples have no identity, {why}"
        message = f"{why or reason.value}: no suspects and no stop from here on"
        self._enter(Phase.IDENTITY_LOST, reason, message)
        self.log.once(message, aloud=aloud)

    def _enter(self, phase: Phase, reason: StopReason, message: str) -> None:
        """Go over to another phase, in which nothing is judged; a stop stays a stop."""
        self.phase = phase
        if self.judge is not None:
            self.judge.others.leave(message)
        if not self.decision.stop:
            self.decision = Decision(False, reason, self.epoch, self.decision.best_epoch, message)

    def _failed(self, error: Exception) -> None:
        """Following samples has failed, and so has everything that needs it."""
        if may_pass(error):
            self.log.once(f"some visits of samples are lost: {described(error)}")
            return
        if self.phase in (Phase.FAILED, Phase.CLOSED):
            return
        now = f"measuring is off after step {self.attached.capture.steps}, training goes on"
        message = f"{now}: {described(error)}"
        self._enter(Phase.FAILED, StopReason.FAILED, message)
        self.log.once(message)
        self.log.cause(error)
        self.attached.capture.turn_off()
        self.reports.flush()

    # Readings and state

    def bring_up_to_date(self, is_last: bool = False) -> None:
        """Take all into account that was trained on so far, and bring it to the disk."""
        with contained(self._failed):
            self._settle(is_last)
            self.attached.capture.observe()
        self.steps.report()
        self.reports.flush()

    def restore_best(self) -> int | None:
        """Put the kept weights into the model; the epoch they are from, or None without any."""
        with self.guard.lock:
            with contained(self._failed):
                self._settle(is_last=True)
            epoch = self.judge.restore(self.decision) if self.judge is not None else None
        if epoch is None:
            self.log.once("restore_best() left the weights as they are: no epoch was closed")
        return epoch
