"""What is said of single runs, and what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from benchmarks.stopping.runs.rivals import VALIDATION
from benchmarks.stopping.runs.scores import MONITOR, Judged
from benchmarks.stopping.runs.summaries import (
    TOLD,
    WORST,
    Row,
    best_lags,
    family_mean,
    having,
    is_fine_tuning,
    is_human,
    is_pattern,
    is_slow,
)

RIVALS_SHOWN = ("Label Wave, k = 1", "noisy validation", "noisy validation by loss")
"""Beside the monitor where runs are told one by one."""


@dataclass(frozen=True)
class Bar:
    """What was asked for, and what came of it."""

    what: str
    asked: float
    at_least: bool
    """Whether more is better."""
    measured: float
    runs: int

    @property
    def met(self) -> bool:
        """Whether it is as good as was asked."""
        return self.measured >= self.asked if self.at_least else self.measured <= self.asked


def details(runs: Sequence[Judged]) -> dict[str, list[Row]]:
    """All tables of single runs, and the bars."""
    lags = best_lags(runs)
    noisy = [run for run in runs if run.setting.rate]
    clean = [run for run in runs if not run.setting.rate]
    return {
        "worst": [_row(run, lags) for run in sorted(noisy, key=_regret, reverse=True)[:WORST]],
        "clean_stops": [_row(run, lags) for run in clean if run.of(MONITOR).stopped],
        "human": [_row(run, lags) for run in runs if is_human(run.setting)],
        "slow": [_row(run, lags) for run in runs if is_slow(run.setting)],
        "fine_tuning": [_row(run, lags) for run in runs if is_fine_tuning(run.setting)],
        "bars": [asdict(bar) | {"met": bar.met} for bar in bars(runs, lags)],
    }


def _regret(run: Judged) -> float:
    return run.of(MONITOR).regret


def _row(run: Judged, lags: dict[str, int]) -> Row:
    """A run, what the monitor hands back, and the regrets of a few rivals (None: not recorded)."""
    ours, views = run.of(MONITOR), run.setting.views_per_epoch
    averaged = run.kept["curves"]["averaged"]
    return {
        "family": run.setting.family,
        "run": run.setting.group,
        "seed": run.setting.seed,
        "epochs": run.setting.epochs,
        "stopped": ours.spent if ours.stopped else None,
        "handed_back": ours.view / views,
        "best_averaged": (averaged.index(max(averaged)) + 1) / views,
        "gain": ours.gain,
        "regret": ours.regret,
        "cost": ours.cost,
        "risen": risen(run),
        "ceiling": run.ceiling,
        "last_regret": max(averaged) - averaged[-1],
        "rivals": {
            rule: run.of(rule, lag=lags[rule]).regret if rule in run.outcomes else None
            for rule in RIVALS_SHOWN
        },
    }


def risen(run: Judged) -> float:
    """Share of the rise of the averaged weights, from the first epoch to the best, by the stop."""
    ours, averaged = run.of(MONITOR), run.kept["curves"]["averaged"]
    views = run.setting.views_per_epoch
    first, best = averaged[views - 1], max(averaged)
    by_now = max(averaged[: ours.spent * views])
    return float((by_now - first) / (best - first)) if best > first else 1.0


# What was asked for


def bars(runs: Sequence[Judged], lags: dict[str, int]) -> list[Bar]:
    """All bars for which there are runs."""
    noisy = [run for run in runs if run.setting.rate]
    clean = [run for run in runs if not run.setting.rate]
    slow = [run for run in runs if is_slow(run.setting)]
    tuned = [run for run in noisy if is_fine_tuning(run.setting)]
    costs = [run.of(MONITOR).cost for run in clean if run.of(MONITOR).stopped]
    found = []
    if noisy:
        share = family_mean(noisy, _gain) / family_mean(noisy, lambda run: run.ceiling)
        found += [
            _at_most("wrong labels: regret, mean over families", 0.5, noisy),
            _at_most("wrong labels: regret, worst run", 2.5, noisy, max),
            Bar("wrong labels: gain / gain of the best epoch", 0.6, True, share, len(noisy)),
        ]
    found += _human_bars([run for run in runs if is_human(run.setting)], lags)
    if clean:
        cost = max(costs, default=0.0)
        found += [
            Bar("no wrong labels: what a stop costs, worst", 1.0, False, cost, len(clean)),
            _at_most("no wrong labels: regret, mean over families", 0.3, clean),
        ]
    if slow:
        share = min((risen(run) for run in slow if run.of(MONITOR).stopped), default=1.0)
        what = "slow beginnings: share of the rise by the stop, least"
        found.append(Bar(what, 0.9, True, share, len(slow)))
    if tuned:
        found.append(_at_most("fine-tuning, wrong labels: regret, mean", 0.5, tuned))
    return found + _pattern_bars([run for run in noisy if is_pattern(run.setting)], lags)


def _gain(run: Judged) -> float:
    return run.of(MONITOR).gain


def _at_most(
    what: str,
    asked: float,
    runs: Sequence[Judged],
    summed_up: Callable[[list[float]], float] | None = None,
) -> Bar:
    """A bar for the regret; without `summed_up` for its mean over families."""
    if summed_up is None:
        return Bar(what, asked, False, family_mean(runs, _regret), len(runs))
    return Bar(what, asked, False, summed_up([_regret(run) for run in runs]), len(runs))


def _human_bars(runs: Sequence[Judged], lags: dict[str, int]) -> list[Bar]:
    if not runs:
        return []
    leads = {
        rule: (_lead(some, rule, lags[rule]), len(some))
        for rule in lags
        if rule not in (MONITOR, *TOLD) and (some := having(runs, rule))
    }
    nearest = min(leads, key=lambda rule: leads[rule][0])
    what = f"human labels: gain minus the best rival's ({nearest})"
    return [
        Bar(what, 0.0, True, *leads[nearest]),
        _at_most("human labels: regret, mean", 0.7, runs),
    ]


def _pattern_bars(runs: Sequence[Judged], lags: dict[str, int]) -> list[Bar]:
    rules = [rule for rule in VALIDATION if rule in lags]
    some = having(runs, *rules) if rules else []
    if not some:
        return []
    nearest = min(rules, key=lambda rule: _lead(some, rule, lags[rule]))
    what = f"pattern noise: gain minus noisy validation's ({nearest})"
    return [Bar(what, 0.0, True, _lead(some, nearest, lags[nearest]), len(some))]


def _lead(runs: Sequence[Judged], rule: str, lag: int) -> float:
    return family_mean(runs, lambda run: _gain(run) - run.of(rule, lag=lag).gain)
