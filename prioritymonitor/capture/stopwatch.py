"""The stopwatch: seconds of the host that a monitor takes from the training loop."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple


class Lap(NamedTuple):
    """What the stopwatch showed when something began, in seconds of the host."""

    now: float
    """Wall clock, from an arbitrary derivation."""
    spent: float
    """Time spent in the monitor so far, at least 0."""


class Stopwatch:
    """Adds up the time of the monitor's hooks; a hook within a hook does not count twice.

    It never waits for the device: work that a hook gives to an accelerator counts with the time
    that it takes to hand it over, and with any waiting that the hook does itself.
    """

    __slots__ = ("_asked", "_left_out", "_spent")

    def __init__(self) -> None:
        self._left_out = 0.0
        self._spent = 0.0
        self._asked = self.read()

    def read(self) -> Lap:
        """What it shows now."""
        return Lap(perf_counter() - self._left_out, self._spent)

    def add_since(self, began: Lap) -> None:
        """Count all the time since then, whatever was counted within it.

        There is no state in between, so that an exception at any moment spoils nothing.
        """
        self._spent = began.spent + self.read().now - began.now

    def leave_out_since(self, began: Lap) -> float:
        """Have it stand still since then: neither the monitor's time nor anyone's.

        Returns:
            The seconds.
        """
        seconds = self.read().now - began.now
        self._left_out += seconds
        return seconds

    def share(self) -> float:
        """Share of wall time spent in the monitor since this was last called, in [0, 1]."""
        before, self._asked = self._asked, self.read()
        passed = self._asked.now - before.now
        return min((self._asked.spent - before.spent) / passed, 1.0) if passed > 0 else 0.0
