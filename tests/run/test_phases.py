"""A phase closes what it must and keeps what is known."""

import copy

import pytest
import torch

from prioritymonitor import StopReason, StopRule
from prioritymonitor.records import Phase
from prioritymonitor.samples.history import SampleHistory
from tests.support.cases import make_data, make_loader
from tests.support.observed import content_of
from tests.support.small_run import SmallRun, measured


@pytest.mark.parametrize("place", ["record", "end_epoch"])
def test_a_failure_at_an_epochs_end_writes_no_record_and_keeps_no_weights(place, monkeypatch):
    run = SmallRun()
    monitor = run.watched(every=100)  # visits wait for the epoch's end
    run.train(2)
    before, best = measured(monitor)["history"], monitor.best_epoch
    monkeypatch.setattr(SampleHistory, place, lambda *arguments: 1 / 0)
    run.train(2)
    assert monitor.decision.reason is StopReason.FAILED
    assert measured(monitor)["history"] == before
    assert monitor.best_epoch == monitor.restore_best() == best
    monitor.close()


def test_a_failure_is_remembered_by_a_resumed_run(monkeypatch):
    run = SmallRun()
    monitor = run.watched()
    run.train(2)
    with monkeypatch.context() as patch:
        patch.setattr(SampleHistory, "record", lambda *arguments: 1 / 0)
        run.train(2)
    state = monitor.state_dict()
    monitor.close()
    assert content_of(state)["phase"] == Phase.FAILED.name
    again = SmallRun()
    resumed = again.watched()
    resumed.load_state_dict(state)
    again.train(3)
    assert resumed.decision.reason is StopReason.FAILED
    assert len(resumed.history()) == 2
    resumed.close()


class Changing:
    """A sampler that gives no integers after a while."""

    def __init__(self, after):
        self.left = after

    def __iter__(self):
        for index in range(60):
            self.left -= 1
            yield index if self.left >= 0 else (index, 0)

    def __len__(self):
        return 60


class Pairs(torch.utils.data.Dataset):
    """May be asked for a sample by its index alone or in a tuple."""

    def __init__(self):
        self.data = make_loader(make_data(torch.float32)).dataset

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return self.data[index[0] if isinstance(index, tuple) else index]


@pytest.mark.parametrize("lost_after", [85, 100])
def test_identity_lost_within_an_epoch_is_said_in_the_users_names(lost_after, said):
    run = SmallRun()
    run.loader = torch.utils.data.DataLoader(Pairs(), batch_size=10, sampler=Changing(lost_after))
    monitor = run.watched()
    run.train(3)
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert [m for m in said() if "its sampler does not give integer indices" in m] == said()
    assert len(monitor.history()) >= 1
    assert (monitor.samples()["visits"] > 0).all()  # in the first epoch
    monitor.close()


def stop_now(records):
    decision = StopRule()(records)
    if len(records) < 3:
        return decision
    return copy.replace(decision, stop=True) if hasattr(copy, "replace") else stopped(decision)


def stopped(decision):
    return type(decision)(**vars(decision) | {"stop": True})


def test_identity_lost_after_a_stop_takes_nothing_back():
    run = SmallRun()
    monitor = run.watched(stop=stop_now, noisy=make_data(torch.float32).noisy)
    run.train(3)
    assert monitor.should_stop
    decision, suspects = monitor.decision, monitor.suspects()
    assert suspects
    for x, y, _index in run.loader:
        run.step(x, (y + 1) % 5)  # other labels than before
    run.train(1)
    assert monitor.should_stop
    assert (monitor.decision.reason, monitor.decision.best_epoch) == (
        decision.reason,
        decision.best_epoch,
    )
    assert monitor.suspects() == suspects
    monitor.close()
    assert monitor.should_stop
    assert monitor.suspects() == suspects


def test_showing_the_monitor_ends_no_epoch():
    run = SmallRun()
    monitor = run.watched()
    batches = len(run.loader)
    for number, (x, y, _index) in enumerate(run.loader):
        run.step(x, y)
        if number == batches - 1:
            assert "epochs=0" in repr(monitor)
            assert monitor.history() == []
            assert monitor.suspects(min_score=0) == []
            assert "epochs=0" in repr(monitor)
    assert "epochs=1" in repr(monitor)
    monitor.close()


def test_a_large_data_set_is_followed_whole_unless_the_user_says():
    data = torch.utils.data.TensorDataset(torch.zeros(1_281_167, 1))
    run = SmallRun()
    run.loader = torch.utils.data.DataLoader(data)
    monitor = run.watched()
    assert len(monitor.samples()["index"]) == len(data)
    monitor.close()
