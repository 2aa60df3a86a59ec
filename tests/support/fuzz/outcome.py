"""What a monitor makes of a state: refused in one clear line, or taken and then as good as any."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prioritymonitor import ArgumentValueError, GradientMonitor
from prioritymonitor.report.saved_run import read_run
from prioritymonitor.tags import EPOCH_TAGS, RECORD_KEYS, STEP_TAGS, tag_of
from tests.support.cases import CLASSES, SAMPLES
from tests.support.fuzz.saved import begun, watched
from tests.support.observed import content_of
from tests.support.small_run import SmallRun

LIMITS = {
    "any": (-math.inf, math.inf),
    "≥ 0": (0, math.inf),
    "≥ 1": (1, math.inf),
    "≤ 1": (-math.inf, 1),
    "[0, 1]": (0, 1),
    "[−1, 1]": (-1, 1),
    "0 or 1": (0, 1),
}
RANGES = {tag.name: tag.range for tag in (*EPOCH_TAGS, *STEP_TAGS)}
_TOLERANCE = 1e-4
"""Numbers in single precision are added up."""


class Logged(logging.Handler):
    """What the monitor says at WARNING."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.messages.append(record.getMessage())


class Target:
    """A run in the middle of an epoch, into which states are loaded until one is taken."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._renew()

    def _renew(self) -> None:
        self._number += 1
        self.run, self.monitor = new_run(self._folder / f"target-{self._number}")

    def load(self, state: Any) -> str | None:
        """Load a state.

        Returns:
            What is said where it is refused, after it was seen that nothing changed; None where it
            is taken.
        """
        before, files = frozen(self.monitor.state_dict()), contents(self.monitor.log_dir)
        try:
            self.monitor.load_state_dict(state)
        except ArgumentValueError as error:
            assert frozen(self.monitor.state_dict()) == before, "something was loaded"
            assert contents(self.monitor.log_dir) == files, "files were changed"
            return str(error)
        self.monitor.close()
        self._renew()
        return None


def new_run(log_dir: Path) -> tuple[SmallRun, GradientMonitor]:
    """One that stands in the middle of its second epoch."""
    run = SmallRun()
    monitor = watched(run, log_dir=log_dir)
    run.train(1)
    begun(run, monitor)
    return run, monitor


def is_clear(said: str) -> bool:
    """Whether an error is one line that says what there is and what to do."""
    return (
        said.isprintable()
        and 30 <= len(said) <= 400
        and "got " in said
        and any(word in said for word in ("resume", "save it anew", "make the monitor"))
    )


def works(state: Any, log_dir: Path) -> list[str]:
    """What is wrong after a state that was taken: nothing may be.

    It is loaded into a monitor of its own, trained on with for an epoch, and closed.
    """
    logger, said = logging.getLogger("prioritymonitor"), Logged()
    logger.addHandler(said)
    try:
        run = SmallRun()
        monitor = watched(run, log_dir=log_dir)
        monitor.load_state_dict(state)
        wrong = [*_unlikely(monitor)]
        epochs, is_on = len(monitor.history()), monitor._run.phase.name != "FAILED"
        run.train(1)
        wrong += [*_unlikely(monitor)]
        monitor.close()
        wrong += [*_unlikely(monitor)]
        # One that lacks nothing but its end is an epoch of its own.
        more = is_on * (1 + content_of(state)["epoch_is_complete"])
        if len(monitor.history()) != epochs + more:
            wrong.append(f"{epochs} epochs became {len(monitor.history())}")
        wrong += [*_restored(run, monitor), *_on_disk(monitor)]
    finally:
        logger.removeHandler(said)
    return wrong + [one for one in said.messages if "failed" in one or "is off" in one]


def _unlikely(monitor: GradientMonitor) -> Iterator[str]:
    """What can't be true in the readings."""
    yield from _of_history(monitor.history())
    yield from _of_decision(monitor)
    yield from _of_latest(monitor.latest)
    yield from _of_samples(monitor)


