"""Runs of several processes in which one rank does what it should not, with and without monitors.

`python -m benchmarks.ranks.faults --jobs N` launches each kind of `faulty.py` from 20 seeds under
`torchrun`, some with 4 ranks, and writes `results/ranks/faults.json`; what is there already is not
made again. A seed says which rank does it, at which batch.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.environment import earlier_runs, write_results
from benchmarks.ranks.faulty import END, EPOCHS, GO_ON, KINDS, LATE, drawn_place
from benchmarks.tables import print_table
from tests.ranks.launched import launch
from tests.ranks.misdeeds import LAST

SHORT_PATIENCE = 1.5
"""Seconds, for what goes on; whatever ends a run, and `LATE`, has the patience of the package."""

HANGS_AFTER = 300
"""Seconds after which a launch is taken to hang."""

MODULE = "benchmarks.ranks.faulty"
Run = dict[str, Any]


class Launch(NamedTuple):
    """Of a kind or of all that go on, from a seed."""

    kind: str
    seed: int
    ranks: int

    @property
    def kinds(self) -> tuple[str, ...]:
        return GO_ON if self.kind == "go on" else (self.kind,)


def launched(one: Launch) -> list[Run]:
    """What became of each kind in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, codes, saved = {}, {}, None
        for variant in ("without", "with") if one.kind in END else ("with",):
            arguments = [one.kind, str(one.seed), variant]
            if one.kind == "go on":
                arguments += ["--patience", str(SHORT_PATIENCE)]
            since = time.monotonic()
            try:
                saved, done = launch(
                    MODULE, folder, one.ranks, *arguments, check=False, timeout=HANGS_AFTER
                )
                codes[variant] = done.returncode
            except subprocess.TimeoutExpired:
                codes[variant] = None
            seconds[variant] = time.monotonic() - since
        if one.kind in END:
            return [verdict(one, one.kind, folder) | ended(codes, seconds)]
        is_over = codes["with"] == 0 and saved is not None
        return [
            verdict(one, kind, folder) | (went_on(kind, saved or []) if is_over else hung(codes))
            for kind in one.kinds
        ]


def verdict(one: Launch, kind: str, folder: Path) -> Run:
    """Whether each rank trained with monitors as without, step by step.

    Where a rank ends the run, the launcher ends the others within a step: as far as both came.
    """
    place = drawn_place(kind, one.seed, one.ranks)
    traces = [
        [steps_of(folder / f"{kind}, {variant}-{rank}.txt") for variant in ("without", "with")]
        for rank in range(one.ranks)
    ]
    return {
        "kind": kind,
        "seed": one.seed,
        "ranks": one.ranks,
        "faulty rank": place.rank,
        "epoch": place.epoch,
        "batch": place.batch,
        "steps": [len(plain) for plain, _ in traces],
        "changed": any(
            differ(*both, to_the_end=kind not in END or rank == place.rank)
            for rank, both in enumerate(traces)
        ),
    }


def differ(plain: list[str], watched: list[str], to_the_end: bool) -> bool:
    common = min(len(plain), len(watched))
    return plain[:common] != watched[:common] or (to_the_end and plain != watched)


def steps_of(path: Path) -> list[str]:
    """One line each; a rank that did not begin has another one for each time that it is asked."""
    return path.read_text().splitlines() if path.exists() else [f"no file at {time.monotonic()}"]


def hung(codes: dict[str, Any]) -> Run:
    """Of a launch that did not come to its end as it should."""
    return {"hung": None in codes.values(), "failed": None not in codes.values()}


def ended(codes: dict[str, Any], seconds: dict[str, float]) -> Run:
    """Of a run that is ended by what the rank did, as it is without monitors."""
    is_error = {variant: code != 0 for variant, code in codes.items()}
    return {
        "hung": codes["with"] is None,
        "failed": is_error["with"] != is_error["without"],
        "seconds": seconds["with"],
        "longer": seconds["with"] - seconds["without"],
    }


def went_on(kind: str, saved: list[Run]) -> Run:
    """Of a run that went on: by how much it took longer, and what it came to on each rank."""
    both = [[rank[f"{kind}, {variant}"] for variant in ("without", "with")] for rank in saved]
    return {
        "hung": False,
        "failed": False,
        "seconds": max(watched["seconds"] for _, watched in both),
        "longer": max(watched["seconds"] - plain["seconds"] for plain, watched in both),
        "reasons": [watched.get("decision", [None, None])[1] for _, watched in both],
    }


def summary(runs: list[Run]) -> dict[str, Any]:
    """Of each kind: launches, hangs, trainings changed, and the longest that it took longer."""
    told = {}
    for kind in KINDS:
        some = [run for run in runs if run["kind"] == kind]
        told[kind] = {
            "launches": len(some),
            "hung": sum(run["hung"] for run in some),
            "changed": sum(run["changed"] for run in some),
            "failed": sum(run["failed"] for run in some),
            "longer": max((run.get("longer", 0.0) for run in some), default=0.0),
        }
    return told


def missing(launches: int, with_four: int, runs: list[Run]) -> Iterator[Launch]:
    """What was not launched yet, what takes longest first."""
    made = {(run["kind"], run["seed"]) for run in runs}
    for kind in (LATE, "go on", *END):
        for seed in range(launches):
            one = Launch(kind, seed, 4 if seed >= launches - with_four else 2)
            if not {(kind, seed) for kind in one.kinds} <= made:
                yield one


def write(runs: list[Run]) -> str:
    runs.sort(key=lambda run: (KINDS.index(run["kind"]), run["seed"]))
    results = {
        "epochs": EPOCHS,
        "steps of an epoch": LAST,
        "hangs after": HANGS_AFTER,
        "patience, shortened": {kind: SHORT_PATIENCE for kind in GO_ON},
        "kinds": summary(runs),
        "runs": runs,
    }
    return write_results("ranks/faults", results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=20, help="of each kind")
    parser.add_argument("--with-four", type=int, default=4, help="of them with 4 ranks")
    parser.add_argument("--jobs", type=int, default=1, help="launches at a time")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    runs = earlier_runs("ranks/faults")
    with ThreadPoolExecutor(chosen.jobs) as pool:
        work = missing(chosen.launches, chosen.with_four, runs)
        for future in as_completed([pool.submit(launched, one) for one in work]):
            found = future.result()
            runs += found
            write(runs)
            for run in found:
                if run["hung"] or run["changed"] or run["failed"]:
                    print(run, flush=True)
    kinds = summary(runs)
    columns = ["launches", "hung", "changed", "failed", "longer"]
    print_table(
        "Where one rank is faulty",
        ["kind", *columns],
        [[kind, *(counts[column] for column in columns)] for kind, counts in kinds.items()],
    )
    print(write(runs))


if __name__ == "__main__":
    main()
