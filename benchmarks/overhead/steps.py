"""What the monitor costs: time of a training step with it, at its defaults, and without it.

Both loops run in one process and take turns of a few steps each, so that a machine that is busy
with other work slows both alike. The cost of a step is the median over pairs of runs of the ratio
of their times, each pair from the same start. The clock `cpu` counts the time of this process only.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.environment import write_results
from benchmarks.models import make_optimizer, mlp, small_cnn
from benchmarks.overhead.profiling import PackageProfile
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor

BATCH = 128
TURN = 4
"""Steps of a turn."""
LONG_STEPS = 10_000
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "nothing written": {"log_dir": None},
    "no weights kept": {"keep_best": None},
    "no step statistics": {"every": 1_000_000},
    "no samples followed": {"train_loader": None},
    "losses of samples only": {"every": 1_000_000, "keep_best": None, "log_dir": None},
}
"""Arguments that switch a part of the monitor off."""


@dataclass(frozen=True)
class Case:
    """A network with random data of the right shape."""

    network: str
    optimizer: str
    make_model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int
    bar: float

    def __str__(self) -> str:
        return f"{self.network}, {self.optimizer}"


@dataclass(frozen=True)
class Method:
    """How time is measured."""

    device: torch.device
    clock: Callable[[], float]
    pairs: int
    seconds: float
    """Least time of a measurement."""


@dataclass
class Training:
    """A training loop at its start."""

    model: nn.Module
    optimizer: Optimizer
    loader: DataLoader[tuple[Tensor, ...]]
    device: torch.device

    def endless_steps(self) -> Iterator[None]:
        """A training step at each `next()`."""
        while True:
            for x, y in self.loader:
                x, y = x.to(self.device), y.to(self.device)
                self.optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(x), y).backward()
                self.optimizer.step()
                yield

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def monitor(self, folder: str, **options: Any) -> GradientMonitor:
        """A monitor at its defaults, but for these options."""
        arguments = {"train_loader": self.loader, "log_dir": folder} | options
        return GradientMonitor(self.model, self.optimizer, **arguments)


CASES = [
    Case(network, optimizer, make_model, shape, samples, bar)
    for network, make_model, shape, samples, bar in (
        ("cnn", small_cnn, (3, 32, 32), 2_560, 1.03),
        ("mlp", lambda: mlp(784, 512, 256, 10), (784,), 25_600, 1.10),
    )
    for optimizer in ("sgd", "adam")
]
PROFILED = CASES[2]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    device, clock = torch.device(options.device), CLOCKS[options.clock]
    method = Method(device, clock, options.pairs, options.seconds)
    results: dict[str, Any] = {"batch": BATCH, "device": str(device), "clock": options.clock}
    results["cases"] = [compare(case, method) for case in CASES]
    report(results["cases"])
    if options.profile:
        results["profile"] = switch_off_parts(PROFILED, method) | profile(PROFILED, device)
    if options.long:
        results["long"] = long_run(PROFILED, device)
    print(f"\nresults: {write_results('overhead/steps', results)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2, help="least time of a measurement")
    parser.add_argument("--profile", action="store_true", help="where the monitor's time goes")
    parser.add_argument("--long", action="store_true", help=f"memory over {LONG_STEPS} steps")
    return parser.parse_args()


def start(case: Case, device: torch.device) -> Training:
    """The same loop each time: same weights, same data, same order."""
    torch.manual_seed(0)
    images, labels = torch.randn(case.samples, *case.shape), torch.randint(10, (case.samples,))
    model = case.make_model().to(device)
    optimizer = make_optimizer(case.optimizer, model.parameters())
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True)
    return Training(model, optimizer, loader, device)


def compare(case: Case, method: Method, **options: Any) -> dict[str, Any]:
    """Time the loop without and with the monitor, pair by pair."""
    timed = [time_pair(case, method, options) for _ in range(method.pairs)]
    ratios = [monitored / plain for plain, monitored, _ in timed]
    return {
        "case": str(case),
        "steps": sum(steps for *_, steps in timed),
        "plain_ms": 1e3 * median(plain for plain, _, _ in timed),
        "monitored_ms": 1e3 * median(monitored for _, monitored, _ in timed),
        "added_us": 1e6 * median(monitored - plain for plain, monitored, _ in timed),
        "ratio": median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "bar": case.bar,
        "ratios": ratios,
    }


def time_pair(case: Case, method: Method, options: dict[str, Any]) -> tuple[float, float, int]:
    """Seconds per step without and with the monitor, and over how many steps."""
    plain, watched = start(case, method.device), start(case, method.device)
    spent, steps = [0.0, 0.0], 0
    with tempfile.TemporaryDirectory() as folder, watched.monitor(folder, **options):
        loops = [plain.endless_steps(), watched.endless_steps()]
        for loop in loops:
            take(loop, len(plain.loader))  # an epoch of warm-up
        with no_garbage_collection():
            while min(spent) < method.seconds:
                for side, (training, loop) in enumerate(zip((plain, watched), loops, strict=True)):
                    training.synchronize()
                    begin = method.clock()
                    take(loop, TURN)
                    training.synchronize()
                    spent[side] += method.clock() - begin
                steps += TURN
    return spent[0] / steps, spent[1] / steps, steps


def take(loop: Iterator[None], steps: int) -> None:
    for _ in range(steps):
        next(loop)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def report(cases: list[dict[str, Any]]) -> None:
    columns = ["case", "steps", "plain_ms", "monitored_ms", "added_us", "ratio", "least", "most"]
    rows = [
        [*(entry[column] for column in columns), entry["bar"], entry["ratio"] <= entry["bar"]]
        for entry in cases
    ]
    title = "Time of a step with the monitor at its defaults, and without (median of pairs)"
    print_table(title, [*columns, "bar", "passed"], rows)


def switch_off_parts(case: Case, method: Method) -> dict[str, Any]:
    """What is left of the cost when parts are switched off by argument."""
    variants = {name: compare(case, method, **options) for name, options in VARIANTS.items()}
    columns = ["added_us", "ratio", "least", "most"]
    rows = [[name, *(entry[column] for column in columns)] for name, entry in variants.items()]
    print_table(f"{case}: with parts switched off", ["variant", *columns], rows)
    return {"case": str(case), "variants": variants}


def profile(case: Case, device: torch.device) -> dict[str, Any]:
    """The same seen by Python's profiler, which makes everything slower."""
    training = start(case, device)
    loop, steps = training.endless_steps(), len(training.loader)
    with tempfile.TemporaryDirectory() as folder, training.monitor(folder):
        take(loop, steps)
        seen = PackageProfile(lambda: take(loop, steps), "prioritymonitor", "torch/utils/data")
    modules = [[name, 1e6 * seconds / steps] for name, seconds in seen.by_module().items()]
    functions = [
        [name, calls / steps, 1e6 * seconds / steps]
        for name, (calls, seconds) in list(seen.by_function().items())[:25]
    ]
    print_table(f"{case}: by module, under the profiler", ["module", "µs per step"], modules)
    columns = ["function", "calls per step", "µs per step"]
    print_table(f"{case}: by function, with everything it calls", columns, functions)
    return {"modules": modules, "functions": functions}


def long_run(case: Case, device: torch.device) -> dict[str, Any]:
    """Memory over a run that goes on after the stop, and what `close()` leaves behind."""
    training = start(case, device)
    loop, part = training.endless_steps(), LONG_STEPS // 10
    hooks = {"before": hooks_on(training)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        monitor = training.monitor(folder, stop=None)
        for done in range(part, LONG_STEPS + 1, part):
            take(loop, part)
            rows.append([done, resident_megabytes()])
        hooks["during"] = hooks_on(training)
        monitor.close()
    hooks["after close()"] = hooks_on(training)
    print_table(f"{case}: resident memory of the process", ["step", "MiB"], rows)
    print("hooks on model, optimizer and loader:", hooks)
    return {"step_and_mib": rows, "hooks": hooks}


def resident_megabytes() -> float:
    """Resident memory now; Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def hooks_on(training: Training) -> int:
    """How many hooks hang on the model, the optimizer and the loader."""
    holders = [*training.model.modules(), training.optimizer]
    tables = [
        table
        for holder in holders
        for name, table in vars(holder).items()
        if name.endswith("_hooks") and isinstance(table, dict)
    ]
    return sum(map(len, tables)) + ("_get_iterator" in vars(training.loader))


if __name__ == "__main__":
    main()
