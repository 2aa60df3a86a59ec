"""What the monitor costs at its defaults where something is large: batches, classes, data, starts.

Time is that of the process, beside plain training in one run; memory is that of fresh processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.environment import memory_mib, write_results
from benchmarks.jobs import worker_pool
from benchmarks.models import mlp
from benchmarks.overhead.pairs import CLOCKS, Case, Method, compare, start, take
from benchmarks.tables import print_table

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SAMPLES = 65_536
EVERY = 8
"""Steps of a turn: so that each turn has one that the monitor measures at its defaults."""
LARGEST, SMALLEST = (784, 512, 256, 10), (64, 64, 10)
BATCHES = (512, 2_048, 8_192)
MOST_MEMORY = 1.2
MANY, FEW = 1_000_000, 1_000
"""Samples of the largest data set, and how many suspects are asked for."""
STARTS = {"import": 0.3, "first step": 0.3}
"""Part of a start: processor seconds that the monitor may add to it."""

CASES = [
    Case(
        "-".join(map(str, widths)),
        "adam",
        partial(mlp, *widths),
        widths[:1],
        SAMPLES,
        1.10 if widths == LARGEST else None,
        batch,
        turn=EVERY,
    )
    for widths in (SMALLEST, LARGEST)
    for batch in BATCHES
] + [Case("512-512-1000", "adam", partial(mlp, 512, 512, 1000), (512,), 25_600, 1.15, 64, 1000, 8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="of loops, for each time")
    parser.add_argument("--seconds", type=float, default=1.5, help="least time of a measurement")
    parser.add_argument("--starts", type=int, default=7, help="fresh processes for each start")
    parser.add_argument("--samples", type=int, default=MANY, help="of the largest data set")
    parser.add_argument("--quick", action="store_true", help="one of each, little data")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.seconds, options.starts, options.samples = 1, 0.1, 1, 20_000
    torch.set_num_threads(1)
    method = Method(CPU, CLOCKS["cpu"], options.pairs, options.seconds)
    started = starts(options.starts)
    report_starts(started)
    many = in_fresh_process(many_samples, options.samples)
    print_table(f"{options.samples} samples", list(many), [list(many.values())])
    cases = [measure(case, method) for case in CASES[:: 3 if options.quick else 1]]
    report_cases(cases)
    results = {"clock": "cpu", "cases": cases, "starts": started, "many_samples": many}
    judged = bars(cases, started, many)
    print_table("Bars", list(judged[0]), [list(bar.values()) for bar in judged])
    if not options.quick:
        print(f"results: {write_results('overhead/large', results | {'bars': judged})}")


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    with worker_pool(1) as pool:
        return pool.submit(work, *arguments).result()


# Time and memory of a step


def measure(case: Case, method: Method) -> dict[str, Any]:
    """Time in pairs, and the peaks of resident memory of a process with and without the monitor."""
    plain, monitored = (in_fresh_process(peak_mib, case, one) for one in (False, True))
    peaks = {"plain_mib": plain, "monitored_mib": monitored, "memory": monitored / plain}
    return compare(case, method) | peaks


def peak_mib(case: Case, monitored: bool) -> float:
    """Over one epoch and the turn that follows; the whole process, torch and data included."""
    training = start(case, CPU)
    loop, steps = training.endless_steps(), len(training.loader) + case.turn
    if monitored:
        with tempfile.TemporaryDirectory() as folder, training.monitor(folder):
            take(loop, steps)
    else:
        take(loop, steps)
    return memory_mib("VmHWM")


# A start


def starts(count: int) -> dict[str, dict[str, float]]:
    """Processor seconds of the parts of a start, medians over fresh processes that take turns."""
    command = [sys.executable, "-m", "benchmarks.overhead.first_step"]
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "monitored": []}
    for _ in range(count):
        for kind, flags in (("plain", []), ("monitored", ["--monitor"])):
            text = subprocess.run(
                command + flags, cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout
            runs[kind].append(json.loads(text))
    return {
        kind: {part: median(run[part] for run in several) for part in several[0]}
        for kind, several in runs.items()
    }


# Many samples


def many_samples(count: int) -> dict[str, float]:
    """Seconds of what is asked of the monitor after an epoch with so many samples."""
    case = Case("64-64-10", "sgd", partial(mlp, *SMALLEST), (64,), count, None, 512)
    training = start(case, CPU)
    with tempfile.TemporaryDirectory() as folder:
        monitor = training.monitor(folder)
        take(training.endless_steps(), len(training.loader) + 1)
        asked = [seconds_of(lambda: monitor.suspects(FEW)) for _ in range(3)]
        return {
            "suspects": median(asked),
            "close": seconds_of(monitor.close),
            "peak_mib": memory_mib("VmHWM"),
        }


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


# Judging


def bars(
    cases: list[dict[str, Any]], started: dict[str, dict[str, float]], many: dict[str, float]
) -> list[dict[str, Any]]:
    limits = [(f"time, {case['case']}", case["ratio"], case["bar"]) for case in cases]
    limits += [(f"memory, {case['case']}", case["memory"], MOST_MEMORY) for case in cases]
    limits += [(f"start, {part}", added(started, part), most) for part, most in STARTS.items()]
    limits += [("suspects, s", many["suspects"], 0.5), ("close, s", many["close"], 3.0)]
    return [
        {"what": what, "value": value, "most": most, "passed": value <= most}
        for what, value, most in limits
        if most is not None
    ]


def added(started: dict[str, dict[str, float]], part: str) -> float:
    """Processor seconds that the monitor adds to a part of the start."""
    return started["monitored"][part] - started["plain"].get(part, 0.0)


def report_cases(cases: list[dict[str, Any]]) -> None:
    columns = ["case", "steps", "plain_ms", "monitored_ms", "ratio", "least", "most"]
    columns += ["plain_mib", "monitored_mib", "memory"]
    rows = [[case[column] for column in columns] for case in cases]
    print_table("Processor time of a step, and peak memory", columns, rows)


def report_starts(started: dict[str, dict[str, float]]) -> None:
    rows = [
        [part, started["plain"].get(part), seconds, added(started, part)]
        for part, seconds in started["monitored"].items()
    ]
    print_table("A start, processor seconds", ["part", "plain", "monitored", "added"], rows)


if __name__ == "__main__":
    main()
