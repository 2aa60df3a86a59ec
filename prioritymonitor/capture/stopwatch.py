"""The stopwatch: seconds of the host that a monitor takes from the training loop."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple


class Reading(NamedTuple):
    """What the stopwatch shows, in seconds of the host."""

    now: float
    """Wall clock, from an arbitrary origin."""
    spent: float
    """Time spent in the monitor so far, at least 0."""


class Stopwatch:
    """Runs while a hook of the monitor runs; a hook within a hook does not count twice.

    It never waits for the device: work that a hook gives to an accelerator counts with the time
    that it takes to hand it over, and with any waiting that the hook does itself.
    """

    __slots__ = ("_asked", "_began", "_spent")

    def __init__(self) -> None:
        self._spent = 0.0
        self._began: float | None = None
        self._asked = self.read()

    def start(self) -> bool:
        """Begin to count; False if it counts already, and then the caller must not stop it."""
        if self._began is not None:
            return False
        self._began = perf_counter()
        return True

    def stop(self) -> None:
        """End what a `start` that returned True began."""
        assert self._began is not None
        self._spent += perf_counter() - self._began
        self._began = None

    def read(self) -> Reading:
        """What it shows now, the hook that is running included."""
        now = perf_counter()
        running = now - self._began if self._began is not None else 0.0
        return Reading(now, self._spent + running)

    def share(self) -> float:
        """Share of wall time spent in the monitor since this was last called, in [0, 1]."""
        before, self._asked = self._asked, self.read()
        passed = self._asked.now - before.now
        return min((self._asked.spent - before.spent) / passed, 1.0) if passed > 0 else 0.0
