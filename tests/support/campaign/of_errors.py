"""What raises in the middle of training, in the user's code or in the package."""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.support.attacks import BETWEEN, Alarm, Alarms, Fault
from tests.support.campaign.trial import Step, Trial
from tests.support.interrupted import Interrupter, raising

Tensor = torch.Tensor


class Problem(Exception):
    """What the user's own code raises."""


def _raise(error: type[BaseException], *arguments: Any) -> None:
    raise error("of the user's")


def _for_one_step(trial: Trial, put_on: Callable[[], Any], step: Step | None = None) -> None:
    """Something that has a `remove()` is there in the next step alone."""
    made = step or trial.step

    def with_it(x: Tensor, y: Tensor) -> None:
        handle = put_on()
        try:
            made(x, y)
        finally:
            handle.remove()

    trial.once(with_it)


def _in_forward(trial: Trial, error: type[BaseException]) -> None:
    layer = trial.random.choice([*trial.model.children()])
    hook = functools.partial(_raise, error)
    _for_one_step(trial, lambda: layer.register_forward_hook(hook))


def _in_forward_after_ours(trial: Trial, error: type[BaseException]) -> None:
    hook = functools.partial(_raise, error)
    _for_one_step(trial, lambda: trial.model.register_forward_hook(hook))


def _in_backward(trial: Trial, error: type[BaseException]) -> None:
    parameter = trial.random.choice([*trial.model.parameters()])
    _for_one_step(trial, lambda: parameter.register_hook(lambda gradient: _raise(error)))


def _before_step(trial: Trial, error: type[BaseException]) -> None:
    hook = functools.partial(_raise, error)
    _for_one_step(trial, lambda: trial.optimizer.register_step_pre_hook(hook))


def _after_step(trial: Trial, error: type[BaseException]) -> None:
    hook = functools.partial(_raise, error)
    _for_one_step(trial, lambda: trial.optimizer.register_step_post_hook(hook))


def _in_item(trial: Trial, error: type[BaseException]) -> None:
    left = [trial.random.randint(1, 120)]

    def before(index: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error

    trial.data.before_item = before


def raises_in_forward(trial: Trial) -> None:
    _in_forward(trial, Problem)


def raises_in_hook_of_model(trial: Trial) -> None:
    _in_forward_after_ours(trial, Problem)


def raises_in_backward(trial: Trial) -> None:
    _in_backward(trial, Problem)


def raises_in_full_backward_hook(trial: Trial) -> None:
    layer = trial.random.choice([trial.model.get_submodule("0"), trial.model.get_submodule("4")])
    hook = functools.partial(_raise, Problem)
    _for_one_step(trial, lambda: layer.register_full_backward_hook(hook))


def raises_before_step(trial: Trial) -> None:
    _before_step(trial, Problem)


def raises_after_step(trial: Trial) -> None:
    _after_step(trial, Problem)


def raises_between(trial: Trial) -> None:
    """After the forward pass, before the backward one."""

    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        trial.loss(x, y)
        raise Problem

    trial.once(step, step)


def own_out_of_memory(trial: Trial) -> None:
    """The loop's, which tries again with half the batch."""

    def step(x: Tensor, y: Tensor) -> None:
        trial.optimizer.zero_grad()
        trial.loss(x, y)
        with trial.surviving():
            raise torch.OutOfMemoryError("no memory left")
        trial.step(x[:25], y[:25])

    trial.once(step, step)


def hooks_that_change_values(trial: Trial) -> None:
    """Outputs and gradients are others than those computed."""

    def step(x: Tensor, y: Tensor) -> None:
        body = trial.model.get_submodule("0")
        handles = [
            body.register_forward_hook(lambda module, inputs, output: output * 0.5),
            next(trial.model.parameters()).register_hook(lambda gradient: gradient * 2),
        ]
        trial.step(x, y)
        for handle in handles:
            handle.remove()

    trial.once(step, step, step)


# Interruptions of the user's


_PLACES = [_in_forward, _in_forward_after_ours, _in_backward, _before_step, _after_step, _in_item]


def ctrl_c_anywhere(trial: Trial) -> None:
    """In a place of the user's code."""
    trial.random.choice(_PLACES)(trial, KeyboardInterrupt)


def _broken_off(trial: Trial, error: type[BaseException], act: Callable[[], object]) -> None:
    """A step that is broken off at a line of the package is put back and made again."""
    line = int(10 ** trial.random.uniform(0, 2.8))

    def step(x: Tensor, y: Tensor) -> None:
        put_back, losses = trial.saved(), [*trial.losses]
        try:
            with Interrupter(line, act):
                trial.step(x, y)
        except error:
            put_back()
            trial.losses[:] = losses
            trial.step(x, y)

    trial.once(step)


def ctrl_c_in_the_package(trial: Trial) -> None:
    """At a line of ours; the loop puts the step back and makes it again."""
    _broken_off(trial, KeyboardInterrupt, raising(KeyboardInterrupt))


def signal_in_the_package(trial: Trial) -> None:
    """A handler of the user's raises at a line of ours; the loop makes the step again."""
    alarms = Alarms()
    before = signal.signal(signal.SIGALRM, trial.random.choice([*alarms.kinds.values()]))
    _broken_off(trial, Alarm, functools.partial(signal.raise_signal, signal.SIGALRM))
    trial.later(1, lambda: signal.signal(signal.SIGALRM, before))


def signals_that_count(trial: Trial) -> None:
    """Every half millisecond, and nothing raises."""
    counted: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: counted.append(number))
    signal.setitimer(signal.ITIMER_REAL, 5e-4, 5e-4)

    def end() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    trial.later(5, end)


