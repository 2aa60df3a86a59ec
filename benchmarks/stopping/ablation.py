"""What each part of the monitor's rule is worth: the rule with one part changed at a time.

Reads the recordings that `grid.py` makes; nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.environment import write_results
from benchmarks.jobs import completed
from benchmarks.stopping.runs.cache import CACHE, path_of
from benchmarks.stopping.runs.settings import SEEDS, Setting, settings
from benchmarks.stopping.runs.variants import VARIANTS, visits_of
from benchmarks.tables import print_table


@dataclass(frozen=True)
class Outcome:
    """What came of a variant in a run, in points of clean accuracy."""

    gain: float
    regret: float
    spent: int
    stopped: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE, help="the recordings")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    recorded = [
        setting
        for setting in settings(options.seeds)
        if path_of(options.cache, setting, "full").is_file()
    ]
    if not recorded:
        raise SystemExit(f"no recordings in {options.cache}: run benchmarks.stopping.grid first")
    judged = dict(completed(options.jobs, outcomes_of, recorded, options.cache))
    outcomes = [judged[setting] for setting in recorded]
    rows = [row(name, recorded, [run[name] for run in outcomes]) for name in VARIANTS]
    print_table("The rule with one part changed", list(rows[0]), [list(r.values()) for r in rows])
    noisy = sum(setting.rate > 0 for setting in recorded)
    counts = {"noisy_runs": noisy, "clean_runs": len(recorded) - noisy}
    print(write_results("stopping/ablation", counts | {"variants": rows}))


def outcomes_of(setting: Setting, cache: Path) -> dict[str, Outcome]:
    """What each variant makes of a recorded run."""
    recording = torch.load(path_of(cache, setting, "full"), weights_only=True)
    visits = visits_of(recording)
    looks, raw, averaged = setting.views_per_epoch, recording["raw"], recording["averaged"]
    outcomes = {}
    for name, judge in VARIANTS.items():
        decision = judge(visits)
        assert decision.best_epoch is not None
        returned = averaged[decision.best_epoch * looks - 1]
        gain, regret = returned - max(raw), max(averaged) - returned
        outcomes[name] = Outcome(gain, regret, decision.epoch, decision.stop)
    return outcomes


def row(name: str, recorded: list[Setting], outcomes: list[Outcome]) -> dict[str, str | float]:
    """A line of the table."""
    pairs = list(zip(recorded, outcomes, strict=True))
    noisy = [outcome for setting, outcome in pairs if setting.rate]
    clean = [outcome for setting, outcome in pairs if not setting.rate]
    return {"variant": name} | dict(_summary("noisy", noisy)) | dict(_summary("clean", clean))


def _summary(kind: str, outcomes: list[Outcome]) -> Iterator[tuple[str, float]]:
    yield f"{kind}_mean_gain", fmean(outcome.gain for outcome in outcomes)
    yield f"{kind}_worst_gain", min(outcome.gain for outcome in outcomes)
    yield f"{kind}_mean_regret", fmean(outcome.regret for outcome in outcomes)
    yield f"{kind}_worst_regret", max(outcome.regret for outcome in outcomes)
    yield f"{kind}_spent", fmean(outcome.spent for outcome in outcomes)
    yield f"{kind}_stopped", fmean(outcome.stopped for outcome in outcomes)


if __name__ == "__main__":
    main()
