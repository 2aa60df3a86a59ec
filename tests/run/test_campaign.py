"""Faults in the user's code, each once: `benchmarks/robustness/campaign.py` makes many of each."""

import logging
import zlib

import pytest
import torch
from torch import nn

from prioritymonitor.capture.hooks import Attachments
from prioritymonitor.monitor import GradientMonitor
from tests.support.campaign.kinds import FAULTS, GROUPS, OF_THE_CAPTURE
from tests.support.campaign.trial import Trial
from tests.support.campaign.verdict import judge

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"  # TensorBoard's, without a disk
)


@pytest.fixture(autouse=True)
def _silent():
    logger = logging.getLogger("prioritymonitor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


@pytest.mark.parametrize("name", FAULTS)
def test_training_is_bit_identical_and_nothing_is_left_or_false(name, tmp_path):
    verdict = judge(FAULTS[name], zlib.crc32(name.encode()) % 1000, tmp_path, epochs=5)
    assert verdict.is_good, verdict


def test_there_are_more_than_forty_kinds_and_each_has_one_name():
    assert len(FAULTS) == sum(map(len, GROUPS.values())) > 40
    assert set(FAULTS) > OF_THE_CAPTURE


def nothing(trial: Trial) -> None:
    """The same in both runs."""


def test_without_a_fault_the_stop_comes():
    assert judge(nothing, 0, None).stopped


def test_a_monitor_that_changes_weights_is_noticed():
    def happens(trial):
        if trial.monitor is not None:
            with torch.no_grad():
                next(trial.model.parameters()).add_(1e-7)

    assert judge(happens, 0, None, epochs=5).changed


def test_a_monitor_that_draws_random_numbers_is_noticed():
    assert judge(lambda trial: trial.monitor and torch.rand(1), 0, None, epochs=5).changed


def test_an_exception_that_only_the_watched_loop_sees_is_noticed():
    def happens(trial):
        if trial.monitor is not None:
            trial.once(lambda x, y: 1 / 0)

    assert judge(happens, 0, None, epochs=5).changed


def test_an_end_of_the_watched_loop_is_noticed():
    def happens(trial):
        if trial.monitor is not None:
            raise OSError

    assert judge(happens, 0, None, epochs=5).lost


def test_hooks_that_stay_are_noticed(monkeypatch):
    monkeypatch.setattr(Attachments, "remove_all", lambda attachments: None)
    assert "module" in judge(nothing, 0, None, epochs=2).left


def test_gradients_that_stay_off_are_noticed():
    def happens(trial):
        if trial.monitor is not None:
            trial.later(1, lambda: torch.set_grad_enabled(False))

    assert "gradients on" in judge(happens, 0, None, epochs=5).left


@pytest.mark.parametrize("wrong", [{"noise_rate": 1.5}, {"epoch": 7}, {"train_loss": float("nan")}])
def test_false_records_are_noticed(wrong, monkeypatch):
    history = GradientMonitor.history
    monkeypatch.setattr(GradientMonitor, "history", lambda own: [r | wrong for r in history(own)])
    assert judge(nothing, 0, None, epochs=2).false_records


def test_nan_weights_are_equal_to_themselves():
    def happens(trial):
        nn.init.constant_(next(trial.model.parameters()), float("nan"))

    assert judge(happens, 0, None, epochs=5).is_good
