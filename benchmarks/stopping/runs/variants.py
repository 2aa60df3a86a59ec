"""The monitor's rule with one part changed at a time, to see what each part is worth.

A variant reads the history of a run epoch by epoch, and never looks ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.stopping.runs.replay import choice_of
from benchmarks.stopping.runs.rivals import Choice
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor import StopRule
from prioritymonitor.records import Record
from prioritymonitor.stopping.agreement import AT_STAKE
from prioritymonitor.stopping.priority import priority_curve, read_priority
from prioritymonitor.stopping.reading import ALIKE, WINDOW, Reading

TOLERANCE = StopRule().tolerance
PATIENCE = StopRule().patience
CONSTANT = 1.0
"""As many labels are never contradicted: the line stays where the tolerance puts it."""

History = Sequence[Record]
Readings = list[Reading | None]
"""After each epoch; None where nothing can be said."""


@dataclass(frozen=True)
class Vote:
    """The neighbours' vote with its constants open.

    Attributes:
        tolerance: Share of its highest value that the agreement must have lost.
        at_stake: Share of contradicted labels above which less is enough.
        alike: Part of the highest mean within which another can't be told from it.
        window: Epochs over which the agreement is averaged.
    """

    tolerance: float = TOLERANCE
    at_stake: float = AT_STAKE
    alike: float = ALIKE
    window: int = WINDOW

    def __call__(self, history: History) -> Readings:
        """A reading for each epoch; None where neighbours did not vote."""
        known = [(epoch, one) for epoch, one in enumerate(history, 1) if is_voted(one)]
        agreement, contradicted = (
            self._means([one[name] for _, one in known]) for name in ("agreement", "contradicted")
        )
        readings: Readings = [None] * len(history)
        highest = 0.0
        for last, (epoch, _) in enumerate(known):
            highest = max(highest, agreement[last])
            least = (1 - self.alike) * highest
            top = next(place for place in range(last, -1, -1) if agreement[place] >= least)
            peak = max(top - self.window // 2, 0)
            stake = self.at_stake / max(contradicted[peak], self.at_stake)
            line = self.tolerance * highest * stake
            fall = highest - agreement[last]
            readings[epoch - 1] = Reading("", known[peak][0], highest, fall, line)
        return readings

    def _means(self, values: Sequence[float]) -> list[float]:
        windows = (values[max(end - self.window, 0) : end] for end in range(1, len(values) + 1))
        return [sum(window) / len(window) for window in windows]


def is_voted(record: Record) -> bool:
    """Whether neighbours voted in the epoch."""
    return record["agreement"] is not None


def priority_alone(history: History) -> Readings:
    """The earlier rule: its best epoch is the last within half of the fall that stops."""
    readings: Readings = []
    for now in range(1, len(history) + 1):
        reading = read_priority(history[:now])
        if reading is not None:
            curve = priority_curve(history[:now])
            least = reading.highest - reading.line / 2
            alike = [epoch for epoch in curve if epoch >= reading.peak and curve[epoch] >= least]
            reading = replace(reading, peak=alike[-1])
        readings.append(reading)
    return readings


def joined(history: History) -> Readings:
    """The vote at a line of 5 %, or at 3 % while the priority says stop."""
    far, near = (Vote(tolerance, CONSTANT)(history) for tolerance in (0.05, 0.03))
    priority = priority_alone(history)
    return [
        one if other is None or not other.is_below else lower
        for one, lower, other in zip(far, near, priority, strict=True)
    ]


@dataclass(frozen=True)
class Variant:
    """How the rule differs.

    Attributes:
        read: What is read.
        patience: Epochs running for which it must have been below the line.
        later: Epochs after the best one whose averaged weights are taken.
        at_peak: Whether the best epoch is the peak before the line is reached, too.
    """

    read: Callable[[History], Readings]
    patience: int = PATIENCE
    later: int = 0
    at_peak: bool = False

    def __call__(self, setting: Setting, history: History) -> Choice:
        """What it takes for the best epoch, at its stop or at the end."""
        if not is_voted(history[-1]) and isinstance(self.read, Vote):
            return choice_of(setting, history)
        readings = self.read(history)
        now = self._stop(readings)
        end = now or len(readings)
        reading, best = readings[end - 1], end
        if reading is not None and (reading.is_below or self.at_peak):
            best = min(reading.peak + self.later, end)
        stopped = now is not None and now < setting.epochs
        return Choice(best * setting.views_per_epoch, end, stopped)

    def _stop(self, readings: Readings) -> int | None:
        """The epoch at whose end it stops; None: never."""
        below = 0
        for now, reading in enumerate(readings, 1):
            below = below + 1 if reading is not None and reading.is_below else 0
            if below >= self.patience:
                return now
        return None


def the_rule(setting: Setting, history: History) -> Choice:
    """By the monitor's own code."""
    return choice_of(setting, history)


def without_neighbours(setting: Setting, history: History) -> Choice:
    """What the monitor does where neighbours can't vote: priority and prediction changes."""
    nothing = dict.fromkeys(("agreement", "contradicted"))
    return choice_of(setting, [record | nothing for record in history])


def never(history: History) -> Readings:
    """No stop, the last epoch."""
    return [None] * len(history)


# The line of the priority lasts three epochs by itself.
_PRIORITY = Variant(priority_alone, patience=1, later=1, at_peak=True)

VARIANTS: dict[str, Callable[[Setting, History], Choice]] = {
    "the rule": the_rule,
    "the line at 5 %, whatever is contradicted": Variant(Vote(0.05, CONSTANT)),
    "the line at 3 %, whatever is contradicted": Variant(Vote(0.03, CONSTANT)),
    "the priority alone, the rule of earlier versions": _PRIORITY,
    "priority and prediction changes, no vote": without_neighbours,
    "the line at 5 %, at 3 % while the priority says stop": Variant(joined),
    "patience 1": Variant(Vote(), patience=1),
    "patience 2": Variant(Vote(), patience=2),
    "tolerance 4 %": Variant(Vote(tolerance=0.04)),
    "tolerance 8 %": Variant(Vote(tolerance=0.08)),
    "at stake from 2.5 % on": Variant(Vote(at_stake=0.025)),
    "at stake from 7.5 % on": Variant(Vote(at_stake=0.075)),
    "at stake from 10 % on": Variant(Vote(at_stake=0.1)),
    "weights one epoch later": Variant(Vote(), later=1),
    "no mean over epochs": Variant(Vote(window=1)),
    "means over 2 epochs": Variant(Vote(window=2)),
    "the highest mean itself": Variant(Vote(alike=0.0)),
    "alike within 1 %": Variant(Vote(alike=0.01)),
    "no stop, the last weights": Variant(never),
}
