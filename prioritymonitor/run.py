"""A watch over one training run: what the hooks report goes through the stages, one way."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .arguments import Settings
from .capture.health import Health
from .capture.hooks import Guard
from .capture.loader.recorder import LoaderRecorder
from .capture.step import StepCapture
from .errors import ArgumentValueError
from .gradients.measured_steps import StepMeter
from .gradients.parameters import ENGINES
from .gradients.parameters.all_parameters import AllParameters
from .records import Batch, Decision, Labels, Step, StopReason, Suspect
from .report.folder import RunFolder
from .report.log import Log
from .report.sink import Columns, RunInfo
from .report.sinks import Sinks, all_sinks
from .samples.grouping import Grouping
from .samples.table import PriorityPath
from .stopping.kept_weights import WeightKeeper
from .stopping.rule import StopRule

_STATE_VERSION = 2

_MOST_RELABELLED = 0.01
"""Share of samples that may show another label than before, until their identity is doubted."""


class Watch:
    """Attached to model, optimizer and loader from its making until `close()`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loader: DataLoader[Any] | None,
        settings: Settings,
    ) -> None:
        self.settings = settings
        self.latest: dict[str, float] = {}
        self.records: list[dict[str, Any]] = []
        self.epoch = 0
        self.log = Log()
        log_dir = settings.log_dir
        self.folder = RunFolder(log_dir, self.log.once) if log_dir is not None else None
        sinks = all_sinks(self.log, self.folder, settings.writer)
        self.reports = Sinks(sinks, self.log.once)
        self._id = secrets.token_hex(8)
        self._has_begun = False
        self._grouping = Grouping(settings.known_noise)
        self.keeper: WeightKeeper | None = None
        guard = Guard(self._failed)
        self._meter = StepMeter(guard.stopwatch.share)
        self._lost_identity = False
        self._has_classes = True
        self._steps_untraced = 0
        self._failure: str | None = None
        self._expected_steps = 100.0
        self._recorder: LoaderRecorder | None = None
        if loader is not None:
            self._recorder = LoaderRecorder(loader, self._end_epoch, guard)
            self._follow_samples(model, loader, self._recorder)
        self._health = Health(
            has_criterion=settings.criterion is not None,
            has_named_head=settings.head is not None,
            has_identity=self.path is not None,
        )
        self.all_parameters = self._follow_parameters(model, optimizer, guard)
        self.capture = StepCapture(
            model,
            optimizer,
            settings.criterion,
            settings.head,
            recorder=self._recorder,
            is_measured=self.is_measured,
            all_parameters=self.all_parameters,
            one_by_one=settings.known_noise is not None and settings.known_noise.needs_inputs,
            on_batch=self._batch_trained,
            on_step=self._step_made,
            guard=guard,
        )

    def _follow_parameters(
        self, model: nn.Module, optimizer: Optimizer, guard: Guard
    ) -> AllParameters | None:
        if self.settings.engine is None:
            return None
        return AllParameters(
            model,
            optimizer,
            ENGINES[self.settings.engine],
            is_measured=lambda: self.is_measured(self.capture.steps),
            noisy_weight=self._grouping.noisy_weight,
            guard=guard,
            on_problem=self.log.once,
        )

    @property
    def path(self) -> PriorityPath | None:
        """The past of the samples; None where they have no identity."""
        return self._grouping.path

    def _follow_samples(
        self, model: nn.Module, loader: DataLoader[Any], recorder: LoaderRecorder
    ) -> None:
        size = recorder.dataset_size
        if size is None:
            self.log.once(
                f"the samples of train_loader have no identity, {recorder.no_identity}: "
                "steps are measured, there are no suspects and no stop"
            )
            return
        self._expected_steps = float(max(len(loader), 1))
        averaged = self.settings.keep_best == "averaged"
        rule = self.settings.stop or StopRule()
        lag = rule.average_lag if averaged else 0
        self._grouping.path = PriorityPath(size, self.settings.max_tracked, self.settings.stop, lag)
        if self.settings.keep_best is not None:
            self.keeper = WeightKeeper(model, averaged)

    @property
    def decision(self) -> Decision:
        """The latest advice; a stop stays, whatever happens after."""
        path = self.path.decision if self.path is not None else None
        if path is not None and (path.stop or self._failure is None):
            return path
        best = path.best_epoch if path is not None else self.epoch or None
        if self._failure is not None:
            return Decision(False, StopReason.FAILED, self.epoch, best, self._failure)
        reason = StopReason.NO_IDENTITY if self._has_classes else StopReason.NO_CLASSES
        return Decision(False, reason, self.epoch, best, f"{reason.value}: no stop")

    # Batches and steps

    def is_measured(self, steps: int) -> bool:
        """Whether the optimizer step that so many others came before is measured."""
        return steps % self.settings.every == 0

    def _batch_trained(self, batch: Batch) -> None:
        self.log.once(*self._health.add(batch))
        if batch.labels is Labels.NUMBERS and self._has_classes:
            self._has_classes, self._grouping.path = False, None
            self.log.once(f"{StopReason.NO_CLASSES.value}: there are no suspects and no stop")
        if batch.index is not None:
            self._steps_untraced = 0
        self._grouping.record(batch)

    def _step_made(self, step: Step) -> None:
        self._begin(step)
        self._steps_untraced += 1
        if step.batches:
            self.log.once(*self._health.add_first_step(step.batches[0]))
            weight = torch.cat([self._grouping.noisy_weight(batch) for batch in step.batches])
            true_label = torch.cat([self._grouping.true_label(batch) for batch in step.batches])
            self._meter.measure(self.capture.steps, step, weight, true_label)
        if self.keeper is not None:
            self.keeper.update(self._expected_steps)
        if self.path is not None and self._steps_untraced == 2 * int(self._expected_steps) + 16:
            self.log.once(
                f"{self._steps_untraced} optimizer steps used no batch of train_loader; pass the "
                "loader that the loop iterates over, and the model that it calls; one in a larger "
                "compiled function is not seen, so compile it by itself: torch.compile(model)"
            )
        if self._meter.is_full:
            self.report_steps()

    def _begin(self, step: Step) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        shapes = {
            "samples": self.path.history.size if self.path is not None else None,
            "classes": step.batches[0].residual.shape[-1] if step.batches else None,
        }
        self.reports.begin(RunInfo(self._id, vars(self.settings), shapes, epochs=self.records))

    def report_steps(self) -> None:
        """Read what was measured since the last report, and write it."""
        for report in self._meter.read():
            self.latest = report.values
            self.reports.step(report.values, report.step, report.time)

    # Epochs

    def settle_epoch(self) -> None:
        """End an epoch whose last batch was trained on."""
        if self._recorder is not None and self._failure is None:
            self._recorder.settle()

    def _end_epoch(self) -> None:
        if self._failure is not None:
            return
        self.capture.observe()
        self.report_steps()
        self.epoch += 1
        self.log.once(*self._health.end_epoch(self.epoch))
        if self._recorder is not None and self._recorder.no_identity is not None:
            self._lose_identity(self._recorder.no_identity)
        record: dict[str, Any] = {"epoch": self.epoch, "step": self.capture.steps}
        if self.keeper is not None:
            self._expected_steps = max(self.keeper.end_epoch(), 1)
        stopped_before = self.decision.stop
        if self.path is not None and not stopped_before:
            scalars, relabelled = self.path.end_epoch()
            record |= scalars
            if relabelled > _MOST_RELABELLED * self.path.history.size:
                self._lose_identity(
                    f"{relabelled} of them showed another label than before; something between "
                    "train_loader and the model changes the order of batches or their labels"
                )
        if self.keeper is not None and self.decision.best_epoch == self.epoch:
            self.keeper.keep(self.epoch)
        record["reason"] = self.decision.reason.value
        self.records.append(record)
        self.reports.epoch(record, self._samples)
        if self.decision.stop and not stopped_before:
            self._stopped()

    def _stopped(self) -> None:
        decision = self.decision
        if self.keeper is not None:
            self.keeper.freeze()
        self.reports.stop(decision, self.capture.steps, self._suspects)

    def _lose_identity(self, reason: str) -> None:
        if self.path is not None:
            self.log.once(f"samples have no identity, {reason}: no suspects, no stop from here on")
            self._grouping.path, self._lost_identity = None, True

    # Failures and the end

    def _failed(self, error: Exception) -> None:
        if self._failure is not None:
            return
        self._failure = (
            f"measuring is off after step {self.capture.steps}, training goes on: "
            f"{type(error).__name__}: {error}"
        )
        self.log.once(self._failure)
        self.log.cause(error)
        self.capture.turn_off()
        self.reports.flush()

    def _samples(self) -> Columns:
        return self.path.samples() if self.path is not None else {}

    def _suspects(self) -> Columns:
        if self.path is None:
            return {name: np.empty(0, np.int64) for name in Suspect._fields}
        return self.path.suspect_columns(None)

    def history(self) -> list[dict[str, Any]]:
        """The records of the epochs."""
        return [dict(record) for record in self.records]

    def close(self) -> None:
        """Leave model, optimizer and loader as found, and write what is left."""
        self.settle_epoch()
        self.capture.observe()
        self.capture.close()
        if self._recorder is not None:
            self._recorder.close()
        self.report_steps()
        self.reports.close(self._suspects)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        self.settle_epoch()
        self.capture.observe()
        self.report_steps()
        self.reports.flush()  # a run that is killed from here on loses nothing before it
        return {
            "version": _STATE_VERSION,
            "id": self._id,
            "steps": self.capture.steps,
            "epoch": self.epoch,
            "epoch_is_open": self._recorder is not None and self._recorder.is_open,
            "has_classes": self._has_classes,
            "lost_identity": self._lost_identity,
            "expected_steps": self._expected_steps,
            "latest": dict(self.latest),
            "records": self.history(),
            "path": self.path.state_dict() if self.path is not None else None,
            "keeper": self.keeper.state_dict() if self.keeper is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        version = state.get("version")
        if version != _STATE_VERSION:
            raise ArgumentValueError(
                f"got a state of version {version}, and this is {_STATE_VERSION}; resume with the "
                "prioritymonitor that saved it, or start anew"
            )
        if state["lost_identity"] or not state["has_classes"]:
            self._grouping.path = None
            self._lost_identity, self._has_classes = state["lost_identity"], state["has_classes"]
        for name, part in (("path", self.path), ("keeper", self.keeper)):
            if (part is None) != (state[name] is None):
                raise ArgumentValueError(
                    f"got a state {'without' if state[name] is None else 'with'} {name!r}; make "
                    "the monitor with the same train_loader and keep_best as the one that saved it"
                )
        if self.path is not None:
            self.path.load_state_dict(state["path"])
        if self.keeper is not None:
            self.keeper.load_state_dict(state["keeper"])
        self._id = state["id"]
        self.capture.steps = state["steps"]
        self.epoch = state["epoch"]
        if self._recorder is not None:
            self._recorder.resume(state["epoch_is_open"])
        self._expected_steps = state["expected_steps"]
        self.latest = dict(state["latest"])
        self.records = [dict(record) for record in state["records"]]
        self.reports.resume_at(self.capture.steps)
