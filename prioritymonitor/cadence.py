"""How often to measure so that the monitor stays within its share of the time: the rule alone.

Pure: no clock, no other rank. The rule is a function of the step number and of the costs that all
ranks agreed upon, so every rank measures the same steps.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_INTERVAL = 8
"""Optimizer steps between measured ones until the costs are known."""

LONGEST_INTERVAL = 256
"""Optimizer steps between measured ones at most."""

_EARLY_DECISIONS = (32, 64, 128)
_DECISION_PERIOD = 256
"""Optimizer steps between decisions after the early ones."""

_WARM_UP = 16
"""Steps that tell nothing: memory is allocated in them, kernels are compiled, files are opened."""

_BLOCK = 16
"""Steps averaged into one duration: a device that is waited for every few steps makes the steps in
between look short."""

_MOST_WINDOWS = 4
"""Decisions whose costs count, so that a slow writer or a pause of the machine passes by."""

_COMFORT = 0.7
"""Share of the budget under which a shorter interval must stay to be taken: what lies between this
and 1 is where the interval is left as it is."""


@dataclass(frozen=True)
class Costs:
    """What the monitor costs, each in units of the time that a step takes without it."""

    fixed: float
    """Cost of every step, measured or not, at least 0."""
    measured: float
    """What a measured step costs besides, at least 0."""

    def share(self, interval: int) -> float:
        """Share of wall time spent in the monitor at this interval, in [0, 1)."""
        cost = self.fixed + self.measured / interval
        return cost / (1 + cost)


def next_decision(steps: int) -> int:
    """The first number of steps made, after this one, at which the interval is decided anew."""
    for early in _EARLY_DECISIONS:
        if steps < early:
            return early
    return (steps // _DECISION_PERIOD + 1) * _DECISION_PERIOD


def next_interval(costs: Costs, budget: float, interval: int) -> int:
    """The interval to go on with.

    It is the shortest that keeps within the budget, or the present one where that is hardly longer
    than needed.

    Args:
        costs: Costs that all ranks agreed upon.
        budget: Largest share of wall time to spend in the monitor, in (0, 1).
        interval: The present interval, at least 1.

    Returns:
        A power of two up to `LONGEST_INTERVAL`, or the present one. If not even the longest keeps
        within the budget, the longest.
    """
    needed = _shortest_within(costs, budget)
    comfortable = _shortest_within(costs, _COMFORT * budget)
    return max(needed, min(interval, comfortable))


def _shortest_within(costs: Costs, budget: float) -> int:
    interval = 1
    while interval < LONGEST_INTERVAL and costs.share(interval) > budget:
        interval *= 2
    return interval


@dataclass(frozen=True)
class _Window:
    """Mean costs between two decisions, in seconds; None where no such step was made."""

    unmeasured: float | None
    measured: float | None


class CostRecord:
    """The costs of this rank, from the seconds of its steps."""

    def __init__(self) -> None:
        self._ignored = 0
        self._windows: deque[_Window] = deque(maxlen=_MOST_WINDOWS)
        self._blocks: deque[float] = deque(maxlen=_DECISION_PERIOD // _BLOCK)
        self._block: list[float] = []
        self._spent: dict[bool, list[float]] = {True: [], False: []}

    def add(self, is_measured: bool, spent: float, duration: float) -> None:
        """Take a step into account.

        Args:
            is_measured: Whether it was a measured one.
            spent: Seconds of it spent in the monitor, at least 0.
            duration: Seconds of all of it, from the end of the step before, at least `spent`.
        """
        if self._ignored < _WARM_UP:
            self._ignored += 1
            return
        self._spent[is_measured].append(spent)
        self._block.append(duration - spent)
        if len(self._block) == _BLOCK:
            self._blocks.append(statistics.fmean(self._block))
            self._block = []

    def costs(self) -> Costs | None:
        """The costs as of now, of the time since the last call and some before; None: unknown.

        Each is a mean, because what happens every 16 steps, or once per epoch, belongs to it, and
        the dearest of the latest windows is left out. The duration of a step is a median, because
        a validation or a pause does not make training steps longer.
        """
        self._windows.append(_Window(_mean(self._spent[False]), _mean(self._spent[True])))
        self._spent = {True: [], False: []}
        measured = _without_dearest([window.measured for window in self._windows])
        duration = statistics.median(self._blocks) if self._blocks else 0.0
        if measured is None or duration <= 0:
            return None
        fixed = _without_dearest([window.unmeasured for window in self._windows]) or 0.0
        return Costs(fixed / duration, max(measured - fixed, 0.0) / duration)


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _without_dearest(values: Sequence[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return _mean(known[:-1] or known)
