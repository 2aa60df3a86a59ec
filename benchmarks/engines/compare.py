"""Per-sample gradients of all parameters in each step: the monitor beside those who can do it too.

Every method adds up the gradients of the clean and of the noisy samples, and gives the products of
both sums and the norm of each sample's gradient. Before anything is timed its answer is compared
with plain autograd's. Loops with and without a method take turns in one process; pairs of loops
start anew, and methods take turns from pair to pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks.engines.cases import CASES, Case, Training, refusal
from benchmarks.engines.memory import peak_memory
from benchmarks.engines.methods import METHODS, OURS_BY_DEFAULT, RIVALS, Plain
from benchmarks.environment import write_results
from benchmarks.overhead.pairs import CLOCKS, no_garbage_collection
from benchmarks.tables import print_table

MEASURED = "ours, closed_form"
MOST_RATIO = 1.6
MOST_RATIO_BY_DEFAULT = 1.05
MOST_MEMORY = 1.15
LEAST_TIMES = 3.0
"""Bars: step time at every step and at the defaults, memory, and the rivals' overhead over ours."""

QUICK = CASES[:4]
Entry = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """How time is measured."""

    device: torch.device
    clock: Callable[[], float]
    pairs: int
    seconds: float
    """Least time of a pair of loops."""
    most_seconds: float
    """No further pair of a method is begun after this time."""


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = CLOCKS[options.clock]
    timing = Timing(device, clock, options.pairs, options.seconds, options.most_seconds)
    cases = [case for case in CASES if case.architecture in options.models]
    results: dict[str, Any] = {"device": str(device), "clock": options.clock, "cases": []}
    for case in cases:
        entries = judge(case, options.methods, timing)
        if options.memory:
            add_memory(case, entries, device, options.threads)
        add_times_ours(entries)
        results["cases"].append(
            {"case": str(case), "methods": list(entries.values()), "bars": bars(entries)}
        )
        report(results["cases"][-1])
        path = write_results("engines/compare", results)
    print(f"results: {path}")


def parse_options() -> argparse.Namespace:
    models = [case.architecture for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="least time of a pair")
    parser.add_argument(
        "--most-seconds", type=float, default=60, help="no further pair of a method after this time"
    )
    parser.add_argument("--models", nargs="+", choices=models, default=models, metavar="MODEL")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD"
    )
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="small models, one short pair")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.seconds = 1, 0.5
        small = [case.architecture for case in QUICK]
        options.models = [model for model in options.models if model in small]
    return options


# Time


def judge(case: Case, methods: list[str], timing: Timing) -> dict[str, Entry]:
    """Time the methods that give the right answer, and say why the others don't."""
    entries: dict[str, Entry] = {}
    for name in methods:
        entries[name] = {"method": name, "refused": refusal(case, METHODS[name], timing.device)}
    able = [name for name, entry in entries.items() if entry["refused"] is None]
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in able}
    taken = dict.fromkeys(able, 0.0)
    for _ in range(timing.pairs):
        for name in able:
            if taken[name] < timing.most_seconds:
                begin = time.perf_counter()
                timed[name].append(time_pair(case, name, timing))
                taken[name] += time.perf_counter() - begin
    for name, pairs in timed.items():
        ratios = [measured / plain for plain, measured in pairs]
        entries[name] |= {
            "pairs": len(pairs),
            "plain_ms": 1e3 * median(plain for plain, _ in pairs),
            "measured_ms": 1e3 * median(measured for _, measured in pairs),
            "ratio": median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return entries


def time_pair(case: Case, method: str, timing: Timing) -> tuple[float, float]:
    """Seconds per step without and with the method."""
    plain = Training(case, Plain, timing.device)
    measured = Training(case, METHODS[method], timing.device)
    turn = max(case.turn, measured.method.every)  # one step of each turn is measured at least
    spent, steps = [0.0, 0.0], 0
    for training in (plain, measured):
        training.take(turn)
    with no_garbage_collection():
        while sum(spent) < timing.seconds:
            for side, training in enumerate((plain, measured)):
                begin = timing.clock()
                training.take(turn)
                spent[side] += timing.clock() - begin
            steps += turn
        begin = timing.clock()
        measured.method.latest()  # the monitor leaves some work until it is asked
        spent[1] += timing.clock() - begin
    measured.method.close()
    return spent[0] / steps, spent[1] / steps


# Memory and what follows


def add_memory(case: Case, entries: dict[str, Entry], device: torch.device, threads: int) -> None:
    """Add peaks in MiB, and over that of plain training."""
    plain = peak_memory(case, "plain", device, threads)
    for name, entry in entries.items():
        if entry["refused"] is None:
            entry |= peak_memory(case, name, device, threads)
            entry["memory"] = entry["peak_mib"] / plain["peak_mib"]
    entries["plain"] = {"method": "plain", "refused": None, "ratio": 1.0, "memory": 1.0} | plain


def add_times_ours(entries: dict[str, Entry]) -> None:
    """Add how many times our overhead each method has."""
    ours = entries.get(MEASURED, {}).get("ratio")
    for entry in entries.values():
        if ours is not None and "ratio" in entry:
            entry["times_ours"] = (entry["ratio"] - 1) / (ours - 1)


def bars(entries: dict[str, Entry]) -> list[dict[str, Any]]:
    """What is judged, where it was measured."""
    limits = [
        (MEASURED, "ratio", MOST_RATIO),
        (OURS_BY_DEFAULT, "ratio", MOST_RATIO_BY_DEFAULT),
        (MEASURED, "memory", MOST_MEMORY),
        *((rival, "times_ours", LEAST_TIMES) for rival in RIVALS),
    ]
    judged = []
    for name, what, bar in limits:
        value = entries.get(name, {}).get(what)
        if value is not None:
            passed = value >= bar if what == "times_ours" else value <= bar
            judged.append(
                {"method": name, "what": what, "value": value, "bar": bar, "passed": passed}
            )
    return judged


def report(result: dict[str, Any]) -> None:
    columns = ["method", "pairs", "plain_ms", "measured_ms", "ratio", "least", "most", "times_ours"]
    columns += ["peak_mib", "memory", "resident_mib"]
    able = [entry for entry in result["methods"] if entry["refused"] is None]
    rows = [[entry.get(column) for column in columns] for entry in able]
    print_table(f"{result['case']} (medians of pairs)", columns, rows)
    for entry in result["methods"]:
        if entry["refused"] is not None:
            print(f"{entry['method']} refused: {entry['refused']}")
    if result["bars"]:
        print_table("Bars", list(result["bars"][0]), [list(bar.values()) for bar in result["bars"]])


if __name__ == "__main__":
    main()
