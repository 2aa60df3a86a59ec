"""What ranks cost each other, from 8 to 1,024 of them: a model, and its constants as measured here.

`python -m benchmarks.ranks.scale` measures meetings and sums among processes on this machine, with
gloo and the store of torch, and writes `results/ranks/scale.json`. Processes that wait for a core
make everything longer: let the machine be quiet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import memory_mib, write_results
from benchmarks.jobs import worker_pool
from benchmarks.ranks import costs
from benchmarks.ranks.costs import Constants
from benchmarks.tables import print_table
from prioritymonitor.samples.table import SampleTable
from tests.ranks.light import on_processes, questions

MEASURED = (2, 4, 8, 16)
"""Ranks."""
RANKS, SAMPLES = (8, 64, 1_024), (50_000, 1_300_000)
HEADS = ((10, 512), (10, 2_048), (1_000, 512), (1_000, 2_048))
"""Classes and features."""
LARGE = 2**25
"""Bytes of a sum that tells what a byte costs."""


class Counted:
    """Stands for several ranks: counts what would be exchanged."""

    rank, members = 0, (0, 1)

    def __init__(self) -> None:
        self.bytes = self.calls = 0

    def total(self, tensor: Tensor) -> Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        self.calls += 1
        return tensor.cpu().clone()

    least = total


def of_table(samples: int) -> dict[str, float]:
    """Bytes that ranks exchange at an epoch's end, and that each of them keeps."""
    table, first, later = SampleTable(samples, None), Counted(), Counted()
    kept, before = table.bytes, memory_mib("VmHWM")
    table.combine(first)
    table.first_visits.vote = torch.zeros(samples, dtype=torch.int32)
    table.combine(later)
    return {
        "samples": samples,
        "bytes, first epochs": first.bytes,
        "bytes": later.bytes,
        "calls, first epochs": first.calls,
        "calls": later.calls,
        "kept MiB": kept / 2**20,
        "on the device MiB": costs.ON_DEVICE * samples / 2**20,
        "more on the host while ranks exchange MiB": memory_mib("VmHWM") - before,
    }


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def timed(work: Callable[[], Any]) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


def of_ranks(count: int, repeats: int) -> dict[str, float]:
    """Of so many processes: seconds of what they do together, the median of the slowest."""

    def work(ranks: Any, _: Any) -> dict[str, list[float]]:
        small, large, before = torch.zeros(1), torch.zeros(LARGE // 4), open_files()
        first = timed(lambda: ranks.together("first", lambda: ranks.total(small)))
        meetings = [
            timed(lambda k=k: ranks.together(str(k), lambda: None)) / 2 for k in range(repeats)
        ]
        sums, large_sums, opened = [], [], open_files() - before

        def exchange() -> None:
            sums.extend(timed(lambda: ranks.total(small)) for _ in range(repeats))
            large_sums.extend(timed(lambda: ranks.total(large)) for _ in range(3))

        ranks.together("sums", exchange)
        return {
            "first": [first],
            "meeting": meetings,
            "sum": sums,
            "large sum": large_sums,
            "files opened": [opened],
        }

    found = on_processes(count, work)
    slowest = {
        name: [max(of) for of in zip(*(one[name] for one in found), strict=True)]
        for name in found[0]
    }
    return {"ranks": count} | {name: median(several) for name, several in slowest.items()}


def of_store(count: int, seconds: float) -> dict[str, float]:
    """How many questions of so many processes the store answers in a second."""
    answered = on_processes(count, lambda _, store: questions(store, seconds))
    return {"ranks": count, "answers": sum(answered) / seconds}


def fitted(measured: list[dict[str, float]], stores: list[dict[str, float]]) -> Constants:
    """Constants by which the model comes closest to what was measured."""
    small = [one["sum"] / (2 * (one["ranks"] - 1)) for one in measured]
    large = [
        (one["large sum"] - one["sum"]) / (2 * (one["ranks"] - 1) / one["ranks"] * LARGE)
        for one in measured
        if one["ranks"] <= 4  # more take turns on few cores
    ]
    return Constants(median(one["answers"] for one in stores), median(small), median(large))


def predicted(constants: Constants, tables: list[dict[str, float]]) -> dict[str, Any]:
    """Of epochs and of reports, for numbers of ranks that nobody has here."""
    epochs = [
        {"ranks": ranks, "samples": table["samples"]}
        | asdict(costs.epoch_end(constants, ranks, table["bytes"], table["calls"]))
        for table in tables
        for ranks in RANKS
    ]
    reports = [
        {
            "ranks": ranks,
            "classes": classes,
            "features": features,
            "steps": costs.steps_at_once(classes, features),
            "of an epoch": {
                samples: costs.reports_of_an_epoch(ranks, samples, classes, features)
                for samples in SAMPLES
            },
        }
        | asdict(costs.report(constants, ranks, classes, features))
        for classes, features in HEADS
        for ranks in RANKS
    ]
    return {"epochs": epochs, "reports": reports}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=40, help="of each measurement")
    parser.add_argument("--quick", action="store_true", help="two ranks, little data, no results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    counts = MEASURED[:1] if chosen.quick else MEASURED
    measured = [of_ranks(count, chosen.repeats) for count in counts]
    stores = [of_store(count, 0.1 if chosen.quick else 1.0) for count in counts]
    tables = []
    for samples in (1_000,) if chosen.quick else SAMPLES:
        with worker_pool(1) as pool:
            tables.append(pool.submit(of_table, samples).result())
    constants = fitted(measured, stores)
    results = predicted(constants, tables)
    for title, rows in {"Measured": measured, "Store": stores, "Tables": tables, **results}.items():
        columns = [one for one in rows[0] if one != "of an epoch"]
        print_table(title, columns, [[row[one] for one in columns] for row in rows])
    print(constants)
    if not chosen.quick:
        model = {"constants": asdict(constants), **results, "batch": costs.BATCH}
        given = {"measured": measured, "store": stores, "tables": tables}
        print(write_results("ranks/scale", given | model | {"every": costs.EVERY}))


if __name__ == "__main__":
    main()
