"""Judges stop rules by what they hand back, on clean test data that they never saw.

Gain: accuracy of the returned weights minus that of the best raw epoch of the run. Regret: that of
its best averaged epoch minus that of the returned weights. Both in points.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.stopping.runs.kept import CURVES, Kept, read_kept, records_of
from benchmarks.stopping.runs.replay import choice_of
from benchmarks.stopping.runs.rivals import RIVALS, VALIDATION, Choice, Watched
from benchmarks.stopping.runs.settings import Setting, settings

MONITOR = "prioritymonitor"
RULES = (MONITOR, *VALIDATION, *RIVALS)
RIVAL_LAGS = (0, 1, 2)
"""Averaged weights trail the raw ones; which of these epochs later suits a rule is open."""

Curves = dict[str, list[float]]


@dataclass(frozen=True)
class Outcome:
    """What came of a rule in a run."""

    weights: str
    lag: int
    """Epochs after the chosen one at which the weights are taken."""
    view: int
    """The look at the weights, from 1, that is handed back."""
    spent: int
    stopped: bool
    gain: float
    regret: float
    cost: float
    """By how many points the weights are worse than the last averaged ones of that run."""


@dataclass(frozen=True)
class Judged:
    """A run with what came of each rule."""

    setting: Setting
    kept: Kept
    outcomes: dict[str, list[Outcome]]
    """Without the rules for which nothing was recorded."""

    def of(self, rule: str, weights: str = "averaged", lag: int = 0) -> Outcome:
        """What came of a rule with these weights."""
        return next(o for o in self.outcomes[rule] if (o.weights, o.lag) == (weights, lag))

    @property
    def ceiling(self) -> float:
        """The gain of the best averaged epoch: none can be more."""
        return float(max(self.kept["curves"]["averaged"]) - max(self.kept["curves"]["raw"]))


def judged_runs(seeds: int) -> list[Judged]:
    """All runs of which something is kept."""
    return [judge(kept) for kept in read_kept(settings(seeds))]


def judge(kept: Kept) -> Judged:
    """Let every rule choose, and see what it gets."""
    setting, own, other = Setting(**kept["setting"]), kept["curves"], kept["held_out"]
    chosen = choice_of(setting, records_of(kept["history"]))
    outcomes = {MONITOR: [outcome_of(setting, own, own, chosen, *how) for how in _ways(0)]}
    if other is not None:
        run = Watched(setting.epochs, setting.views_per_epoch, {}, validation_of(other["curves"]))
        for name, validate in VALIDATION.items():
            outcomes[name] = [
                outcome_of(setting, own, other["curves"], validate(run, weights), weights, lag)
                for weights, lag in _ways(0)
            ]
    run = Watched(setting.epochs, setting.views_per_epoch, kept["signals"])
    for name, rule in RIVALS.items():
        choice = rule(run)
        ways = _ways(*RIVAL_LAGS)
        outcomes[name] = [outcome_of(setting, own, own, choice, *how) for how in ways]
    return Judged(setting, kept, outcomes)


def _ways(*lags: int) -> list[tuple[str, int]]:
    """Kinds of weights, and how long after the chosen epoch they are taken."""
    return [("raw", 0), *(("averaged", lag) for lag in lags)]


def validation_of(curves: Curves) -> Curves:
    """What `Watched` calls `validation`."""
    kinds = {"": "_validation", "_loss": "_validation_loss"}
    return {
        f"{weights}{kind}": curves[f"{weights}{name}"]
        for weights in CURVES
        for kind, name in kinds.items()
    }


def outcome_of(
    setting: Setting,
    best: Curves,
    curves: Curves,
    choice: Choice,
    weights: str = "averaged",
    lag: int = 0,
) -> Outcome:
    """Judge a choice.

    Args:
        setting: The run.
        best: Accuracies of the run whose best epochs are the standard: that on all samples.
        curves: Accuracies of the run whose weights are handed back.
        choice: What the rule said.
        weights: `"raw"` or `"averaged"`.
        lag: Epochs after the chosen one at which the weights are taken.
    """
    views = setting.views_per_epoch
    view = min(choice.view + lag * views, len(curves[weights]))
    spent = max(choice.spent, -(-view // views))
    accuracy = curves[weights][view - 1]
    return Outcome(
        weights=weights,
        lag=lag,
        view=view,
        spent=spent,
        stopped=choice.stopped and spent < setting.epochs,
        gain=accuracy - max(best["raw"]),
        regret=max(best["averaged"]) - accuracy,
        cost=curves["averaged"][-1] - accuracy,
    )