# Faults of the package


def _fault(trial: Trial, error: type[Exception]) -> None:
    line = int(10 ** trial.random.uniform(0, 3.3))

    def step(x: Tensor, y: Tensor) -> None:
        interrupter = Interrupter(line, raising(error), BETWEEN)
        interrupter.__enter__()
        trial.later(8, lambda: interrupter.__exit__())
        trial.step(x, y)

    trial.once(step)


def fault_in_the_package(trial: Trial) -> None:
    _fault(trial, Fault)


def no_memory_in_the_package(trial: Trial) -> None:
    _fault(trial, torch.OutOfMemoryError)


def python_has_no_memory_in_the_package(trial: Trial) -> None:
    _fault(trial, MemoryError)


# Python


def deep_in_the_recursion(trial: Trial) -> None:
    """As deep as the plain step just goes through."""
    room = 60 + trial.random.randint(0, 30)

    def step(x: Tensor, y: Tensor) -> None:
        limit, depth, frame = sys.getrecursionlimit(), 0, sys._getframe()
        while frame is not None:
            depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
        sys.setrecursionlimit(depth + room)
        try:
            trial.step(x, y)
        finally:
            sys.setrecursionlimit(limit)

    trial.once(step, step)


def warnings_as_errors(trial: Trial) -> None:
    def step(x: Tensor, y: Tensor) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trial.step(x, y)

    trial.once(*[step] * 9)


def own_tracer(trial: Trial) -> None:
    """As of a debugger or a coverage tool."""
    called: list[str] = []

    def trace(frame: Any, event: str, argument: Any) -> Any:
        called.append(event)
        return None

    def step(x: Tensor, y: Tensor) -> None:
        before = sys.gettrace(), sys.getprofile()
        sys.settrace(trace)
        sys.setprofile(lambda *arguments: None)
        try:
            trial.step(x, y)
        finally:
            sys.settrace(before[0])
            sys.setprofile(before[1])

    trial.once(step)


def function_mode(trial: Trial) -> None:
    """The user's own overrides of torch's functions are called for the user's calls."""

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return function(*args, **(kwargs or {}))

    def step(x: Tensor, y: Tensor) -> None:
        with Counting():
            trial.step(x, y)

    trial.once(step, step)


def dispatch_mode(trial: Trial) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return function(*args, **(kwargs or {}))

    def step(x: Tensor, y: Tensor) -> None:
        with Passing():
            trial.step(x, y)

    trial.once(step, step)


def loss_function_patched(trial: Trial) -> None:
    """Another function under torch's name, for a while."""
    original = nn.functional.cross_entropy

    def patched(*arguments: Any, **options: Any) -> Tensor:
        return 2 * original(*arguments, **options)

    def step(x: Tensor, y: Tensor) -> None:
        nn.functional.cross_entropy = patched
        try:
            trial.step(x, y)
        finally:
            nn.functional.cross_entropy = original

    trial.once(step, step)
