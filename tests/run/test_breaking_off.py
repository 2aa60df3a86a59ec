"""A constructor or a `close()` that breaks off at any line leaves nothing for good."""

import pytest
from torch.utils.data import DataLoader, Sampler

from prioritymonitor import GradientMonitor
from tests.support.attacks import VARIANTS, Fault, break_close, break_constructor
from tests.support.cases import make_data, make_loader
from tests.support.small_run import SmallRun

variants = pytest.mark.parametrize("variant", VARIANTS)
errors = pytest.mark.parametrize("error", [Fault, KeyboardInterrupt])


@errors
@variants
def test_a_constructor_that_breaks_off_leaves_nothing(variant, error, tmp_path):
    left = [not was_clean for was_clean in break_constructor(variant, error, tmp_path, stride=3)]
    assert len(left) > 100
    assert not any(left)


def test_a_constructor_that_breaks_off_leaves_running_workers_as_they_were(tmp_path):
    cleaned = list(break_constructor("head", KeyboardInterrupt, tmp_path, workers=1, stride=11))
    assert all(cleaned)


@errors
@variants
def test_close_once_more_completes_what_broke_off(variant, error, tmp_path):
    completed = list(break_close(variant, error, tmp_path, stride=13))
    assert len(completed) >= 10
    assert all(completed)


class Endless(Sampler):
    """Has no length, as a sampler that draws for ever."""

    def __iter__(self):
        return iter(range(60))


def test_a_sampler_without_a_length_is_no_error():
    run = SmallRun()
    run.loader = make_loader(make_data(), batch_size=10, sampler=Endless())
    before = run.on_it()
    with run.watched():
        assert run.on_it() != before
    assert run.on_it() == before


def test_a_wrong_argument_leaves_a_loader_that_was_never_touched():
    run = SmallRun()
    before = run.on_it()
    with pytest.raises(ValueError, match="log_dir"):
        run.watched(log_dir="")
    assert run.on_it() == before
    assert type(run.loader) is DataLoader


def test_a_monitor_that_was_closed_is_not_closed_again_when_it_is_freed(said):
    run = SmallRun()
    monitor = run.watched()
    monitor.close()
    again = GradientMonitor(run.model, run.optimizer, run.loader)
    del monitor
    run.train()
    assert len(again.history()) == 1
    again.close()
    assert not said()