def _of_history(history: list[dict[str, Any]]) -> Iterator[str]:
    last = 0
    for number, record in enumerate(history, 1):
        if record["epoch"] != number or tuple(record) != RECORD_KEYS:
            yield f"record {number}: {record}"
        for name, value in record.items():
            if isinstance(value, (int, float)):
                low, high = LIMITS[RANGES.get(name, "≥ 0")]
                if not (math.isfinite(value) and low <= value <= high):
                    yield f"{name} is {value} in epoch {number}"
        if not last < record["step"] <= 2**53 + 100 or (record["best_epoch"] or 0) > number:
            yield f"epoch {number} at step {record['step']}, best {record['best_epoch']}"
        last = record["step"]
        if (record["samples_seen"] or 0) > SAMPLES:
            yield f"{record['samples_seen']} samples seen"


def _of_decision(monitor: GradientMonitor) -> Iterator[str]:
    decision, epochs = monitor.decision, len(monitor.history())
    named = [decision.epoch or 1, decision.best_epoch or 1, *decision.peak_epochs]
    if any(not 1 <= epoch <= max(epochs, 1) for epoch in named):
        yield f"{decision} after {epochs} epochs"
    if monitor.should_stop != decision.stop or monitor.best_epoch != decision.best_epoch:
        yield f"{decision}"


def _of_latest(latest: dict[str, float]) -> Iterator[str]:
    for name, value in latest.items():
        tag = tag_of(name)
        low, high = LIMITS[tag.range] if tag is not None else (math.inf, -math.inf)
        if not (math.isnan(value) or low - 0.01 <= value <= high + 0.01):
            yield f"latest {name} is {value}"


def _of_samples(monitor: GradientMonitor) -> Iterator[str]:
    samples = monitor.samples()
    inside = {
        "index": (0, SAMPLES - 1),
        "visits": (0, 100),
        "mean_margin": (-1, 1),
        "mean_error": (0, 2**0.5),
        "score": (0, 1),
        "loss": (-math.inf, math.inf),  # a user's own may be any number
        **dict.fromkeys(("given_label", "predicted_label", "vote"), (-1, CLASSES - 1)),
    }
    for name, column in samples.items():
        low, high = inside[name]
        known = column[~np.isnan(column.astype(float))]
        is_inside = (known >= low - _TOLERANCE) & (known <= high + _TOLERANCE)
        if len(column) != SAMPLES or not is_inside.all():
            yield f"{name} is {known[~is_inside][:3]}, {len(column)} samples"
    if not np.array_equal(np.isnan(samples["mean_error"]), samples["visits"] == 0):
        yield "mean errors without visits"
    suspects = monitor.suspects(min_score=0)
    scores = [one.score for one in suspects]
    if scores != sorted(scores, reverse=True) or len({one.index for one in suspects}) < len(scores):
        yield "suspects out of order, or twice"
    if not (math.isnan(monitor.noise_rate) or 0 <= monitor.noise_rate <= 1):
        yield f"noise rate {monitor.noise_rate}"
    clean = monitor.clean_indices()
    if len(clean) and not (clean.min() >= 0 and clean.max() < SAMPLES):
        yield f"clean indices {clean}"


def _restored(run: SmallRun, monitor: GradientMonitor) -> Iterator[str]:
    """Every weight comes from the kept ones, which this marks as no model's own."""
    with torch.no_grad():
        for one in run.model.parameters():
            one.fill_(1234.5)
    if monitor.restore_best() is None:
        return
    for name, one in run.model.named_parameters():
        if (one == 1234.5).all():
            yield f"{name} was not restored"


def _on_disk(monitor: GradientMonitor) -> Iterator[str]:
    if monitor.log_dir is None:
        return  # of a run that had failed
    run, samples = read_run(monitor.log_dir), monitor.samples()
    if [one["epoch"] for one in run.epochs] != [one["epoch"] for one in monitor.history()]:
        yield "other epochs in the run folder"
    if run.samples and any(
        not np.array_equal(run.samples[name], samples[name], equal_nan=True) for name in samples
    ):
        yield "other samples in the run folder"


def frozen(value: Any) -> Any:
    """Something that equals itself and nothing else, NaN included."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: frozen(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(frozen, value))
    return repr(value) if isinstance(value, float) else value


def contents(folder: Path | None) -> dict[str, bytes]:
    """Every file of the run by its name, except events, which are flushed at any time."""
    assert folder is not None
    files = [one for one in folder.iterdir() if one.is_file() and "tfevents" not in one.name]
    return {one.name: one.read_bytes() for one in files}
