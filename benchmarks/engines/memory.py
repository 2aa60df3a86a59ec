"""Peak memory of a training step, in a process of its own.

On a CPU the profiler reports every allocation and release of tensor memory, from the making of the
model on, so that the running total is exact. The second figure is what the system saw: by how much
the largest resident memory of the process grew over the steps.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.engines.cases import Case, Training
from benchmarks.engines.methods import METHODS, Plain
from benchmarks.environment import memory_mib
from benchmarks.jobs import worker_pool

MIB = 2**20
WARM_UP = 2
MEASURED = "measured steps"


def peak_memory(case: Case, method: str, device: torch.device, threads: int) -> dict[str, float]:
    """Peaks in MiB: of live tensor memory, and by how much resident memory grew.

    Args:
        method: Its name in `METHODS`, or `"plain"`.
    """
    with worker_pool(1, threads) as pool:
        return pool.submit(_measure, case, method, device).result()


def _measure(case: Case, method: str, device: torch.device) -> dict[str, float]:
    start = partial(Training, case, METHODS.get(method, Plain), device)
    if device.type == "cuda":
        return {"peak_mib": _peak_on_cuda(start, device)}
    _check_ruler()
    grown = _resident_growth(start)
    gc.collect()
    return {"peak_mib": _peak_on_cpu(start), "resident_mib": grown}


def _peak_on_cuda(start: Callable[[], Training], device: torch.device) -> float:
    training = start()
    training.take(WARM_UP * training.method.every)
    torch.cuda.reset_peak_memory_stats(device)
    training.take(training.method.every)
    return torch.cuda.max_memory_allocated(device) / MIB


def _peak_on_cpu(start: Callable[[], Training]) -> float:
    def train() -> None:
        training = start()
        training.take(WARM_UP * training.method.every)
        with record_function(MEASURED):
            training.take(training.method.every)

    return _peak_of_live_tensors(train)


def _peak_of_live_tensors(call: Callable[[], None]) -> float:
    """Largest running total of tensor memory after `MEASURED` has begun."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = profiler.profiler.kineto_results.events()
    begin = next(event.start_ns() for event in events if event.name() == MEASURED)
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    totals = accumulate(bytes_ for _, bytes_ in changes)
    return max(t for (time, _), t in zip(changes, totals, strict=True) if time > begin) / MIB


def _check_ruler() -> None:
    """A case whose peak is known: 10 MiB that stay, 20 that come and go, and 30 beside them."""

    def known() -> None:
        kept = torch.zeros(10 * MIB, dtype=torch.uint8)
        torch.zeros(100 * MIB, dtype=torch.uint8)
        with record_function(MEASURED):
            passing = torch.zeros(20 * MIB, dtype=torch.uint8)
            del passing
            torch.zeros(30 * MIB, dtype=torch.uint8)
        del kept

    peak = _peak_of_live_tensors(known)
    if round(peak, 2) != 40:
        raise RuntimeError(f"the profiler sees a peak of {peak} MiB where it is 40")


def _resident_growth(start: Callable[[], Training]) -> float:
    """Growth of the high-water mark of resident memory over the first steps; Linux tells it."""
    training = start()
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts from here
    before = memory_mib("VmRSS")
    training.take(WARM_UP * training.method.every)
    return memory_mib("VmHWM") - before
