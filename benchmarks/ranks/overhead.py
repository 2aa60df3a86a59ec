"""What the monitor costs under DDP with two ranks, beside what it costs a single process.

`python -m benchmarks.ranks.overhead` takes about four minutes on a quiet machine of two cores. Each
rank has the batches that the single process has: as many and as large, of a data set that is twice
as long. Loops with and without the monitor take turns in one launch, as in `overhead/pairs.py`. The
time is that of the process, all of its threads: waiting for another rank counts for nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.environment import write_results
from benchmarks.models import mlp, small_cnn
from benchmarks.overhead.pairs import CLOCKS, Case, Method, Training, compare, start
from benchmarks.ranks.scale import of_table
from benchmarks.tables import print_table
from tests.ranks.launched import launch

MOST = 1.5
"""Times what the monitor adds to a single process."""

CASES = [
    Case("MLP 784-512-256-10", "adam", partial(mlp, 784, 512, 256, 10), (784,), 12_800, None),
    Case("CNN 32×32", "adam", small_cnn, (3, 32, 32), 1_280, None),
]
CPU = torch.device("cpu")
MODULE = "benchmarks.ranks.overhead"


def start_on_rank(case: Case, device: torch.device) -> Training:
    """The same loop each time, for one rank of several."""
    whole = replace(case, samples=case.samples * dist.get_world_size())
    training = start(whole, device)
    data = training.loader.dataset
    loader = DataLoader(data, case.batch, sampler=DistributedSampler(data))
    model = torch.nn.parallel.DistributedDataParallel(training.model)
    return Training(model, training.optimizer, loader, device)


def least_of_all(seconds: float) -> float:
    spent = torch.tensor(seconds)
    dist.all_reduce(spent, dist.ReduceOp.MIN)
    return spent.item()


def measure(folder: Path, number: int, pairs: int, seconds: float) -> None:
    """In this process, alone or one of several; into a file of its own."""
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    method = Method(CPU, CLOCKS["cpu"], pairs, seconds)
    begin = start
    if ranks > 1:
        dist.init_process_group("gloo")
        method, begin = replace(method, agreed=least_of_all), start_on_rank
    found = compare(CASES[number], method, begin)
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    if ranks > 1:
        dist.destroy_process_group()


def of_case(number: int, pairs: int, seconds: float) -> dict[str, Any]:
    """What it costs a single process and each of two ranks, one after the other."""
    arguments = ["--case", str(number), "--pairs", str(pairs), "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", MODULE, name, *arguments], check=True)
        single = json.loads((folder / "0.json").read_text())
        launch(MODULE, folder, 2, *arguments, timeout=600)
        ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    of_ranks = [one["ratio"] - 1 for one in ranks]
    return {
        "case": str(CASES[number]),
        "single": single,
        "ranks": ranks,
        "added, single": single["ratio"] - 1,
        "added, ranks": of_ranks,
        "bytes": of_table(2 * CASES[number].samples)["bytes"],  # as much as 2 (R - 1) / R of it
        "times": median(of_ranks) / (single["ratio"] - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="of loops, for each time")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a measurement")
    parser.add_argument("folder", type=Path, nargs="?", help="measure in this process, into it")
    parser.add_argument("--case", type=int, default=0, help="that is measured in this process")
    chosen = parser.parse_args()
    if chosen.folder is not None:
        measure(chosen.folder, chosen.case, chosen.pairs, chosen.seconds)
        return
    cases = [of_case(number, chosen.pairs, chosen.seconds) for number in range(len(CASES))]
    columns = ["case", "added, single", "added, rank 0", "added, rank 1", "times", "passed"]
    rows = [
        [
            one["case"],
            one["added, single"],
            *one["added, ranks"],
            one["times"],
            one["times"] <= MOST,
        ]
        for one in cases
    ]
    print_table("Processor time that the monitor adds, as a share of the step", columns, rows)
    print(write_results("ranks/overhead", {"clock": "cpu", "most": MOST, "cases": cases}))


if __name__ == "__main__":
    main()
