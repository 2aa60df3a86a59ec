"""What a signal handler raises is the loop's, wherever it comes; the monitor measures on."""

import signal
import time

import pytest
import torch

from tests.support.attacks import Alarm, Alarms, alarm_run
from tests.support.small_run import SETTINGS, SmallRun


def assert_untouched(told, lost=0):
    assert told.raised > 0
    assert told.raised - told.seen <= lost
    assert told.is_usable
    assert told.goes_on
    assert not told.failed


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", Alarms().kinds)
def test_at_a_line_of_ours_it_reaches_the_loop(kind, setting):
    assert_untouched(alarm_run(kind, setting, steps=25, within=0))


@pytest.mark.parametrize("setting", SETTINGS)
def test_after_a_while_it_reaches_the_loop(setting):
    """Python itself ignores what is raised while it collects garbage; that is 1 in 1,000 or fewer,
    on a busy machine one or two of these."""
    told = alarm_run("function", setting, steps=60, within=0.003)
    assert_untouched(told, lost=max(2, told.raised // 10))


def test_a_timeout_while_a_hook_waits_ends_the_wait():
    run = SmallRun()
    began, asked = time.monotonic(), []

    def noisy(inputs, targets, index):
        asked.append(1)
        if len(asked) == 2:
            time.sleep(10)
        return torch.zeros(len(targets), dtype=torch.bool)

    monitor = run.watched(noisy=noisy, every=1)
    before = signal.signal(signal.SIGALRM, lambda number, frame: Alarms().handle(number, frame))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Alarm):
            run.train()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 8
    run.train()
    assert len(monitor.history()) >= 1
    monitor.close()
