"""The pace: which optimizer steps are measured, fixed by the user or by a budget of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from .cadence import (
    FIRST_INTERVAL,
    LONGEST_INTERVAL,
    CostRecord,
    Costs,
    next_decision,
    next_interval,
)
from .distributed import Ranks, meet
from .stopwatch import Stopwatch


class Pace(Protocol):
    """Tells which steps are measured."""

    interval: int
    """Optimizer steps from a measured one to the next, at least 1."""

    def is_measured(self, step: int) -> bool:
        """Whether to measure the step that this many others came before."""

    def step_made(self, steps: int) -> None:
        """An optimizer step was made; `steps` is their number so far."""

    def close(self) -> None:
        """No more steps will come."""

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""


class FixedPace:
    """Each `interval`-th step."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def is_measured(self, step: int) -> bool:
        """See `Pace`."""
        return step % self.interval == 0

    def step_made(self, steps: int) -> None:
        """See `Pace`."""

    def close(self) -> None:
        """See `Pace`."""

    def state_dict(self) -> dict[str, Any]:
        """See `Pace`."""
        return {"interval": self.interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The interval is what the user wants now, whatever it was."""


class BudgetPace:
    """As often as the budget allows, decided anew at fixed steps and alike on all ranks.

    Args:
        budget: Largest share of wall time to spend in the monitor, in (0, 1).
        stopwatch: Runs while the monitor does.
        say: Tells the user about a problem.
        find_ranks: Finds the ranks that train together, once training has begun.
    """

    def __init__(
        self,
        budget: float,
        stopwatch: Stopwatch,
        say: Callable[[str], None],
        find_ranks: Callable[[Callable[[str], None]], Ranks] = meet,
    ) -> None:
        self.interval = FIRST_INTERVAL
        self._budget = budget
        self._stopwatch = stopwatch
        self._say = say
        self._find_ranks = find_ranks
        self._ranks: Ranks | None = None
        self._record = CostRecord()
        self._last = stopwatch.read()
        self._steps = 0
        self._warned = False

    def is_measured(self, step: int) -> bool:
        """See `Pace`."""
        return step % self.interval == 0

    def step_made(self, steps: int) -> None:
        """See `Pace`."""
        if self._ranks is None:
            self._ranks = self._find_ranks(self._say)
        last, now = self._last, self._stopwatch.read()
        self._record.add(self.is_measured(steps - 1), now.spent - last.spent, now.now - last.now)
        if steps == next_decision(steps - 1):
            self._decide(steps, self._ranks)
            now = self._stopwatch.read()  # waiting for other ranks is no cost of the next step
        self._last, self._steps = now, steps

    def _decide(self, steps: int, ranks: Ranks) -> None:
        own = self._record.costs()
        # A rank that knows nothing yet must be heard all the same: the others wait for it.
        said = [own.fixed, own.measured] if own is not None else [-1.0, -1.0]
        agreed = ranks.largest(steps, [*said, float(self.interval)])
        if agreed is None or agreed[0] < 0:
            return
        costs = Costs(agreed[0], agreed[1])
        self.interval = next_interval(costs, self._budget, int(agreed[2]))
        if costs.share(LONGEST_INTERVAL) > self._budget and not self._warned:
            self._warned = True
            self._say(
                f"the monitor takes {costs.share(LONGEST_INTERVAL):.1%} of the time with only each "
                f"{LONGEST_INTERVAL}th step measured, more than budget={self._budget}: so much do "
                "losses, margins and kept weights cost, whether steps are measured or not"
            )

    def close(self) -> None:
        """See `Pace`."""
        if self._ranks is not None:
            self._ranks.leave(next_decision(self._steps))

    def state_dict(self) -> dict[str, Any]:
        """See `Pace`."""
        return {"interval": self.interval}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the interval; the costs are found out anew, for the machine may be another."""
        self.interval = state["interval"]
        self._record = CostRecord()


def make_pace(
    every: int | Literal["auto"], budget: float, stopwatch: Stopwatch, say: Callable[[str], None]
) -> Pace:
    """The pace that the arguments `every` and `budget` of the monitor ask for."""
    return BudgetPace(budget, stopwatch, say) if every == "auto" else FixedPace(every)
