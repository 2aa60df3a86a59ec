"""Runs that are killed at random moments and go on from their last checkpoint.

`python -m benchmarks.robustness.kills` starts real runs of 1, 2 and 4 ranks, kills all of their
processes or one rank by SIGKILL, and starts each again, with the same number of ranks or another,
until it has ended. Decision, suspects, records and curves are compared with those of a run that
was never interrupted, and go to `results/robustness/kills.json`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.environment import earlier_runs, write_results
from benchmarks.jobs import completed
from tests.ranks.checkpoints import WAYS
from tests.ranks.killed import MOMENTS, KilledRun, compare, run_with_kills, uninterrupted

_CHOICES = (1, 1, 2, 2, 4)


def one_run(item: tuple[str, int, int, str]) -> KilledRun:
    """A way of saving, a seed, how many kills at most, and where; compared with `whole` there."""
    way, seed, kills, name = item
    chance, folder = random.Random(seed), Path(name)
    # Of an epoch's beginning, only the ranks themselves know what they have seen.
    choices = (chance.choice(_CHOICES),) if way == "in mid-epoch" else _CHOICES

    def next_launch(so_far: int) -> tuple[int, str | None]:
        return chance.choice(choices), chance.choice(MOMENTS) if so_far < kills else None

    run = run_with_kills(folder / str(seed), way, seed, chance, next_launch)
    compare(folder / str(seed), run, uninterrupted_in(folder))
    return run


def uninterrupted_in(folder: Path) -> dict[str, Any]:
    """The result of the run that was never interrupted."""
    import torch

    result: dict[str, Any] = torch.load(folder / "whole" / "0.pt", weights_only=True)
    return result


def counts(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What was done, and what came of it."""
    launches = [one for run in runs for one in run["launches"]]
    killed = [one for one in launches if one["was_killed"]]
    resumed = [
        (before["ranks"], after["ranks"])
        for run in runs
        for before, after in zip(run["launches"], run["launches"][1:], strict=False)
    ]
    return {
        "runs": len(runs),
        "kills": len(killed),
        "resumed with another number of ranks": sum(one != other for one, other in resumed),
        "other decisions": sum(bool(run["other_decision"]) for run in runs),
        "records missing or duplicated": sum(bool(run["records_missing"]) for run in runs),
        "kills by moment": dict(Counter(one["moment"] for one in killed)),
        "kills by ranks": dict(Counter(one["ranks"] for one in killed)),
        "changes of ranks": dict(Counter(f"{a} to {b}" for a, b in resumed if a != b)),
    }


def written(runs: list[dict[str, Any]]) -> str:
    """Where the results are: of all runs, those of earlier calls too."""
    by_way = {way: counts([one for one in runs if one["way"] == way]) for way in WAYS}
    results = counts(runs) | {"by way": by_way, "runs of them": runs}
    return write_results("robustness/kills", results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="at least, in all")
    parser.add_argument("--each", type=int, default=4, help="of one run at most")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--anew", action="store_true", help="forget the runs of earlier calls")
    chosen = parser.parse_args()
    runs = [] if chosen.anew else earlier_runs("robustness/kills", "runs of them")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        uninterrupted(Path(name) / "whole")
        while counts(runs)["kills"] < chosen.kills:
            first = max((run["seed"] for run in runs), default=-1) + 1
            items = [(way, first + place, chosen.each, name) for place, way in enumerate(WAYS)]
            for _, run in completed(chosen.jobs, one_run, items):
                runs.append(asdict(run))
                print(run, file=sys.stderr, flush=True)
                print(written(runs), counts(runs)["kills"], flush=True)


if __name__ == "__main__":
    main()
