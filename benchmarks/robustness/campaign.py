"""Faults in the user's code and in the package, let loose on training runs that are watched.

`python -m benchmarks.robustness.campaign --runs N` makes N runs, each with the monitor and without
it from one seed, and writes `results/robustness/campaign.json`. The table of faults is
`tests/support/campaign/kinds.py`; the tests make each of them once.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import write_results
from benchmarks.jobs import completed
from tests.support.campaign.kinds import FAULTS, GROUPS, OF_THE_CAPTURE
from tests.support.campaign.verdict import Verdict, judge

_HANGS_AFTER = 300.0
"""Seconds after which a run is taken to hang: its process says where, and the campaign ends."""

_COUNTED = ("runs", "lost", "changed", "left", "false_records", "stopped")


def one_run(item: tuple[str, int]) -> Verdict:
    """A fault by its name, and a seed."""
    name, seed = item
    logging.getLogger("prioritymonitor").setLevel(logging.CRITICAL + 1)
    faulthandler.dump_traceback_later(_HANGS_AFTER, exit=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        verdict = judge(FAULTS[name], seed, Path(folder))
    faulthandler.cancel_dump_traceback_later()
    return verdict


def counts(verdicts: list[Verdict]) -> dict[str, int]:
    """How many runs there were, and of which kind."""
    told = Counter(dict.fromkeys(_COUNTED, 0))
    for one in verdicts:
        told.update(
            runs=1,
            lost=bool(one.lost),
            changed=bool(one.changed),
            left=bool(one.left),
            false_records=bool(one.false_records),
            stopped=one.stopped,
        )
    return dict(told)


def summary(by_kind: dict[str, list[Verdict]]) -> dict[str, Any]:
    """Totals, and the share of runs in which the stop still came."""
    every = [one for verdicts in by_kind.values() for one in verdicts]
    outside = [
        one.stopped
        for name, verdicts in by_kind.items()
        if name not in OF_THE_CAPTURE
        for one in verdicts
    ]
    return {
        "total": counts(every),
        "kinds": len(by_kind),
        "stop still works": sum(one.stopped for one in every) / len(every),
        "stop still works, outside the capture": sum(outside) / max(len(outside), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="in all, each kind as often")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of the first run of each kind")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rounds = range(chosen.seed, chosen.seed - (-chosen.runs // len(FAULTS)))
    items = [(name, seed) for seed in rounds for name in FAULTS][: chosen.runs]
    by_kind: dict[str, list[Verdict]] = {name: [] for name in FAULTS}
    problems, began = [], time.monotonic()
    for (name, seed), verdict in completed(chosen.jobs, one_run, items):
        by_kind[name].append(verdict)
        if not verdict.is_good:
            problems.append({"fault": name, "seed": seed, **vars(verdict)})
            print(name, seed, verdict, file=sys.stderr)
    made = {name: verdicts for name, verdicts in by_kind.items() if verdicts}
    results = summary(made) | {
        "seconds": time.monotonic() - began,
        "groups": {
            group: counts([one for name in kinds for one in by_kind[name]])
            for group, kinds in GROUPS.items()
        },
        "of the capture": sorted(OF_THE_CAPTURE),
        "problems": problems,
        "by kind": {name: counts(verdicts) for name, verdicts in made.items()},
    }
    print(results["total"], f"stop {results['stop still works, outside the capture']:.1%}")
    print(write_results("robustness/campaign", results))


if __name__ == "__main__":
    main()
