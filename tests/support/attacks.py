"""Attacks on a monitor: faults of its own, signals, threads. Each is one run, and says what it did.

The tests make few of them, `benchmarks/robustness/faults.py` many.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prioritymonitor import GradientMonitor, StopReason
from tests.capture.test_no_disturbance import assert_identical
from tests.support.interrupted import Interrupter, interrupted_at, raising
from tests.support.small_run import SETTINGS, SmallRun

VARIANTS: dict[str, Callable[[SmallRun, Path], dict[str, Any]]] = {
    "head": lambda run, folder: {"every": 1},
    "closed_form": lambda run, folder: SETTINGS["closed_form"],
    "func": lambda run, folder: SETTINGS["func"],
    "criterion": lambda run, folder: {"criterion": run.criterion},
    "named head": lambda run, folder: {"head": run.model[4]},
    "log_dir": lambda run, folder: {"log_dir": folder / "run", "every": 1},
}
"""What a monitor is made with."""


class Fault(Exception):
    """Something in the package goes wrong."""


# The constructor and close()


def break_constructor(
    variant: str, error: type[BaseException], folder: Path, workers: int = 0, stride: int = 1
) -> Iterator[bool]:
    """Break the constructor off one line later each time; whether nothing was left."""
    run = SmallRun(workers)
    next(iter(run.loader))  # persistent workers run already
    before = run.on_it()
    line = 1
    while True:
        made: list[GradientMonitor] = []
        options = VARIANTS[variant](run, folder)
        if not interrupted_at(line, lambda: made.append(run.watched(**options)), error):  # noqa: B023
            made.pop().close()
            return
        for monitor in made:  # the fault was in a part that fails alone
            monitor.close()
        yield run.on_it() == before
        line += stride


def break_close(
    variant: str, error: type[BaseException], folder: Path, workers: int = 0, stride: int = 1
) -> Iterator[bool]:
    """Break `close()` off one line later each time; whether once more completes it."""
    line = 1
    while True:
        run = SmallRun(workers)
        next(iter(run.loader))
        before = run.on_it()
        own = folder / f"{variant} {error.__name__} {line}"
        monitor = run.watched(**VARIANTS[variant](run, own))
        run.train()
        broke_off = interrupted_at(line, monitor.close, error)
        if not broke_off:
            return
        monitor.close()
        is_whole = run.on_it() == before and len(monitor.history()) == 1
        if monitor.log_dir is not None:
            is_whole &= error is Fault or (monitor.log_dir / "suspects.csv").is_file()
        yield is_whole
        line += stride


# Signals


class Alarm(Exception):
    """What a signal handler raises."""


@dataclass
class Alarms:
    """Handlers that raise, each of another kind, and how often they did."""

    raised: int = 0
    kinds: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kinds = {
            "function": lambda number, frame: self._raise(),
            "method": self.handle,
            "partial": functools.partial(_handle_for, self),
            "callable": _Callable(self),
            "changing": self.change,
            "any arguments": lambda *arguments: self._raise(),
        }

    def handle(self, number: int, frame: Any) -> None:
        self._raise()

    def change(self, number: int, frame: Any) -> None:
        """Another handler is in place before this one raises."""
        signal.signal(number, signal.SIG_IGN)
        self._raise()

    def _raise(self) -> None:
        self.raised += 1
        raise Alarm


def _handle_for(alarms: Alarms, number: int, frame: Any) -> None:
    alarms.handle(number, frame)


class _Callable:
    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms

    def __call__(self, number: int, frame: Any) -> None:
        self._alarms.handle(number, frame)


@dataclass
class Alarmed:
    """A run through which signals came."""

    raised: int = 0
    seen: int = 0
    """How many the loop saw."""
    without_gradients: int = 0
    """How many steps found gradients turned off by a signal before."""
    failed: bool = False
    """Whether the monitor gave up."""
    goes_on: bool = False
    """Whether it measured the undisturbed epochs after them."""
    is_usable: bool = False
    """Whether weights are finite."""


def alarm_run(kind: str, setting: str | None, steps: int, within: float, seed: int = 0) -> Alarmed:
    """A loop that catches what a handler raises, and goes on.

    Args:
        kind: Of the handler, a key of `Alarms().kinds`.
        setting: What is measured, a key of `SETTINGS`; None: nothing, by nobody.
        steps: How many steps the signals come in.
        within: Seconds after the beginning of a step at which the signal comes, at most; 0: at a
            line of the package instead.
        seed: Of those times.
    """
    told, alarms, times = Alarmed(), Alarms(), random.Random(seed)
    run = SmallRun()
    before = signal.getsignal(signal.SIGALRM)
    monitor = run.watched(**SETTINGS[setting] | {"every": 1}) if setting is not None else None
    batches = iter(run.loader)

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = iter(run.loader)
            batch = next(batches)
        run.step(*batch[:2])

    gc.disable()  # what comes in a callback of the collector is dropped by Python itself
    try:
        for _ in range(steps):
            signal.signal(signal.SIGALRM, alarms.kinds[kind])
            try:
                with _alarm(within, times):
                    step()
            except Alarm:
                told.seen += 1
            except RuntimeError:  # torch's own `no_grad` broke off, and gradients stay off
                torch.set_grad_enabled(True)
                told.without_gradients += 1
        told.raised = alarms.raised
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    torch.set_grad_enabled(True)
    epochs = len(monitor.history()) if monitor is not None else 0
    run.train(3)
    told.is_usable = all(p.isfinite().all() for p in run.model.parameters())
    if monitor is not None:
        told.failed = monitor.decision.reason is StopReason.FAILED
        told.goes_on = len(monitor.history()) >= epochs + 2 and "dominance_ratio" in monitor.latest
        monitor.close()
    return told


@contextlib.contextmanager
def _alarm(within: float, times: random.Random) -> Iterator[None]:
    if not within:
        line = int(10 ** times.uniform(0, 3.3))
        with Interrupter(line, functools.partial(signal.raise_signal, signal.SIGALRM)):
            yield
        return
    signal.setitimer(signal.ITIMER_REAL, times.uniform(1e-5, within))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.getsignal(signal.SIGALRM)  # one that is still on its way comes here


# Other threads


READINGS: dict[str, Callable[[GradientMonitor], object]] = {
    "repr": repr,
    "latest": lambda monitor: monitor.latest,
    "history": lambda monitor: monitor.history(),
    "samples": lambda monitor: monitor.samples(),
    "noise_rate": lambda monitor: monitor.noise_rate,
    "suspects": lambda monitor: monitor.suspects(min_score=0),
    "best_epoch": lambda monitor: monitor.best_epoch,
    "should_stop": lambda monitor: monitor.should_stop,
    "decision": lambda monitor: monitor.decision,
    "log_dir": lambda monitor: monitor.log_dir,
}
"""What may be read from another thread."""


@contextlib.contextmanager
def polling(monitor: GradientMonitor, *more: Callable[[], object]) -> Iterator[list[Any]]:
    """A thread reads everything, again and again; gives what was raised in it, and "round"s."""
    told: list[Any] = []
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.is_set():
            for read in (*READINGS.values(), *more):
                try:
                    read(monitor) if read not in more else read()  # type: ignore[call-arg]
                except BaseException as error:
                    told.append(error)
            told.append("round")

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield told
    finally:
        is_over.set()
        thread.join()


# Faults in the middle of training


_LOADER = ("loader/iterators", "loader/data_loader", "loader/same_data", "loader/handed_out")
BETWEEN = ("errors.py", *(f"capture/{name}.py" for name in ("hooks", "private", *_LOADER)))
"""What stands between the loop and all that may fail: it reads attributes, appends and calls."""


@dataclass
class Faulted:
    """A run in which one line of the package went wrong."""

    happened: bool
    reached_the_loop: bool
    is_unharmed: bool
    """Whether training came out bit for bit as without a monitor."""
    ended: bool
    """Whether nothing was measured from there on."""
    has_lost: str
    """Which part of the record of the last epochs is missing; empty: none."""


def fault_run(
    setting: str,
    line: int,
    plain: dict[str, Any],
    error: type[Exception],
    leaving_out: tuple[str, ...] = BETWEEN,
) -> Faulted:
    """Train for four epochs with a fault at a line of the package.

    Args:
        setting: What is measured, a key of `SETTINGS`.
        line: Which of those that run after the monitor was made.
        plain: `SmallRun.result()` without a monitor.
        error: The fault.
        leaving_out: Ends of the names of files where nothing goes wrong.
    """
    run = SmallRun()
    monitor = run.watched(**SETTINGS[setting])
    reached = False
    with Interrupter(line, raising(error), leaving_out) as interrupter:
        try:
            run.train(4)
        except error:
            reached = True
        is_on = monitor.decision.reason is not StopReason.FAILED
    try:
        assert_identical(run.result(), plain)
        is_unharmed = True
    except AssertionError:
        is_unharmed = False
    before = len(monitor.history())
    run.train(2)
    lost = []
    if len(monitor.history()) < before + 2:
        lost.append("epochs")
    if not monitor.suspects(min_score=0):
        lost.append("suspects")
    if "dominance_ratio" not in monitor.latest:
        lost.append("steps")
    monitor.close()
    return Faulted(interrupter.acted, reached, is_unharmed, not is_on, " ".join(lost))


def plain_result(epochs: int = 4) -> dict[str, Any]:
    """What training comes to without a monitor."""
    run = SmallRun()
    run.train(epochs)
    return run.result()
