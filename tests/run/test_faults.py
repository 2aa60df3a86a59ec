"""A failure of ours ends the smallest part, and what may pass is tried again."""

import random

import pytest
import torch

from prioritymonitor import StopReason
from prioritymonitor.gradients.measured_steps import StepStatistics
from prioritymonitor.samples.history import SampleHistory
from prioritymonitor.stopping.kept_weights import WeightKeeper
from tests.support.attacks import Fault, fault_run, plain_result
from tests.support.small_run import SETTINGS, SmallRun


@pytest.fixture(scope="module")
def plain():
    return plain_result()


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical_whatever_line_fails(setting, plain):
    lines = random.Random(setting)
    for _ in range(25):
        told = fault_run(setting, int(10 ** lines.uniform(0, 3.8)), plain, Fault)
        assert told.happened
        assert not told.reached_the_loop
        assert told.is_unharmed


def failing(function, error, times):
    """The function, which raises the first `times` times."""
    left = [times]

    def called(*args, **options):
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return function(*args, **options)

    return called


OUT_OF_MEMORY = torch.OutOfMemoryError("no memory left")


def test_an_out_of_memory_in_the_statistics_costs_one_step(monkeypatch, said):
    monkeypatch.setattr(
        StepStatistics, "measure", failing(StepStatistics.measure, OUT_OF_MEMORY, 1)
    )
    run = SmallRun()
    monitor = run.watched(every=1)
    run.train(2)
    assert "dominance_ratio" in monitor.latest
    assert len(monitor.history()) == 2
    assert (monitor.samples()["visits"] > 0).all()
    assert [message for message in said() if "a step was not measured" in message] == said()
    monitor.close()


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, ZeroDivisionError("statistics")])
def test_statistics_that_fail_for_ever_leave_losses_suspects_and_the_stop(error, monkeypatch):
    monkeypatch.setattr(StepStatistics, "measure", failing(StepStatistics.measure, error, 10**6))
    run = SmallRun()
    monitor = run.watched(every=1)
    run.train(6)
    assert monitor.decision.reason in (StopReason.CLEAN_DOMINATES, StopReason.NOISY_DOMINATES)
    assert len(monitor.history()) == 6
    assert monitor.suspects()
    assert monitor.restore_best() == monitor.best_epoch
    monitor.close()


def test_an_out_of_memory_among_the_samples_costs_their_visits(monkeypatch, said):
    monkeypatch.setattr(SampleHistory, "record", failing(SampleHistory.record, OUT_OF_MEMORY, 1))
    run = SmallRun()
    monitor = run.watched(every=1)
    run.train(3)
    assert monitor.decision.reason is not StopReason.FAILED
    assert len(monitor.history()) == 3
    assert sum("some visits of samples are lost" in message for message in said()) == 1
    monitor.close()


def test_an_average_that_fails_ends_no_measuring(monkeypatch, said):
    monkeypatch.setattr(WeightKeeper, "update", lambda *arguments: 1 / 0)
    run = SmallRun()
    monitor = run.watched()
    run.train(3)
    assert len(monitor.history()) == 3
    assert (monitor.samples()["visits"] > 0).all()
    assert any("the average of the weights failed" in message for message in said())
    monitor.close()
