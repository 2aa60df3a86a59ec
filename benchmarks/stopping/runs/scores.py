"""Judges stop rules by what they hand back, on clean test data that they never saw.

Gain: accuracy of the returned weights minus that of the best raw epoch of the run. Regret: that of
its best averaged epoch minus that of the returned weights. Both in points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.stopping.runs.record import Recording
from benchmarks.stopping.runs.replay import monitor_choice
from benchmarks.stopping.runs.rivals import RIVALS, VALIDATION, Choice, Watched, signals_of
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor.stopping.kept_weights import AVERAGE_LAG

MONITOR = "prioritymonitor"
RULES = (MONITOR, *VALIDATION, *RIVALS)
LAG = AVERAGE_LAG
"""Averaged weights trail the raw ones by about so many epochs; the monitor's own allowance."""
RIVAL_LAGS = (0, 1, 2)

GROUP_COLUMNS = ("mean_gain", "worst_gain", "mean_regret", "worst_regret")

Record = dict[str, Any]
Row = dict[str, Any]


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


@dataclass(frozen=True)
class Judged:
    """A run with what came of each rule."""

    setting: Setting
    record: Record
    outcomes: dict[str, list[Outcome]]

    def of(self, rule: str, weights: str, lag: int) -> Outcome:
        """What came of a rule with these weights."""
        return next(o for o in self.outcomes[rule] if (o.weights, o.lag) == (weights, lag))


# One run


def record_of(setting: Setting, full: Recording, held_out: Recording) -> Record:
    """What is kept of the two recordings of a setting: all that it takes to judge it again."""
    curves = ("raw", "averaged")
    validated = ("raw", "averaged", "raw_validation", "averaged_validation")
    signals = signals_of(setting, full)
    return {
        "setting": asdict(setting),
        "curves": {name: [round(value, 2) for value in full[name]] for name in curves},
        "held_out": {name: [round(value, 2) for value in held_out[name]] for name in validated},
        "signals": {
            name: [float(f"{value:.4g}") for value in values] for name, values in signals.items()
        },
        "monitor": asdict(monitor_choice(setting, full)),
    }


def judge(record: Record) -> Judged:
    """Let every rule choose, and see what it gets."""
    setting = Setting(**record["setting"])
    validation = {name: record["held_out"][f"{name}_validation"] for name in ("raw", "averaged")}
    run = Watched(setting.epochs, setting.views_per_epoch, record["signals"], validation)
    own, other = record["curves"], record["held_out"]
    monitor = Choice(**record["monitor"])
    outcomes = {MONITOR: [_outcome(run, own, own, monitor, *how) for how in _ways(LAG)]}
    for name, validate in VALIDATION.items():
        outcomes[name] = [
            _outcome(run, own, other, validate(run, weights), weights, lag)
            for weights, lag in _ways(0)
        ]
    for name, rule in RIVALS.items():
        choice = rule(run)
        outcomes[name] = [_outcome(run, own, own, choice, *how) for how in _ways(*RIVAL_LAGS)]
    return Judged(setting, record, outcomes)


def _ways(*lags: int) -> list[tuple[str, int]]:
    """Kinds of weights, and how long after the chosen epoch they are taken."""
    return [("raw", 0), *(("averaged", lag) for lag in lags)]


