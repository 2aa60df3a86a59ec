"""How well detectors rank and name wrong labels, over many runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.stopping.runs.detectors import METRICS

MONITOR, AUM, LEARNING = "monitor", "AUM", "confident learning"
FAVOURED = f"{LEARNING}, favoured"
DETECTORS = (
    *(MONITOR, AUM, LEARNING, FAVOURED),
    *("small loss, mean", "small loss, last", "EL2N"),
)
MOMENTS = ("stop", "end")
KINDS = {
    "worse": "people, 40 %",
    "random2": "people, 18 %",
    "rules": "keyword rules",
    "symmetric": "symmetric",
    "pair": "pair",
    "parts": "by parts",
    "classes": "by class",
    "flood": "one class flooded",
    "instance": "least sure",
}
"""Kinds of wrong labels, as the tables call them."""
NO_NOISE = "none"

Run = dict[str, Any]
Groups = dict[str, dict[str, Any]]
Rows = dict[str, list[float | None]]


def tables(runs: Sequence[Run]) -> dict[str, Any]:
    """Means by family and by kind of noise, and what was asked for."""
    noisy = [run for run in runs if run["rate"]]
    retrained = [run for run in runs if LEARNING in run["stop"]]
    return {
        "metrics": list(METRICS),
        "bars": bars(runs),
        **{
            moment: {
                "families": groups(noisy, moment, lambda run: run["family"]),
                "kinds": dict(sorted(groups(noisy, moment, _kind).items(), key=_place)),
                "clean": groups([run for run in runs if not run["rate"]], moment, _all),
                "retrained": groups(retrained, moment, _family_or_none),
            }
            for moment in MOMENTS
        },
    }


def groups(runs: Sequence[Run], moment: str, group_of: Callable[[Run], str]) -> Groups:
    """Means over the runs of each group."""
    several: dict[str, list[Run]] = {}
    for run in runs:
        several.setdefault(group_of(run), []).append(run)
    return {
        group: {"runs": len(some), "detectors": means([run[moment] for run in some])}
        for group, some in several.items()
    }


def means(several: Sequence[dict[str, list[float | None]]]) -> Rows:
    """Of each detector that has judged all these runs; a metric that one of them lacks is None."""
    found: Rows = {}
    for name in DETECTORS:
        if all(name in metrics for metrics in several):
            columns = zip(*(metrics[name] for metrics in several), strict=True)
            found[name] = [_mean(column) for column in columns]
    return found


def _mean(column: Sequence[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return fmean(known) if len(known) == len(column) else None


def _kind(run: Run) -> str:
    return KINDS[run["kind"]]


def _place(group: tuple[str, Any]) -> int:
    return list(KINDS.values()).index(group[0])


def _family_or_none(run: Run) -> str:
    return str(run["family"]) if run["rate"] else NO_NOISE


def _all(run: Run) -> str:
    return NO_NOISE


# What was asked for


def bars(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What was asked of the monitor at the stop, and what came of it in the mean."""
    people = [run for run in runs if run["family"] == "human labels" and run["rate"]]
    much, less = ([run for run in people if run["kind"] == kind] for kind in ("worse", "random2"))
    tuned = [run for run in runs if run["family"] == "fine-tuning" and run["kind"] == "worse"]
    symmetric = [run for run in runs if run["kind"] == "symmetric" and run["rate"]]
    asked: list[tuple[str, Sequence[Run], Callable[[Run], float], float, bool]] = [
        ("labels by people, 40 %: AUROC", much, _auroc, 0.82, True),
        ("labels by people, 40 %: best F1 − F1", much, _behind, 0.02, False),
        ("labels by people, 18 %: AUROC", less, _auroc, 0.83, True),
        ("labels by people, 18 %: best F1 − F1", less, _behind, 0.02, False),
        ("labels by people, 40 %, fine-tuned: F1", tuned, _f1, 0.8, True),
        ("symmetric noise: AUROC", symmetric, _auroc, 0.98, True),
    ]
    return [
        {
            "what": what,
            "asked": bar,
            "at_least": at_least,
            "mean": mean,
            "worst": min(values) if at_least else max(values),
            "met": mean >= bar if at_least else mean <= bar,
            "runs": len(values),
        }
        for what, some, value, bar, at_least in asked
        if some
        for values in [[value(run) for run in some]]
        for mean in [fmean(values)]
    ]


def _auroc(run: Run) -> float:
    return float(run["stop"][MONITOR][METRICS.index("auroc")])


def _f1(run: Run) -> float:
    return float(run["stop"][MONITOR][METRICS.index("f1")])


def _behind(run: Run) -> float:
    return float(run["stop"][MONITOR][METRICS.index("best_f1")] - _f1(run))
