"""What the paper claims, judged on each run by one rule per claim."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.paper.setups import Experiment

VERDICTS = ("not seen", "confirmed with a limit", "confirmed")
"""By level; an experiment has the level of its worst run."""
STRONG = 0.9
"""Rank correlation, or cosine, from which on a trend or a direction counts as held."""
ABOUT_ONE = 1.2
LATE = 2
"""Epochs by which a peak may come after the best epoch with a limit."""

Run = dict[str, Any]
Numbers = dict[str, float]
Judged = tuple[int, Numbers]


def best_epoch(run: Run) -> int:
    """The stop as the paper defines it: where the error on the clean test set is lowest."""
    errors = run["epochs"]["test_error"]
    return errors.index(min(errors))


def opposite_gradients(run: Run, experiment: Experiment) -> Judged:
    same, other = run["angles"]["clean_clean"], run["angles"]["clean_noisy"]
    near = same["median"] <= 45 and other["median"] >= 135
    apart = same["highest"] < 90 < other["lowest"]
    numbers = {
        f"{pairs}_{key}": angles[key]
        for pairs, angles in run["angles"].items()
        for key in ("median", "lowest", "highest")
    }
    return (2 if near and apart else int(apart)), numbers


def initial_ratio(run: Run, experiment: Experiment) -> Judged:
    ratio = run["epochs"]["segment_ratio"][0]
    deviation = abs(ratio / experiment.initial_ratio - 1)
    numbers = {"ratio": ratio, "theory": experiment.initial_ratio, "deviation": deviation}
    return (deviation <= 0.15) + (deviation <= 0.3), numbers


def falling_ratio(run: Run, experiment: Experiment) -> Judged:
    best = best_epoch(run)
    ratio = run["epochs"]["segment_ratio"]
    until = ratio[: best + 1]
    trend = trend_of(until)
    numbers = {
        "trend": trend,
        "rising_epochs": sum(after > before for before, after in pairwise(until)) / max(best, 1),
        "at_best": ratio[best],
        "lowest": min(until),
        "trend_of_whole_run": trend_of(ratio),
    }
    return (trend <= -STRONG) + (min(until) <= ABOUT_ONE), numbers


def noisy_peak(run: Run, experiment: Experiment) -> Judged:
    """Errors and residuals against the given labels, on noisy samples."""
    best = best_epoch(run)
    error, residual = run["epochs"]["noisy_error"], run["epochs"]["noisy_residual"]
    peak = error.index(max(error))
    rises_and_falls = error[0] < max(error) and error[-1] < max(error) - 0.05
    numbers = {
        "error_at_start": error[0],
        "error_at_peak": max(error),
        "error_at_end": error[-1],
        "peak_epoch": peak,
        "peak_minus_best": peak - best,
        "residual_peak_minus_best": residual.index(max(residual)) - best,
    }
    return rises_and_falls * ((peak <= best) + (peak <= best + LATE)), numbers


def opposed_losses(run: Run, experiment: Experiment) -> Judged:
    best = best_epoch(run)
    clean, noisy = (run["epochs"][f"{group}_loss"][: best + 1] for group in ("clean", "noisy"))
    ends = clean[-1] < clean[0] and noisy[-1] > noisy[0]
    numbers = {
        "clean_at_start": clean[0],
        "clean_at_best": clean[-1],
        "noisy_at_start": noisy[0],
        "noisy_at_best": noisy[-1],
        "trend_of_clean": trend_of(clean),
        "trend_of_noisy": trend_of(noisy),
    }
    held = numbers["trend_of_clean"] <= -STRONG and numbers["trend_of_noisy"] >= STRONG
    return ends * (1 + held), numbers


def u_shape(run: Run, experiment: Experiment) -> Judged:
    errors = run["epochs"]["test_error"]
    best = min(errors)
    rise = min(errors[0], errors[-1]) - best
    numbers = {
        "at_start": errors[0],
        "after_one": errors[1],
        "best": best,
        "last": errors[-1],
        "best_epoch": best_epoch(run),
    }
    return (rise >= 0.005) + (rise >= 0.02), numbers


def one_direction(run: Run, experiment: Experiment) -> Judged:
    """Assumption 4.1: the noisy segment is −alpha times the clean one, alpha rising."""
    best = best_epoch(run)
    cosine = run["epochs"]["segment_cosine"][: best + 1]
    alpha = run["epochs"]["alpha"][: best + 1]
    opposed = max(cosine) <= -STRONG
    starts_opposed = cosine[0] <= -STRONG and max(cosine) < 0
    rises = trend_of(alpha) >= STRONG
    numbers = {
        "cosine_at_start": cosine[0],
        "cosine_at_best": cosine[-1],
        "weakest_cosine": max(cosine),
        "alpha_at_start": alpha[0],
        "alpha_in_theory": 1 / experiment.initial_ratio,
        "alpha_at_best": alpha[-1],
        "trend_of_alpha": trend_of(alpha),
    }
    return (2 if opposed and rises else int(starts_opposed)), numbers


CLAIMS: dict[str, Callable[[Run, Experiment], Judged]] = {
    "opposite gradients": opposite_gradients,
    "initial ratio": initial_ratio,
    "falling ratio": falling_ratio,
    "noisy peak": noisy_peak,
    "opposed losses": opposed_losses,
    "u shape": u_shape,
    "one direction": one_direction,
}


def judge(claim: str, experiment: Experiment, runs: list[Run]) -> dict[str, Any]:
    """The verdict on an experiment, and its numbers over the seeds."""
    judged = [CLAIMS[claim](run, experiment) for run in runs]
    return {
        "claim": claim,
        "verdict": VERDICTS[min(level for level, _ in judged)],
        "verdicts_of_runs": [VERDICTS[level] for level, _ in judged],
        "numbers": spreads([numbers for _, numbers in judged]),
    }


def trend_of(values: list[float]) -> float:
    """Rank correlation with time: −1 where it falls in every epoch."""
    return float(spearmanr(range(len(values)), values)[0])


def spreads(rows: list[Numbers]) -> dict[str, Any]:
    """Mean, lowest and highest of each number over the runs."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: {"mean": fmean(values), "lowest": min(values), "highest": max(values)}
        for name, values in columns.items()
    }


