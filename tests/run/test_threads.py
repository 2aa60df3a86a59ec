"""Another thread may read everything while training runs."""

import sys
import threading

import pytest

from tests.capture.test_no_disturbance import assert_identical
from tests.support.attacks import polling
from tests.support.small_run import SETTINGS, SmallRun, measured

settings = pytest.mark.parametrize("setting", SETTINGS)


@pytest.fixture(autouse=True)
def _threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@settings
def test_reading_from_another_thread_changes_no_measurement(setting):
    told, results = [], []
    for is_polled in (False, True):
        run = SmallRun()
        monitor = run.watched(**SETTINGS[setting])
        if is_polled:
            with polling(monitor) as told:
                run.train(6)
        else:
            run.train(6)
        monitor.end_epoch()
        results.append((measured(monitor), run.result()))
        monitor.close()
    assert told.count("round") == len(told) > 0
    assert_identical(*results)


@settings
def test_ending_epochs_from_another_thread_loses_no_visit(setting, said):
    run = SmallRun()
    monitor = run.watched(stop=None, **SETTINGS[setting])
    with polling(monitor, monitor.end_epoch) as told:
        run.train(6)
    monitor.end_epoch()
    assert told.count("round") == len(told) > 0
    assert set(monitor.samples()["visits"]) == {6}
    assert [record["epoch"] for record in monitor.history()] == [
        *range(1, len(monitor.history()) + 1)
    ]
    assert not said()
    monitor.close()


def test_other_threads_close_no_epoch_by_looking():
    run = SmallRun()
    monitor = run.watched()
    run.train(after_step=lambda: None)
    batches = len(run.loader)
    for number, (x, y, _index) in enumerate(run.loader):
        run.step(x, y)
        if number == batches - 1:
            looking = threading.Thread(target=lambda: monitor.should_stop)
            looking.start()
            looking.join()
            assert len(monitor.history()) == 1
            assert monitor.should_stop is False
            assert len(monitor.history()) == 2  # the thread that trains does
    monitor.close()


@settings
def test_an_epoch_ended_before_the_step_of_its_last_batch_has_that_batch(setting, said):
    run = SmallRun()
    monitor = run.watched(stop=None, **SETTINGS[setting])
    for x, y, _index in run.loader:
        run.optimizer.zero_grad()
        run.criterion(run.model(x), y).backward()
        monitor.end_epoch()
        run.optimizer.step()
        monitor.end_epoch()
    assert len(monitor.history()) == len(run.loader)
    assert set(monitor.samples()["visits"]) == {1}
    assert not said()
    monitor.close()