def _outcome(
    run: Watched,
    best: dict[str, list[float]],
    curves: dict[str, list[float]],
    choice: Choice,
    weights: str,
    lag: int,
) -> Outcome:
    """Judge a choice.

    Args:
        run: What the rule looked at.
        best: Accuracies of the run on all samples, whose best epochs are the standard.
        curves: Accuracies of the run whose weights are handed back.
        choice: What the rule said.
        weights: `"raw"` or `"averaged"`.
        lag: Epochs after the chosen one at which the weights are taken.
    """
    view = min(choice.view + lag * run.views_per_epoch, len(curves[weights]))
    spent = max(choice.spent, -(-view // run.views_per_epoch))
    accuracy = curves[weights][view - 1]
    gain, regret = accuracy - max(best["raw"]), max(best["averaged"]) - accuracy
    stopped = choice.stopped and spent < run.epochs
    return Outcome(weights, lag, view, spent, stopped, round(gain, 2), round(regret, 2))


# Many runs


def summarise(runs: list[Judged]) -> dict[str, list[Row]]:
    """All that is said of the rules over many runs, as tables."""
    noisy = [run for run in runs if run.setting.rate]
    clean = [run for run in runs if not run.setting.rate]
    averaged = {rule: best_lag(noisy or runs, rule) for rule in RULES}
    ways = [(rule, *way) for rule in RULES for way in _ways(averaged[rule])]
    return {
        "noisy": [_row(noisy, *way) for way in ways if noisy],
        "without_noise": [_row(clean, *way) | _wrong_stops(clean, *way) for way in ways if clean],
        "against": [_against(noisy, *way) for way in ways if noisy and way[0] != MONITOR],
        "groups": [_group_row(*group, averaged) for group in groups(noisy)],
    }


def best_lag(runs: list[Judged], rule: str) -> int:
    """The lag of the averaged weights that suits a rule best in the mean; the monitor has its own.

    In favour of the rivals: in practice nobody could choose it like this.
    """
    lags = [outcome.lag for outcome in runs[0].outcomes[rule] if outcome.weights == "averaged"]
    return max(lags, key=lambda lag: fmean(run.of(rule, "averaged", lag).gain for run in runs))


def groups(runs: list[Judged]) -> Iterable[tuple[str, str, list[Judged]]]:
    """Parts of the runs that have something in common: its kind, its value, and they."""
    kinds: dict[str, Callable[[Setting], str]] = {
        "noise": lambda setting: f"{setting.noise} {setting.rate:.0%}",
        "data": lambda setting: setting.data,
        "model": lambda setting: setting.model,
        "optimizer": lambda setting: setting.optimizer,
        "schedule": lambda setting: setting.schedule,
        "extra": lambda setting: setting.extra,
        "setting": lambda setting: setting.group,
    }
    for kind, value_of in kinds.items():
        for value in dict.fromkeys(value_of(run.setting) for run in runs):
            yield kind, value, [run for run in runs if value_of(run.setting) == value]


def _group_row(by: str, value: str, runs: list[Judged], lags: dict[str, int]) -> Row:
    """For each rule the `GROUP_COLUMNS`, with averaged weights."""
    rows = {rule: _row(runs, rule, "averaged", lag) for rule, lag in lags.items()}
    columns = {rule: [row[column] for column in GROUP_COLUMNS] for rule, row in rows.items()}
    return {"by": by, "value": value, "runs": len(runs), "rules": columns}


def _row(runs: list[Judged], rule: str, weights: str, lag: int) -> Row:
    outcomes = [run.of(rule, weights, lag) for run in runs]
    shares = [o.spent / run.setting.epochs for run, o in zip(runs, outcomes, strict=True)]
    gains, regrets = [o.gain for o in outcomes], [o.regret for o in outcomes]
    return {
        "rule": rule,
        "weights": weights,
        "lag": lag,
        "runs": len(runs),
        "mean_gain": fmean(gains),
        "worst_gain": min(gains),
        "mean_regret": fmean(regrets),
        "worst_regret": max(regrets),
        "mean_spent": fmean(outcome.spent for outcome in outcomes),
        "share_spent": fmean(shares),
    }


def _wrong_stops(runs: list[Judged], rule: str, weights: str, lag: int) -> Row:
    """Without noise there is no reason to stop."""
    stops = [run.of(rule, weights, lag).stopped for run in runs]
    return {"wrong_stops": sum(stops), "share_stopped": fmean(stops)}


def _against(runs: list[Judged], rule: str, weights: str, lag: int) -> Row:
    """The monitor, with averaged weights, beside a rival on the same runs."""
    differences = [
        run.of(MONITOR, "averaged", LAG).gain - run.of(rule, weights, lag).gain for run in runs
    ]
    return {
        "rule": rule,
        "weights": weights,
        "lag": lag,
        "runs": len(runs),
        "mean_difference": fmean(differences),
        "standard_error": _error_of_mean(runs, differences),
        "better": fmean(difference > 1e-6 for difference in differences),
        "better_or_equal": fmean(difference > -1e-6 for difference in differences),
    }


def _error_of_mean(runs: list[Judged], values: list[float]) -> float | None:
    """Over settings: the seeds of one setting are not independent of each other."""
    by_setting: dict[str, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        by_setting.setdefault(run.setting.group, []).append(value)
    means = [fmean(several) for several in by_setting.values()]
    return stdev(means) / len(means) ** 0.5 if len(means) > 1 else None
