"""The monitor's rule with one part changed at a time, to see what each part is worth.

The rule is the monitor's own, with other constants; what replaces it whole is written out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.stopping.runs.replay import choice_of
from benchmarks.stopping.runs.rivals import Choice
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor import Decision, StopReason, StopRule
from prioritymonitor.records import Record
from prioritymonitor.stopping import agreement, reading
from prioritymonitor.stopping.priority import priority_curve, read_priority
from prioritymonitor.stopping.rule import Rule, measure_only

PLACES = {"AT_STAKE": agreement, "ALIKE": reading, "WINDOW": reading, "WEIGHTS": reading}
"""Constants of the rule that nobody can pass, and the modules that have them."""
DEFAULTS: dict[str, Any] = {name: getattr(place, name) for name, place in PLACES.items()}
NEVER = 1.0
"""As many labels are never contradicted: the line stays where the tolerance puts it."""

History = Sequence[Record]


@dataclass(frozen=True)
class Variant:
    """How the rule differs.

    Attributes:
        rule: What judges the history.
        at_stake: Share of contradicted labels above which a smaller fall is enough.
        alike: Part of the highest mean within which another can't be told from it.
        window: Epochs over which the agreement is averaged.
        weights: How much each of them counts.
        later: Epochs after the best one whose averaged weights are taken.
    """

    rule: Rule = StopRule()  # noqa: RUF009  # it is frozen
    at_stake: float = DEFAULTS["AT_STAKE"]
    alike: float = DEFAULTS["ALIKE"]
    window: int = DEFAULTS["WINDOW"]
    weights: tuple[int, ...] = DEFAULTS["WEIGHTS"]
    later: int = 0

    def __call__(self, setting: Setting, history: History) -> Choice:
        """What it takes for the best epoch, at its stop or at the end."""
        values = {"AT_STAKE": self.at_stake, "ALIKE": self.alike}
        with constants(**values, WINDOW=self.window, WEIGHTS=self.weights):
            choice = choice_of(setting, history, self.rule)
        last = choice.spent * setting.views_per_epoch
        return replace(choice, view=min(choice.view + self.later * setting.views_per_epoch, last))


@contextmanager
def constants(**values: Any) -> Iterator[None]:
    """Let constants of the rule have other values for a while."""
    before = {name: getattr(PLACES[name], name) for name in values}
    try:
        for name, value in values.items():
            setattr(PLACES[name], name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(PLACES[name], name, value)


def priority_alone(history: History) -> Decision:
    """The earlier rule: the priority has been 1 % of the initial loss below its peak for 3 epochs.

    Its best epoch is the last within half of that fall.
    """
    now, found = len(history), read_priority(history)
    if found is None:
        return Decision(False, StopReason.TOO_EARLY, now, now, "")
    curve = priority_curve(history)
    least = found.highest - found.line / 2
    best = max(epoch for epoch in curve if epoch >= found.peak and curve[epoch] >= least)
    reason = StopReason.NOISY_DOMINATES if found.is_below else StopReason.CLEAN_DOMINATES
    return Decision(found.is_below, reason, now, best, "")


def joined(history: History) -> Decision:
    """The vote at a line of 5 %, or at 3 % while the priority says stop."""
    far, near = (StopRule(tolerance=tolerance)(history) for tolerance in (0.05, 0.03))
    return near if near.stop and priority_alone(history).stop else far


def without_neighbours(history: History) -> Decision:
    """What the monitor does where neighbours can't vote: priority and prediction changes."""
    return StopRule()([record | {"agreement": None} for record in history])


def last_epoch(history: History) -> Decision:
    """No stop, the last epoch."""
    return replace(measure_only(history), best_epoch=len(history))


VARIANTS: dict[str, Variant] = {
    "the rule": Variant(),
    "the line at 5 %, whatever is contradicted": Variant(at_stake=NEVER),
    "the line at 3 %, whatever is contradicted": Variant(StopRule(tolerance=0.03), NEVER),
    "the priority alone, the rule of earlier versions": Variant(priority_alone, later=1),
    "priority and prediction changes, no vote": Variant(without_neighbours),
    "the line at 5 %, at 3 % while the priority says stop": Variant(joined, NEVER),
    "patience 1": Variant(StopRule(patience=1)),
    "patience 2": Variant(StopRule(patience=2)),
    "tolerance 4 %": Variant(StopRule(tolerance=0.04)),
    "tolerance 8 %": Variant(StopRule(tolerance=0.08)),
    "at stake from 2.5 % on": Variant(at_stake=0.025),
    "at stake from 7.5 % on": Variant(at_stake=0.075),
    "at stake from 10 % on": Variant(at_stake=0.1),
    "weights one epoch later": Variant(later=1),
    "no mean over epochs": Variant(window=1),
    "means over 2 epochs": Variant(window=2),
    "plain means over 3 epochs": Variant(weights=(1, 1, 1)),
    "the highest mean itself": Variant(alike=0.0),
    "alike within 1 %": Variant(alike=0.01),
    "no stop, the last weights": Variant(last_epoch),
}
