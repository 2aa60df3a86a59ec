"""The time that a monitor takes from the training loop, by a clock that is moved by hand."""

import pytest

from prioritymonitor.capture import stopwatch
from prioritymonitor.capture.hooks import Guard, Hook


@pytest.fixture
def clock(monkeypatch):
    """The clock of the stopwatch, to be moved by hand."""
    time = [100.0]
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: time[0])

    def forward(by):
        time[0] += by

    return forward


def test_hooks_within_hooks_count_once_and_errors_too(clock):
    failed = []
    guard, other = Guard(failed.append), Guard(failed.append)

    def inner():
        clock(2.0)
        raise ValueError

    def outer():
        clock(1.0)
        Hook(inner, guard)()
        clock(1.0)

    Hook(outer, guard)()
    clock(12.0)
    assert len(failed) == 1
    assert guard.stopwatch.read() == (116.0, 4.0)
    assert guard.stopwatch.share() == 0.25
    clock(1.0)
    assert guard.stopwatch.share() == 0.0
    assert guard.stopwatch.share() == 0.0  # no time has passed
    assert other.stopwatch.read().spent == 0.0


def test_what_is_left_out_is_neither_the_monitors_time_nor_the_loops(clock):
    guard = Guard(lambda error: None)

    def hook():
        clock(1.0)
        began = guard.stopwatch.read()
        clock(50.0)
        assert guard.stopwatch.leave_out_since(began) == 50.0
        clock(1.0)

    Hook(hook, guard)()
    clock(6.0)
    assert guard.stopwatch.share() == 0.25
