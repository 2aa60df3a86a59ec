"""What is written shows one run, whatever was there when it went on from a state."""

import shutil

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from prioritymonitor.report.saved_run import read_run
from tests.report.test_reporting import attached, read, train_on

PRIORITY = "prioritymonitor/priority"
STEPS, EVERY = 6, 2
"""Of an epoch."""


@pytest.fixture
def saved(tmp_path):
    """The state after the second of four epochs, of a run that wrote all of them."""
    monitor, *training = attached(log_dir=tmp_path / "run", every=EVERY)
    train_on(*training, 2)
    state, samples = monitor.state_dict(), monitor.samples()
    train_on(*training, 2)
    monitor.close()
    return state, samples


def gone_on(state, folder, epochs=1):
    monitor, *training = attached(log_dir=folder, every=EVERY)
    monitor.load_state_dict(state)
    train_on(*training, epochs)
    monitor.state_dict()
    return monitor


def curve(folder, tag=PRIORITY):
    return [event.step for event in read(folder).Scalars(tag)]


@pytest.mark.parametrize("is_used", [False, True], ids=["empty", "with events of the user's"])
def test_a_folder_that_was_lost_is_told_its_epochs_again(is_used, saved, tmp_path):
    state, _ = saved
    shutil.rmtree(tmp_path / "run")
    if is_used:
        with SummaryWriter(str(tmp_path / "run")) as writer:
            writer.add_scalar("mine", 1.0, 3)
    monitor = gone_on(state, tmp_path / "run")
    assert curve(tmp_path / "run") == [STEPS, 2 * STEPS, 3 * STEPS]
    written = [event.value for event in read(tmp_path / "run").Scalars(PRIORITY)]
    assert written == pytest.approx([one["priority"] for one in monitor.history()], rel=1e-6)
    assert curve(tmp_path / "run", "prioritymonitor/batch_loss") == [13, 15, 17]
    assert [one["epoch"] for one in read_run(tmp_path / "run").epochs] == [1, 2, 3]
    monitor.close()


def test_a_lost_folder_is_told_its_epochs_once(saved, tmp_path):
    state, _ = saved
    shutil.rmtree(tmp_path / "run")
    for _ in range(2):
        gone_on(state, tmp_path / "run").close()
    assert curve(tmp_path / "run") == [STEPS, 2 * STEPS, 3 * STEPS]


def test_where_another_run_has_taken_the_name_the_new_folder_has_all_epochs(saved, tmp_path):
    state, _ = saved
    shutil.rmtree(tmp_path / "run")
    other, *training = attached(log_dir=tmp_path / "run")
    train_on(*training, 1)
    other.close()
    monitor = gone_on(state, tmp_path / "run")
    assert monitor.log_dir == tmp_path / "run-2"
    assert curve(tmp_path / "run-2") == [STEPS, 2 * STEPS, 3 * STEPS]
    monitor.close()


def test_samples_of_a_later_state_are_replaced_at_the_first_step(saved, tmp_path):
    state, samples = saved
    assert read_run(tmp_path / "run").samples["visits"].max() == 4
    monitor, model, optimizer, loader = attached(log_dir=tmp_path / "run", every=EVERY)
    monitor.load_state_dict(state)
    x, *_ = next(iter(loader))
    optimizer.zero_grad()
    model(x).logsumexp(1).sum().backward()
    optimizer.step()
    found = read_run(tmp_path / "run")
    for name, column in samples.items():
        assert np.array_equal(found.samples[name], column, equal_nan=True), name
    assert not (tmp_path / "run" / "suspects.csv").exists()
    monitor.close()


def test_a_state_that_is_loaded_in_mid_run_takes_back_what_was_written_since(tmp_path):
    monitor, *training = attached(log_dir=tmp_path, every=EVERY)
    train_on(*training, 1)
    state = monitor.state_dict()
    train_on(*training, 2)
    monitor.load_state_dict(state)
    assert len(read_run(tmp_path).epochs) == 1
    assert read_run(tmp_path).samples["visits"].max() == 1
    train_on(*training, 1)
    monitor.close()
    assert curve(tmp_path) == [STEPS, 2 * STEPS]
    assert curve(tmp_path, "prioritymonitor/batch_loss") == [*range(1, 2 * STEPS, EVERY)]
