"""What the neighbours' votes cost: time of the first epoch, of the votes themselves, and memory.

Each pair of first epochs starts from the same weights and data: one gathers and lets the neighbours
vote, one is told not to. Time is that of the process; a plain run of 30 epochs is what it is held
against.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.environment import memory_mib, write_results
from benchmarks.models import mlp, small_cnn
from benchmarks.overhead.large import in_fresh_process, seconds_of
from benchmarks.overhead.pairs import Case, start, take
from benchmarks.tables import print_table

CPU = torch.device("cpu")
EPOCHS = 30
MOST_SHARE, MOST_BYTES, MOST_SECONDS, MOST_MIB = 0.015, 160, 2.0, 100
NUMBERS = 64
"""Of each representation."""

CASES = [
    Case("cnn", "sgd", small_cnn, (3, 32, 32), 5_120, None),
    Case("mlp", "sgd", partial(mlp, 784, 512, 256, 10), (784,), 10_240, None),
    Case("mlp", "sgd", partial(mlp, 784, 512, 256, 10), (784,), 50_000, None),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="of first epochs, for each case")
    parser.add_argument("--quick", action="store_true", help="one of each, little data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("prioritymonitor").setLevel(logging.ERROR)  # that it was told not to vote
    cases = [
        measure(case, 1 if options.quick else options.pairs)
        for case in CASES[: 1 if options.quick else None]
    ]
    print_table("The first epoch", list(cases[0]), [list(case.values()) for case in cases])
    votes = in_fresh_process(largest_votes, 5_000 if options.quick else 50_000)
    print_table("Votes", list(votes), [list(votes.values())])
    judged = bars(cases, votes)
    print_table("Bars", list(judged[0]), [list(bar.values()) for bar in judged])
    if not options.quick:
        results = {"clock": "cpu", "cases": cases, "votes": votes, "bars": judged}
        print(f"results: {write_results('overhead/neighbours', results)}")


def measure(case: Case, pairs: int) -> dict[str, Any]:
    """Seconds of an epoch plain, and of the first one without and with votes."""
    first_epoch(case, votes=True)  # so that everything is loaded
    timed = [
        (plain_epoch(case), first_epoch(case, votes=False), first_epoch(case, votes=True))
        for _ in range(pairs)
    ]
    added = [voting[0] - silent[0] for _, silent, voting in timed]
    plain = median(seconds for seconds, *_ in timed)
    return {
        "case": f"{case}, {case.samples} samples",
        "plain_s": plain,
        "silent_s": median(silent[0] for _, silent, _ in timed),
        "voting_s": median(voting[0] for *_, voting in timed),
        "of_an_epoch": median(added) / plain,
        "of_a_run": median(added) / (EPOCHS * plain),
        "least": min(added) / (EPOCHS * plain),
        "most": max(added) / (EPOCHS * plain),
        "bytes": timed[0][2][1],
    }


def plain_epoch(case: Case) -> float:
    training = start(case, CPU)
    loop = training.endless_steps()
    take(loop, 2)  # a warm optimizer
    return seconds_of(lambda: take(loop, len(training.loader)))


def first_epoch(case: Case, *, votes: bool) -> tuple[float, float]:
    """Seconds of the first epoch, and bytes that a sample takes in it."""
    training = start(case, CPU)
    loop = training.endless_steps()
    with tempfile.TemporaryDirectory() as folder, training.monitor(folder) as monitor:
        table = monitor._run.table
        if not votes:
            table.first_visits.give_up("the benchmark says so")
        before = table.bytes
        begin = time.process_time()
        take(loop, len(training.loader))
        seconds = time.process_time() - begin
        taken = (table.bytes - before) / case.samples
        begin = time.process_time()
        monitor.end_epoch()
        seconds += time.process_time() - begin
        assert (monitor.samples()["vote"] >= 0).any() == votes
    return seconds, taken


def largest_votes(samples: int) -> dict[str, float]:
    """Seconds and memory of the votes in the better of two representations."""
    from prioritymonitor.records import MOST_VOTES
    from prioritymonitor.samples.first_visits import MOST_CANDIDATES
    from prioritymonitor.samples.neighbours import best_votes

    torch.set_num_threads(1)
    candidates, asked = min(samples, MOST_CANDIDATES), min(samples, MOST_VOTES)
    both = [torch.randn(candidates, NUMBERS) for _ in range(2)]
    label = torch.randint(10, (candidates,))
    best_votes([one[:500] for one in both], label[:500], torch.arange(100))
    before = memory_mib("VmHWM")
    seconds = seconds_of(lambda: best_votes(both, label, torch.randperm(candidates)[:asked]))
    mib = memory_mib("VmHWM") - before
    return {"candidates": candidates, "asked": asked, "seconds": seconds, "mib": mib}


def bars(cases: list[dict[str, Any]], votes: dict[str, float]) -> list[dict[str, Any]]:
    limits = [(f"share of a run, {case['case']}", case["of_a_run"], MOST_SHARE) for case in cases]
    limits += [("bytes a sample", max(case["bytes"] for case in cases), MOST_BYTES)]
    limits += [("votes, s", votes["seconds"], MOST_SECONDS), ("votes, MiB", votes["mib"], MOST_MIB)]
    return [
        {"what": what, "value": value, "most": most, "passed": value <= most}
        for what, value, most in limits
    ]


if __name__ == "__main__":
    main()
