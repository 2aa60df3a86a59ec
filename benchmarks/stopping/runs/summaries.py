"""What is said of the rules over many runs: means within each family, then over the families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.stopping.runs.rivals import VALIDATION
from benchmarks.stopping.runs.scores import MONITOR, RULES, Judged, Outcome
from benchmarks.stopping.runs.settings import Setting

TOLD = ("true ratio at most 1", "true share at least 1/2")
"""Rules that are told which labels are wrong; nobody has them in practice."""
PEOPLE = ("worse", "random2")
"""Labels by people."""
PATTERNS = ("instance", "rules")
"""Wrong labels that follow from the sample alone, as the true ones do."""
GROUP_COLUMNS = ("mean_gain", "worst_gain", "mean_regret", "worst_regret")
WORST = 10

Row = dict[str, Any]


def is_human(setting: Setting) -> bool:
    """Small networks on labels that people gave."""
    return setting.noise in PEOPLE and setting.family == "human labels"


def is_slow(setting: Setting) -> bool:
    """Whether the network learns slowly at first."""
    return setting.family == "slow and fast" and setting.optimizer != "adam-fast"


def is_fine_tuning(setting: Setting) -> bool:
    """Whether a few epochs are trained from pretrained weights."""
    return setting.family == "fine-tuning" or setting.extra == "pretrained"


def is_pattern(setting: Setting) -> bool:
    """Whether the wrong labels are a pattern."""
    return setting.noise in PATTERNS


# Means


def family_mean(runs: Sequence[Judged], value: Callable[[Judged], float]) -> float:
    """Mean within each family, then over the families."""
    return sum(value(run) * weight for run, weight in zip(runs, _weights(runs), strict=True))


def error_of_mean(runs: Sequence[Judged], value: Callable[[Judged], float]) -> float | None:
    """Of `family_mean`, over settings: the seeds of one are not independent of each other."""
    settings: dict[str, list[tuple[float, float]]] = {}
    for run, weight in zip(runs, _weights(runs), strict=True):
        key = f"{run.setting.family}: {run.setting.group}"
        settings.setdefault(key, []).append((weight, value(run)))
    mean, count = family_mean(runs, value), len(settings)
    if count < 2:
        return None
    strays = [sum(weight * (v - mean) for weight, v in several) for several in settings.values()]
    return float((sum(stray**2 for stray in strays) * count / (count - 1)) ** 0.5)


def _weights(runs: Sequence[Judged]) -> list[float]:
    families = [run.setting.family for run in runs]
    counts = {family: families.count(family) for family in families}
    return [1 / (len(counts) * counts[family]) for family in families]


def having(runs: Iterable[Judged], *rules: str) -> list[Judged]:
    """The runs in which these rules could be judged."""
    return [run for run in runs if all(rule in run.outcomes for rule in rules)]


def best_lag(runs: Sequence[Judged], rule: str) -> int:
    """The lag of the averaged weights that suits a rule best in the mean; the monitor has none.

    In favour of the rivals: in practice nobody could choose it like this.
    """
    lags = [outcome.lag for outcome in runs[0].outcomes[rule] if outcome.weights == "averaged"]
    return max(lags, key=lambda lag: family_mean(runs, lambda run: run.of(rule, lag=lag).gain))


def best_lags(runs: Sequence[Judged]) -> dict[str, int]:
    """Of each rule that could be judged on some run with wrong labels, or else on any."""
    noisy = [run for run in runs if run.setting.rate] or list(runs)
    return {rule: best_lag(some, rule) for rule in RULES if (some := having(noisy, rule))}


# Tables


def summarise(runs: Sequence[Judged]) -> dict[str, list[Row]]:
    """All tables but those of single runs."""
    lags = best_lags(runs)
    noisy = [run for run in runs if run.setting.rate]
    clean = [run for run in runs if not run.setting.rate]
    ways = [(rule, *way) for rule in lags for way in (("raw", 0), ("averaged", lags[rule]))]
    pattern = [run for run in noisy if is_pattern(run.setting)]
    people = [run for run in noisy if is_human(run.setting)]
    return {
        "noisy": [_row(some, *way) for way in ways if (some := having(noisy, way[0]))],
        "families": [_family_row(some, lags) for some in _families(noisy)],
        "people": [_family_row(people, lags)] if people else [],
        "clean": [
            _row(some, *way) | _stops(some, *way) for way in ways if (some := having(clean, way[0]))
        ],
        "clean_families": [_family_row(some, lags) for some in _families(clean)],
        "against": [
            _against(some, rule, lag)
            for rule, lag in lags.items()
            if rule != MONITOR and (some := having(noisy, rule))
        ],
        "pattern": [
            _row(some, rule, "averaged", lags[rule])
            for rule in (MONITOR, *VALIDATION)
            if (some := having(pattern, rule, *VALIDATION))
        ],
    }


def _families(runs: Sequence[Judged]) -> Iterable[list[Judged]]:
    for family in dict.fromkeys(run.setting.family for run in runs):
        yield [run for run in runs if run.setting.family == family]


def _row(runs: Sequence[Judged], rule: str, weights: str, lag: int) -> Row:
    def mean(value: Callable[[Judged, Outcome], float]) -> float:
        return family_mean(runs, lambda run: value(run, run.of(rule, weights, lag)))

    outcomes = [run.of(rule, weights, lag) for run in runs]
    return {
        "rule": rule,
        "weights": weights,
        "lag": lag,
        "runs": len(runs),
        "mean_gain": mean(lambda run, outcome: outcome.gain),
        "worst_gain": min(outcome.gain for outcome in outcomes),
        "mean_regret": mean(lambda run, outcome: outcome.regret),
        "worst_regret": max(outcome.regret for outcome in outcomes),
        "ceiling": mean(lambda run, outcome: run.ceiling),
        "share_spent": mean(lambda run, outcome: outcome.spent / run.setting.epochs),
    }


def _stops(runs: Sequence[Judged], rule: str, weights: str, lag: int) -> Row:
    """Without noise there is no reason to stop: how often it did, and what that cost."""
    outcomes = [run.of(rule, weights, lag) for run in runs]
    costs = [outcome.cost for outcome in outcomes if outcome.stopped]
    return {
        "stops": len(costs),
        "mean_cost": fmean(costs) if costs else None,
        "worst_cost": max(costs) if costs else None,
    }


def _family_row(runs: Sequence[Judged], lags: dict[str, int]) -> Row:
    """For each rule that could be judged on all of them the `GROUP_COLUMNS`, averaged weights."""
    rows = {
        rule: _row(runs, rule, "averaged", lag)
        for rule, lag in lags.items()
        if len(having(runs, rule)) == len(runs)
    }
    return {
        "family": runs[0].setting.family,
        "runs": len(runs),
        "ceiling": fmean(run.ceiling for run in runs),
        "rules": {rule: [row[column] for column in GROUP_COLUMNS] for rule, row in rows.items()},
    }


def _against(runs: Sequence[Judged], rule: str, lag: int) -> Row:
    """The monitor beside a rival on the same runs, both with averaged weights."""

    def lead(run: Judged) -> float:
        return run.of(MONITOR).gain - run.of(rule, lag=lag).gain

    mean, error = family_mean(runs, lead), error_of_mean(runs, lead)
    return {
        "rule": rule,
        "lag": lag,
        "runs": len(runs),
        "mean_difference": mean,
        "standard_error": error,
        "better": family_mean(runs, lambda run: float(lead(run) > 1e-6)),
        "as_good": family_mean(runs, lambda run: float(lead(run) > -1e-6)),
        "ahead": error is not None and mean >= 2 * error,
    }