# What the paper did not measure

SIGNALS = {
    "segment ratio below 1": ("epochs", "segment_ratio", 1.0, -1),
    "noise share above 1/2": ("epochs", "noise_share", 0.5, 1),
    "monitor: segment ratio below 1": ("steps", "segment_ratio", 1.0, -1),
    "monitor: dominance ratio below 1": ("steps", "dominance_ratio", 1.0, -1),
    "monitor: noise share above 1/2": ("steps", "noise_share", 0.5, 1),
}
"""Where from (all samples after each epoch, or the monitor's steps within it), level and side.

Of one gradient the share is above 1/2 exactly where the dominance ratio is below 1; the means of
both over steps may cross at different epochs.
"""


def crossings(run: Run) -> dict[str, dict[str, float] | None]:
    """Where each signal first says that noise dominates, and what stopping there would cost."""
    errors, best = run["epochs"]["test_error"], best_epoch(run)
    found: dict[str, dict[str, float] | None] = {}
    for name, (source, tag, level, side) in SIGNALS.items():
        beyond = [(value - level) * side > 0 for value in run[source][tag]]
        epoch = beyond.index(True) + (source == "steps") if any(beyond) else None
        found[name] = None if epoch is None else entry(epoch, errors, best)
    peak = run["epochs"]["noisy_error"]
    found["peak of the noisy training error"] = entry(peak.index(max(peak)), errors, best)
    return found


def entry(epoch: int, errors: list[float], best: int) -> dict[str, float]:
    lost = 100 * (errors[epoch] - errors[best])
    return {"epoch": epoch, "minus_best": epoch - best, "points_lost": lost}


def beyond(runs: list[Run]) -> dict[str, Any]:
    """Crossings over the seeds; cosines and shares at the start, the best epoch and the end."""
    tags = ("segment_cosine", "group_cosine", "noise_share", "dominance_ratio")
    rows = []
    for run in runs:
        places = {"at_start": 0, "at_best": best_epoch(run), "at_end": -1}
        rows.append(
            {
                f"{tag}_{place}": run["epochs"][tag][epoch]
                for tag in tags
                for place, epoch in places.items()
            }
        )
    found = [crossings(run) for run in runs]
    return {
        "best_epochs": [best_epoch(run) for run in runs],
        "crossings": {name: [one[name] for one in found] for name in found[0]},
        "numbers": spreads(rows),
        "agreement": spreads([agreement(run) for run in runs]),
    }


def agreement(run: Run) -> Numbers:
    """Rank correlation over the epochs: the monitor's batches and the whole training set."""
    found = {}
    for tag, values in run["steps"].items():
        whole = run["epochs"][tag.removesuffix("_population")][1:]
        # JSON holds None where no step of an epoch had a value.
        pairs = np.array([values, whole], float)
        found[tag] = float(spearmanr(*pairs[:, np.isfinite(pairs[0])])[0])
    return found
