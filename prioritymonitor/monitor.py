"""`GradientMonitor`: the only place that puts the stages together."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from . import arguments
from .averaging import WeightKeeper
from .capture.loader import LoaderRecorder
from .capture.step import StepCapture
from .decision import StopRule
from .errors import ArgumentValueError, PriorityMonitorError
from .health import MOST_UNEXPLAINED, Health
from .meter import StepMeter
from .noise import KnownNoise, NoisyCallable
from .path import PriorityPath
from .records import Batch, Decision, Step, StopReason, Suspect
from .reporting.log import Log
from .reporting.run_folder import write_run
from .reporting.tensorboard import EventWriter

_EXTRA_EPOCHS_KEPT = 8
"""Epochs of weights kept beyond the patience, for a peak that moves back when labels are judged
anew."""


class GradientMonitor:
    """Watches how much of each update comes from clean and how much from noisy labels.

    Two lines go into a training script, and the training stays bit for bit what it was::

        monitor = GradientMonitor(model, optimizer, train_loader, log_dir="runs/a")
        for epoch in range(100):
            for x, y in train_loader:
                ...
            if monitor.should_stop: break
        monitor.restore_best()

    An epoch is a pass over `train_loader` in which the model was trained; epochs count from 1.
    Reference: Liu, Abedsoltan, Belkin, *On Emergence of Clean-Priority Learning in Early Stopped
    Neural Networks*, arXiv 2306.02533.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps; it trains parameters of `model`.
        train_loader: The `DataLoader` of the training data. It stays in use as it is and tells
            which samples each batch holds. Without it there is no history per sample, so no stop
            and no suspects.
        criterion: The loss as an `nn.Module` that the loop calls, or a function of (logits,
            targets). None: a cross-entropy loss on the model's logits is recognised by itself.
            Pass it for label smoothing and for any other loss.
        head: The last linear layer, whose output is the logits. None: found on the first forward
            pass.
        noisy: Known wrong labels, for experiments: bool `[n]`, one flag per sample of
            `train_loader.dataset`, or a function `(inputs, targets, index) -> bool [B]`.
        true_labels: Known true labels, for experiments: int `[n]`. Says what `noisy` says, and the
            true class of the noisy samples with it.
        scope: Which parameters the step statistics cover: `"head"`.
        engine: How per-sample gradients are obtained: `"auto"`.
        every: Step statistics are measured in each `every`-th optimizer step, at least 1. Losses
            and margins are kept in every step.
        stop: When to stop; None: measure only.
        keep_best: Weights to keep for `restore_best()`: `"averaged"`, a running average of the
            weights, `"last"`, the weights as the optimizer left them at the end of the epoch, or
            None.
        log_dir: Folder for TensorBoard events, suspects and history; None: nothing is written.
        writer: A `SummaryWriter` of yours to write to instead of `log_dir`.
        max_tracked: Larger data sets are followed by a fixed random subset of this many samples.

    Raises:
        ArgumentTypeError: An argument is of a type that cannot be used.
        ArgumentValueError: An argument has a value that cannot be used, such as an optimizer
            without parameters of the model, or `noisy` of the wrong length.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train_loader: DataLoader[Any] | None = None,
        *,
        criterion: nn.Module | Callable[..., Tensor] | None = None,
        head: nn.Module | None = None,
        noisy: Tensor | NoisyCallable | None = None,
        true_labels: Tensor | None = None,
        scope: Literal["head", "all"] = "head",
        engine: Literal["auto", "closed_form", "func", "opacus"] = "auto",
        every: int = 8,
        stop: StopRule | None = StopRule(),  # noqa: B008  it is frozen
        keep_best: Literal["averaged", "last"] | None = "averaged",
        log_dir: str | os.PathLike[str] | None = None,
        writer: Any = None,
        max_tracked: int = 1_000_000,
    ) -> None:
        optimizer = arguments.check_model_and_optimizer(model, optimizer)
        arguments.check_loader(train_loader)
        arguments.check_head(model, head)
        arguments.check_criterion(criterion, train_loader)
        arguments.check_choices(scope, engine, every, stop, keep_best, max_tracked)
        arguments.check_output(log_dir, writer)
        dataset = train_loader.dataset if train_loader is not None else None
        flags = arguments.check_noisy(noisy, dataset)
        labels = arguments.check_true_labels(true_labels, dataset)

        self._model_name = type(model).__name__
        self._every = every
        self._has_criterion = criterion is not None
        self._named_head = head is not None
        self._log = Log()
        self._health = Health()
        self._meter = StepMeter()
        self._known = None if flags is None and labels is None else KnownNoise(flags, labels)
        self._latest: dict[str, float] = {}
        self._records: list[dict[str, Any]] = []
        self._epoch = 0
        self._trained_in_pass = False
        self._failure: str | None = None
        self._closed = False

        self._folder = Path(log_dir) if log_dir is not None else None
        self._events = EventWriter(
            None if log_dir is None else str(log_dir), writer, self._writing_failed
        )
        self._recorder: LoaderRecorder | None = None
        self._path: PriorityPath | None = None
        self._keeper: WeightKeeper | None = None
        self._expected_steps = 100.0
        if train_loader is not None:
            self._recorder = LoaderRecorder(train_loader, self._pass_turns, self._failed)
            self._follow_samples(model, train_loader, stop, keep_best, max_tracked)
        self._capture = StepCapture(
            model,
            optimizer,
            criterion,
            head,
            current_batch=lambda: self._recorder.current if self._recorder is not None else None,
            is_measured=lambda step: step % every == 0,
            on_batch=self._batch_trained,
            on_step=self._step_made,
            on_error=self._failed,
        )
        self._at_exit = _closer(weakref.ref(self))
        atexit.register(self._at_exit)

    def _follow_samples(
        self,
        model: nn.Module,
        loader: DataLoader[Any],
        stop: StopRule | None,
        keep_best: str | None,
        max_tracked: int,
    ) -> None:
        assert self._recorder is not None
        size = self._recorder.dataset_size
        if size is None:
            self._log.once(
                f"the samples of train_loader have no identity, {self._recorder.no_identity}: "
                "steps are measured, there are no suspects and no stop"
            )
            return
        self._expected_steps = float(max(len(loader), 1))
        rule = stop or StopRule()
        lag = rule.average_lag if keep_best == "averaged" else 0
        self._path = PriorityPath(size, max_tracked, stop, lag)
        if keep_best is not None:
            window = rule.patience + _EXTRA_EPOCHS_KEPT
            self._keeper = WeightKeeper(model, keep_best == "averaged", window)

    # What the user reads

    @property
    def should_stop(self) -> bool:
        """True once noisy labels dominate the updates; it stays True."""
        return self.decision.stop

    @property
    def decision(self) -> Decision:
        """The latest advice with its reason."""
        if self._path is not None and (self._path.decision.stop or self._failure is None):
            return self._path.decision
        if self._failure is not None:
            return Decision(False, StopReason.FAILED, self._epoch, None, self._failure)
        message = "samples have no identity, so nothing can be said about memorised labels"
        return Decision(False, StopReason.NO_IDENTITY, self._epoch, None, message)

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights `restore_best()` would give now; None before the first."""
        wanted = self._path.decision.best_epoch if self._path is not None else None
        if wanted is None or self._keeper is None:
            return wanted
        return self._keeper.nearest(wanted)

    @property
    def noise_rate(self) -> float:
        """Estimated share of noisy labels among the samples seen, in [0, 1]; NaN before epoch 1."""
        return self._path.noise_rate if self._path is not None else float("nan")

    @property
    def latest(self) -> dict[str, float]:
        """Statistics of the last measured step by tag, without prefix; empty before the first."""
        self._report_steps()
        return dict(self._latest)

    def history(self) -> list[dict[str, Any]]:
        """One record per completed epoch, the first one first.

        Returns:
            Plain dicts with the keys `epoch`, `step`, `priority`, `noise_rate`, `train_loss`,
            `clean_loss`, `noisy_loss`, `epochs_since_peak`, `best_epoch` and `stop`. The priority
            is that of today's view of which labels are noisy, for past epochs too; everything else
            is as it was at the time. Without sample identities: `epoch` and `step` only.
        """
        records = [dict(record) for record in self._records]
        for record, priority in zip(
            records, self._path.priority if self._path else [], strict=False
        ):
            record["priority"] = priority
        return records

    def suspects(self, k: int | None = None) -> list[Suspect]:
        """The training samples, those most likely mislabelled first.

        Args:
            k: How many; None: all that were visited. Those with a score above 0.5 are taken to be
                mislabelled.

        Returns:
            Tuples `(index, score, given_label, predicted_label)`; the index is the position in
            `train_loader.dataset`. Empty before the first epoch is complete.
        """
        return self._path.suspects(k) if self._path is not None else []

    def restore_best(self) -> int | None:
        """Put the weights of the best epoch into the model, buffers included.

        Returns:
            The epoch they are from; None, and the model unchanged, if no epoch was completed.

        Raises:
            PriorityMonitorError: The monitor was made with `keep_best=None`.
        """
        epoch = self.best_epoch
        if self._keeper is None and self._path is not None:
            raise PriorityMonitorError(
                'got restore_best() with keep_best=None, which keeps no weights; use "averaged"'
            )
        if self._keeper is None or epoch is None:
            self._log.once("restore_best() left the weights as they are: no epoch was completed")
            return None
        self._keeper.restore(epoch)
        return epoch

    def __repr__(self) -> str:
        head = self._capture.head_watch.head
        return (
            f"GradientMonitor({self._model_name}, head={head}, every={self._every}, "
            f"steps={self._capture.steps}, epochs={self._epoch}, {self.decision.message!r})"
        )

    # What the hooks report

    def _batch_trained(self, batch: Batch) -> None:
        if not self._trained_in_pass and self._epoch == 0 and self._capture.steps == 0:
            self._check_first(batch)
        self._trained_in_pass = True
        self._health.add(batch)
        if self._path is not None and batch.index is not None:
            self._path.record(batch, self._known.is_noisy(batch) if self._known else None)

    def _check_first(self, batch: Batch) -> None:
        self._check_loss(float(batch.misfit))
        if batch.features is None:
            given = "the given head" if self._named_head else "no linear layer"
            self._log.once(
                f"{given} was seen to produce the model's logits, so the statistics of the head "
                "are off; losses, margins, suspects and the stop work without them"
                + ("" if self._named_head else ". Pass head= if there is such a layer")
            )

    def _check_loss(self, misfit: float) -> None:
        if misfit <= MOST_UNEXPLAINED:
            return
        if not self._has_criterion:
            raise ValueError(
                "the loss is no plain cross-entropy on the model's logits "
                f"({misfit:.1%} of their gradient is unexplained); pass the loss as criterion="
            )
        self._log.once(
            f"up to {misfit:.1%} of the logits' gradient does not come from criterion; "
            "only the criterion's own part is measured"
        )

    def _step_made(self, step: Step) -> None:
        if step.batches:
            batches = step.batches
            known, path = self._known, self._path
            if known is not None:
                weight = [known.is_noisy(batch) for batch in batches]
                true_label = [known.true_label(batch) for batch in batches]
            else:
                weight = [_momentary(batch, path) for batch in batches]
                true_label = [batch.rival for batch in batches]
            number = self._capture.steps
            self._meter.measure(number, step, torch.cat(weight), torch.cat(true_label))
        if self._keeper is not None:
            self._keeper.update(self._expected_steps)
        if self._meter.is_full:
            self._report_steps()

    def _pass_turns(self, begins: bool) -> None:
        # A pass that the loop broke off ends where the next one begins. A pass without training,
        # as for a metric on the training data, is no epoch.
        if self._trained_in_pass and self._failure is None:
            self._trained_in_pass = False
            self._end_epoch()

    def _end_epoch(self) -> None:
        self._report_steps()
        self._check_health()
        self._epoch += 1
        record: dict[str, Any] = {"epoch": self._epoch, "step": self._capture.steps}
        if self._keeper is not None:
            self._expected_steps = max(self._keeper.end_epoch(self._epoch), 1)
        if self._path is not None and not self._path.decision.stop:
            scalars, relabelled = self._path.end_epoch()
            record |= scalars
            self._check_identity(relabelled)
        self._records.append(record)
        self._log.epoch(record, self.decision)
        self._events.scalars(_numbers(record), self._capture.steps)
        if self.should_stop and "stop" in record:
            self._stopped()

    def _check_health(self) -> None:
        report = self._health.read()
        self._check_loss(report.misfit)
        if report.not_finite:
            self._log.once(
                f"{report.not_finite} batches of epoch {self._epoch + 1} had NaN or infinite "
                "logits or gradients, from the model or the loss; they were left out"
            )
        if self._recorder is not None and self._recorder.no_identity is not None and self._path:
            self._lose_identity(self._recorder.no_identity)
        elif self._path is not None and report.untraced:
            self._log.once(
                f"{report.untraced} of {report.batches} batches could not be traced to samples of "
                "train_loader: the model got another number of samples than the loader gave"
            )

    def _check_identity(self, relabelled: int) -> None:
        assert self._path is not None
        if relabelled > 0.01 * self._path.history.size:
            self._lose_identity(
                f"{relabelled} of them showed another label than before; something between "
                "train_loader and the model changes the order of batches or their labels"
            )

    def _lose_identity(self, reason: str) -> None:
        self._log.once(f"samples have no identity, {reason}: no suspects and no stop from here on")
        self._path = None

    def _stopped(self) -> None:
        decision = self.decision
        if self._keeper is not None and decision.best_epoch is not None:
            self._keeper.settle(decision.best_epoch)
        self._log.stop(decision)
        self._events.text("decision", decision.message, self._capture.steps)
        self._events.flush()
        self._write_folder()

    def _report_steps(self) -> None:
        for report in self._meter.read():
            self._latest = report.values
            self._events.scalars(report.values, report.step, report.time)

    def _write_folder(self) -> None:
        if self._folder is None or self._path is None:
            return
        try:
            write_run(self._folder, self.suspects(), self.history())
        except OSError as error:
            self._writing_failed(error)

    def _writing_failed(self, error: Exception) -> None:
        self._log.once(
            f"writing is off, measuring and training go on: {type(error).__name__}: {error}"
        )

    def _failed(self, error: Exception) -> None:
        if self._failure is not None:
            return
        self._failure = (
            f"measuring is off after step {self._capture.steps}, training goes on: "
            f"{type(error).__name__}: {error}"
        )
        self._log.once(self._failure)
        logging.getLogger("prioritymonitor").debug("the cause", exc_info=error)
        self._capture.close()
        self._events.flush()

    # State and end

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain types (`weights_only=True` loads it).

        Size: the history of the samples and the kept weights.
        """
        self._report_steps()
        return {
            "version": 1,
            "steps": self._capture.steps,
            "epoch": self._epoch,
            "trained_in_pass": self._trained_in_pass,
            "expected_steps": self._expected_steps,
            "latest": dict(self._latest),
            "records": [dict(record) for record in self._records],
            "path": self._path.state_dict() if self._path is not None else None,
            "keeper": self._keeper.state_dict() if self._keeper is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a run: the same decisions follow as without the interruption.

        Raises:
            ArgumentValueError: The state is from a run on a data set of another size, or from
                other settings of `train_loader` or `keep_best`.
        """
        for name, part in (("path", self._path), ("keeper", self._keeper)):
            if (part is None) != (state[name] is None):
                raise ArgumentValueError(
                    f"got a state {'without' if state[name] is None else 'with'} {name!r}; make "
                    "the monitor with the same train_loader and keep_best as the one that saved it"
                )
        if self._path is not None:
            self._path.load_state_dict(state["path"])
        if self._keeper is not None:
            self._keeper.load_state_dict(state["keeper"])
        self._capture.steps = state["steps"]
        self._epoch = state["epoch"]
        self._trained_in_pass = state["trained_in_pass"]
        self._expected_steps = state["expected_steps"]
        self._latest = dict(state["latest"])
        self._records = [dict(record) for record in state["records"]]

    def close(self) -> None:
        """Take every hook off, write what is left, leave model, optimizer and loader as found.

        What was measured can still be read, and `restore_best()` works.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        self._capture.close()
        if self._recorder is not None:
            self._recorder.close()
        self._report_steps()
        self._write_folder()
        self._events.close()

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _momentary(batch: Batch, path: PriorityPath | None) -> Tensor:
    from .membership import noisy_weight

    return path.membership(batch) if path is not None else noisy_weight(batch.margin)


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    skipped = ("step",)
    return {
        name: float(value)
        for name, value in record.items()
        if name not in skipped and value is not None
    }


def _closer(monitor: weakref.ref[GradientMonitor]) -> Callable[[], None]:
    """Flushes and closes at the exit of the process, without keeping the monitor alive till then."""

    def close() -> None:
        alive = monitor()
        if alive is not None:
            alive.close()

    return close
