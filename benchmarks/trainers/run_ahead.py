"""What it costs to know each batch again where loaders and loops run ahead of the training.

`python -m benchmarks.trainers.run_ahead` writes `results/trainers/run_ahead.json`. A loader that
Accelerate has prepared draws one batch ahead; the `Trainer` of transformers draws all micro-batches
of a step first. Each loop takes turns with the same loop without a monitor, in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.environment import write_results
from benchmarks.models import mlp, small_cnn
from benchmarks.overhead.pairs import CLOCKS, Case, Method, Training, compare, start
from benchmarks.tables import print_table

CASES = [
    Case("mlp", "adam", partial(mlp, 784, 512, 256, 10), (784,), 25_600, 1.10),
    Case("cnn", "adam", small_cnn, (3, 32, 32), 2_560, 1.03),
]
MICRO_BATCHES = 2


class Ahead(Training):
    """A loop that draws all micro-batches of a step before it trains on the first."""

    def endless_steps(self) -> Iterator[None]:
        while True:
            batches = iter(self.loader)
            while drawn := list(islice(batches, MICRO_BATCHES)):
                self.optimizer.zero_grad()
                for x, y in drawn:
                    (cross_entropy(self.model(x), y) / len(drawn)).backward()
                self.optimizer.step()
                yield


def prepared(case: Case, device: torch.device, kind: type[Training] = Training) -> Training:
    """A loop over objects that Accelerate has prepared."""
    from accelerate import Accelerator

    plain = start(case, device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    objects = accelerator.prepare(plain.model, plain.optimizer, plain.loader)
    return kind(*objects, device)


LOOPS: dict[str, Callable[[Case, torch.device], Training]] = {
    "plain loop": start,
    "Accelerate": prepared,
    f"Accelerate, {MICRO_BATCHES} micro-batches drawn first": partial(prepared, kind=Ahead),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="least time of a measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    method = Method(torch.device("cpu"), CLOCKS[options.clock], options.pairs, options.seconds)
    cases = [
        {"loop": loop} | compare(case_of(case, loop), method, begin)
        for case in CASES
        for loop, begin in LOOPS.items()
    ]
    report(cases)
    results = {"clock": options.clock, "cases": cases}
    print(f"results: {write_results('trainers/run_ahead', results)}")


def case_of(case: Case, loop: str) -> Case:
    """Of micro-batches that make up one batch."""
    return replace(case, batch=case.batch // MICRO_BATCHES) if "micro" in loop else case


def report(cases: list[dict[str, Any]]) -> None:
    columns = ["loop", "case", "plain_ms", "monitored_ms", "added_us", "ratio", "least", "most"]
    rows = [
        [*(one[column] for column in columns), one["bar"], one["ratio"] <= one["bar"]]
        for one in cases
    ]
    title = "Time of an optimizer step with the monitor at its defaults, and without"
    print_table(title, [*columns, "bar", "passed"], rows)


if __name__ == "__main__":
    main()
