"""Two training loops in one process, one of them with a monitor, that take turns of a few steps.

A machine that is busy with other work slows both alike. The cost of a step is the median over pairs
of runs of the ratio of their times, each pair from the same start.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import make_optimizer

if TYPE_CHECKING:
    from prioritymonitor import GradientMonitor

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""`cpu` counts the time of this process only."""


@dataclass(frozen=True)
class Case:
    """A network with random data of the right shape."""

    network: str
    optimizer: str
    make_model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    samples: int
    bar: float | None
    """Largest ratio that passes."""
    batch: int = 128
    classes: int = 10
    turn: int = 4
    """Steps of a turn."""

    def __str__(self) -> str:
        return f"{self.network}, {self.optimizer}, batch {self.batch}"


@dataclass(frozen=True)
class Method:
    """How time is measured."""

    device: torch.device
    clock: Callable[[], float]
    pairs: int
    seconds: float
    """Least time of a measurement."""
    agreed: Callable[[float], float] = float
    """What processes that train together make of each one's time, so that all end at once."""


@dataclass
class Training:
    """A training loop at its start."""

    model: nn.Module
    optimizer: Optimizer
    loader: DataLoader[tuple[torch.Tensor, ...]]
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
        from prioritymonitor import GradientMonitor  # so that a plain loop can do without

        arguments = {"train_loader": self.loader, "log_dir": folder} | options
        return GradientMonitor(self.model, self.optimizer, **arguments)


Start = Callable[[Case, torch.device], Training]
"""What begins a loop, the same each time."""


def start(case: Case, device: torch.device) -> Training:
    """The same loop each time: same weights, same data, same order."""
    torch.manual_seed(0)
    images = torch.randn(case.samples, *case.shape)
    labels = torch.randint(case.classes, (case.samples,))
    model = case.make_model().to(device)
    optimizer = make_optimizer(case.optimizer, model.parameters())
    loader = DataLoader(TensorDataset(images, labels), case.batch, shuffle=True)
    return Training(model, optimizer, loader, device)


def compare(
    case: Case, method: Method, begin: Start | None = None, **options: Any
) -> dict[str, Any]:
    """Time the loop without and with the monitor, pair by pair."""
    timed = [time_pair(case, method, options, begin or start) for _ in range(method.pairs)]
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


def time_pair(
    case: Case, method: Method, options: dict[str, Any], begin: Start
) -> tuple[float, float, int]:
    """Seconds per step without and with the monitor, and over how many steps."""
    plain, watched = begin(case, method.device), begin(case, method.device)
    spent, steps = [0.0, 0.0], 0
    with tempfile.TemporaryDirectory() as folder, watched.monitor(folder, **options):
        loops = [plain.endless_steps(), watched.endless_steps()]
        for loop in loops:
            take(loop, len(plain.loader))  # an epoch of warm-up
        with no_garbage_collection():
            while method.agreed(min(spent)) < method.seconds:
                for side, (training, loop) in enumerate(zip((plain, watched), loops, strict=True)):
                    training.synchronize()
                    since = method.clock()
                    take(loop, case.turn)
                    training.synchronize()
                    spent[side] += method.clock() - since
                steps += case.turn
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
