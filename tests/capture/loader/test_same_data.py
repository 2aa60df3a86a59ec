"""Another loader over the data set of the train loader is as good as the train loader."""

import threading

import pytest
import torch
from torch.utils.data import DataLoader

from prioritymonitor import GradientMonitor
from tests.capture.loader.test_running_ahead import SAMPLES, dataset, train, watched
from tests.support.interrupted import interrupted_everywhere
from tests.support.observed import labels_seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_made_anew_in_each_epoch_is_followed(workers, said):
    data = dataset()
    model, optimizer, monitor = watched(DataLoader(data))
    for _ in range(3):
        for batch in DataLoader(data, batch_size=8, shuffle=True, num_workers=workers):
            train(model, optimizer, batch)
        assert not monitor.should_stop
    assert labels_seen(monitor) == {i: i for i in range(SAMPLES)}
    assert (monitor.samples()["visits"] == 3).all()
    assert len(monitor.history()) == 3
    assert said() == []
    monitor.close()


def test_loaders_over_other_data_are_not():
    model, optimizer, monitor = watched(DataLoader(dataset()))
    for batch in DataLoader(dataset(), batch_size=8):
        train(model, optimizer, batch)
    monitor.end_epoch()
    assert labels_seen(monitor) == {}
    monitor.close()


def test_once_the_train_loader_is_trained_on_others_are_left_alone():
    data = dataset()
    loader = DataLoader(data, batch_size=8, shuffle=True)
    model, optimizer, monitor = watched(loader)
    for _ in range(2):
        for batch in loader:
            train(model, optimizer, batch)
            iterator = iter(DataLoader(data, batch_size=8))
            assert type(iterator).__next__ is type(iterator).__mro__[0].__next__
            next(iterator)
    assert labels_seen(monitor) == {i: i for i in range(SAMPLES)}
    assert (monitor.samples()["visits"] == 2).all()
    monitor.close()


def test_random_numbers_and_batches_are_those_of_a_loader_that_nobody_follows():
    results = []
    for is_watched in (False, True):
        torch.manual_seed(1)
        data = dataset()
        model = torch.nn.Linear(data.tensors[0].shape[1], SAMPLES)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        monitor = GradientMonitor(model, optimizer, DataLoader(data)) if is_watched else None
        for _ in range(2):
            for batch in DataLoader(data, batch_size=8, shuffle=True):
                train(model, optimizer, batch)
        results.append((model.weight.detach().clone(), torch.get_rng_state()))
        if monitor is not None:
            monitor.close()
    for plain, with_monitor in zip(*results, strict=True):
        assert torch.equal(plain, with_monitor)


def test_nothing_is_left_on_torch_or_on_the_loaders():
    before = dict(vars(DataLoader))
    data = dataset()
    made = DataLoader(data, batch_size=8, num_workers=1, persistent_workers=True)
    attributes = set(vars(made))
    model, optimizer, monitor = watched(DataLoader(data))
    second = watched(DataLoader(data))[2]
    for batch in made:
        train(model, optimizer, batch)
    monitor.close()
    assert vars(DataLoader)["_get_iterator"] is not before["_get_iterator"]
    second.close()
    assert dict(vars(DataLoader)) == before
    assert set(vars(made)) == attributes
    assert type(made._iterator).__module__ == "torch.utils.data.dataloader"
    assert "unrecorded" not in vars(type(made._iterator))
    assert len(list(made)) == 7


def test_after_an_interruption_anywhere_other_threads_go_on():
    """What all threads of a process wait for must not stay taken."""
    data, lines = dataset(), 0
    for lines in interrupted_everywhere(lambda: watched(DataLoader(data))[2].close()):  # noqa: B007
        finished = threading.Event()

        def in_a_thread(finished=finished):
            model, optimizer, monitor = watched(DataLoader(data))
            for batch in DataLoader(data, batch_size=60):
                train(model, optimizer, batch)
            monitor.close()
            finished.set()

        threading.Thread(target=in_a_thread, daemon=True).start()
        assert finished.wait(30)
    assert lines > 100
