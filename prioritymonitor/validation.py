"""The validation: the kept weights are tried on held-out samples at each epoch's end."""

from __future__ import annotations

import time

from .capture.held_out import HeldOut
from .capture.loader.first_samples import UnusableError
from .capture.stopwatch import Stopwatch
from .errors import contained, described, may_pass
from .records import Record
from .report.log import Log
from .report.sinks import Sinks
from .stopping.kept_weights import WeightKeeper


class Validation:
    """Asks what the weights predict; a failure ends this and nothing else.

    The user has asked for this work, so it counts neither as the monitor's nor as the loop's.

    Args:
        held_out: The samples; None: nothing is tried.
        stopwatch: Stands still meanwhile.
        reports: Where the seconds go.
        log: Where a problem is said.
    """

    def __init__(
        self, held_out: HeldOut | None, stopwatch: Stopwatch, reports: Sinks, log: Log
    ) -> None:
        self._held_out = held_out
        self._stopwatch = stopwatch
        self._reports = reports
        self._log = log

    def end_epoch(self, keeper: WeightKeeper | None, steps: int) -> Record:
        """The share of the held-out labels that is predicted, and their number.

        Args:
            keeper: Has the weights; None: they are as the optimizer left them.
            steps: Number of optimizer steps made.

        Returns:
            Part of the epoch's record; empty where it is not known, as after the stop, which ends
            the average of the weights.
        """
        weights = keeper.weights if keeper is not None else {}
        if self._held_out is None or weights is None:
            return {}
        record: Record = {}
        began = self._stopwatch.read()
        try:
            with contained(self._failed):
                share, count = self._held_out.tried(weights)
                record = {"validation": share, "validation_samples": count}
        finally:
            seconds = self._stopwatch.leave_out_since(began)
        if record:
            self._reports.step({"validation_seconds": seconds}, steps, time.time())
        return record

    def _failed(self, error: Exception) -> None:
        if may_pass(error):
            self._log.once(f"validation= failed and is tried again: {described(error)}")
        else:
            self._held_out = None
            why = str(error) if isinstance(error, UnusableError) else _short(error)
            self._log.once(f"validation= is off, measuring and training go on: {why}")
            self._log.cause(error)
        # What torch raises for a worker refers to itself: the workers would wait for the garbage
        # collector, which then waits for them.
        error.__traceback__ = None


def _short(error: Exception) -> str:
    """An error without the traceback that torch puts into one of a worker."""
    first, *rest = described(error).splitlines()
    return f"{first} {rest[-1]}" if rest else first
