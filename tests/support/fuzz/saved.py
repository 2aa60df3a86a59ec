"""States of real runs, one for each way in which a run may stand when it is saved."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from prioritymonitor import Decision, GradientMonitor, StopReason
from tests.support.cases import CLASSES
from tests.support.small_run import SmallRun

State = dict[str, Any]


def stops_at_two(history: list[dict[str, Any]]) -> Decision:
    """A rule that says stop after the second epoch, and takes the first for the best."""
    now = len(history)
    stop = now >= 2
    reason = StopReason.NOISY_DOMINATES if stop else StopReason.CLEAN_DOMINATES
    return Decision(stop, reason, now, 1, "as the test says", (1,))


def begun(run: SmallRun, monitor: GradientMonitor) -> None:
    """Two steps."""
    batches = iter(run.loader)
    for _ in range(2):
        run.step(*next(batches)[:2])


def mid_epoch(run: SmallRun, monitor: GradientMonitor) -> None:
    """Three epochs, and two steps."""
    run.train(3)
    begun(run, monitor)


def stopped(run: SmallRun, monitor: GradientMonitor) -> None:
    """A stop, and one more epoch."""
    run.train(3)


def identity_lost(run: SmallRun, monitor: GradientMonitor) -> None:
    """Batches whose labels are not those that the loader gave."""
    run.train(2)
    for x, y, _index in run.loader:
        run.step(x, (y + 1) % CLASSES)
    run.train(1)


def failed(run: SmallRun, monitor: GradientMonitor) -> None:
    """An error of ours in the middle of an epoch."""
    run.train(1)

    def fails(*arguments: Any) -> None:
        raise ZeroDivisionError

    monitor._run.loop.observed = fails  # type: ignore[method-assign]
    run.train(1)


PHASES: dict[str, Callable[[SmallRun, GradientMonitor], None]] = {
    "begun": begun,
    "mid-epoch": mid_epoch,
    "stopped": stopped,
    "identity lost": identity_lost,
    "failed": failed,
}


def watched(run: SmallRun, **options: Any) -> GradientMonitor:
    """A monitor of the kind that saved the states."""
    return run.watched(every=1, stop=stops_at_two, **options)


@cache
def _bytes_of(phase: str) -> bytes:
    run = SmallRun()
    rule = None if phase != "stopped" else stops_at_two
    monitor = run.watched(every=1, stop=rule)
    PHASES[phase](run, monitor)
    file = io.BytesIO()
    torch.save(monitor.state_dict(), file)
    monitor.close()
    return file.getvalue()


def saved(phase: str) -> State:
    """What `torch.load` gives of a run in that phase; new each time."""
    state: State = torch.load(io.BytesIO(_bytes_of(phase)), weights_only=True)
    return state
