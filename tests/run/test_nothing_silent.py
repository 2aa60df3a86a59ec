"""What keeps a monitor from concluding anything is said once, early, with what to do."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
)

from prioritymonitor import ArgumentValueError, GradientMonitor, StopReason
from tests.support.cases import make_data, make_loader, mlp
from tests.support.separable import separable


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), 0.05, **options)


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def batches(count, size=10):
    data = make_data(torch.float32)
    for _ in range(count):
        rows = torch.randint(0, 60, (size,))
        yield data.inputs[rows], data.given[rows]


@pytest.fixture
def reminders(caplog):
    """How often it was said that nobody reads the advice."""
    caplog.set_level(logging.WARNING, logger="prioritymonitor")
    return lambda: sum("should_stop" in record.getMessage() for record in caplog.records)


# No train loader


def test_a_missing_train_loader_is_said_at_the_first_step(said):
    model = mlp()
    optimizer = sgd(model)
    monitor = GradientMonitor(model, optimizer)
    assert said() == []
    for x, y in batches(60):
        step(model, optimizer, x, y)
        (message,) = said()
    assert message.startswith("no train_loader was passed")
    assert "Pass the DataLoader" in message
    monitor.end_epoch()
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert monitor.restore_best() is None
    monitor.close()


# An epoch without an end


class Endless(Sampler):
    """Has no length."""

    def __iter__(self):
        while True:
            yield from torch.randperm(400).tolist()


class Stream(IterableDataset):
    def __init__(self, count=None):
        self.count = count

    def __iter__(self):
        data, drawn = make_data(torch.float32), 0
        while self.count is None or drawn < self.count:
            yield data.inputs[drawn % 60], data.given[drawn % 60]
            drawn += 1


def endless(data):
    return DataLoader(data, batch_size=20, sampler=Endless())


def ten_billion(data):
    sampler = RandomSampler(data, replacement=True, num_samples=10**10)
    return DataLoader(data, batch_size=20, sampler=sampler)


def train_endlessly(make, epochs, steps, **options):
    data = separable()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 128), nn.ReLU(), nn.Linear(128, 5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make(TensorDataset(data.inputs, data.given))
    monitor = GradientMonitor(model, optimizer, loader, **options)
    for number, (x, y) in enumerate(loader):
        if number == epochs * steps or monitor.should_stop:
            break
        step(model, optimizer, x, y)
        if (number + 1) % steps == 0:
            monitor.end_epoch()
    return monitor, data


@pytest.mark.parametrize(
    ("make", "found"), [(endless, "has no length"), (ten_billion, "25,000,000 times its data set")]
)
def test_a_sampler_without_an_end_is_said_within_50_steps(make, found, said):
    monitor, _ = train_endlessly(make, epochs=1, steps=50)
    (message,) = said()
    assert message.startswith("train_loader has ")
    assert found in message
    assert "call monitor.end_epoch()" in message
    assert "20 steps are once its data set" in message
    monitor.close()


@pytest.mark.parametrize("make", [endless, ten_billion])
def test_with_end_epoch_a_sampler_without_an_end_has_suspects_and_a_stop(make, said):
    monitor, data = train_endlessly(make, epochs=60, steps=20)
    assert monitor.should_stop
    assert monitor.decision.epoch == len(monitor.history())
    suspects = [suspect.index for suspect in monitor.suspects()]
    assert data.noisy[suspects].float().mean() > 0.9
    assert len(suspects) > 0.7 * data.noisy.sum()
    assert monitor.restore_best() == monitor.best_epoch
    assert said() == [one for one in said() if one.startswith("stop after")]
    monitor.close()


def test_a_stream_without_an_end_has_epochs_of_steps_and_says_what_it_lacks(said):
    model = mlp()
    optimizer = sgd(model)
    loader = DataLoader(Stream(), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader, noisy=lambda x, y, index: y == 0, every=1)
    for number, (x, y) in enumerate(loader, 1):
        step(model, optimizer, x, y)
        if number % 30 == 0:
            monitor.end_epoch()
            monitor.end_epoch()  # once more does nothing
        if number == 90:
            break
    assert [record["step"] for record in monitor.history()] == [30, 60, 90]
    assert monitor.latest["contribution_clean"] > 0
    assert monitor.suspects(min_score=0) == []
    assert not monitor.should_stop
    (lacks,) = said()
    assert "IterableDataset" in lacks
    assert "no suspects and no stop" in lacks
    monitor.close()


def test_a_stream_that_comes_to_no_end_is_told_of_end_epoch(said):
    model = mlp()
    optimizer = sgd(model)
    loader = DataLoader(Stream(), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader)
    for number, (x, y) in enumerate(loader):
        step(model, optimizer, x, y)
        if number == 60:
            break
    assert sum("call monitor.end_epoch()" in message for message in said()) == 1
    monitor.close()


def test_a_stream_that_ends_is_told_nothing_of_its_end(said):
    model = mlp()
    optimizer = sgd(model)
    loader = DataLoader(Stream(100), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader)
    for _ in range(8):
        for x, y in loader:
            step(model, optimizer, x, y)
    assert len(monitor.history()) == 8
    assert not any("end_epoch" in message for message in said())
    monitor.close()


def test_ten_times_over_the_data_set_is_still_an_epoch(said):
    data = TensorDataset(*(getattr(make_data(torch.float32), name) for name in ("inputs", "given")))
    sampler = RandomSampler(data, replacement=True, num_samples=600)
    model = mlp()
    optimizer = sgd(model)
    loader = DataLoader(data, batch_size=10, sampler=sampler)
    monitor = GradientMonitor(model, optimizer, loader)
    for _ in range(2):
        for x, y in loader:
            step(model, optimizer, x, y)
    assert len(monitor.history()) == 2
    assert said() == []
    monitor.close()


def test_a_data_set_that_claims_more_samples_than_memory_holds_is_refused_with_what_to_do():
    class Claims(Dataset):
        def __len__(self):
            return 10**15

        def __getitem__(self, index):
            return torch.zeros(7), 0

    model, loader = mlp(), DataLoader(Claims(), batch_size=10)
    with pytest.raises(ArgumentValueError, match="1,000,000,000,000,000 samples"):
        GradientMonitor(model, sgd(model), loader)
    assert not model._forward_hooks


# Nobody asks


def plain_run(epochs, after_epoch=lambda monitor: None, **options):
    model = mlp()
    optimizer = sgd(model)
    loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, **options)
    for _ in range(epochs):
        for x, y, _ in loader:
            step(model, optimizer, x, y)
        after_epoch(monitor)
    monitor.close()


@pytest.mark.parametrize(("epochs", "times"), [(1, 0), (2, 1), (5, 1)])
def test_a_loop_that_never_reads_the_advice_is_told_so_once(epochs, times, reminders):
    plain_run(epochs)
    assert reminders() == times


@pytest.mark.parametrize("read", [lambda m: m.should_stop, lambda m: m.decision.stop])
def test_a_loop_that_reads_the_advice_is_told_nothing(read, reminders):
    plain_run(4, read)
    assert reminders() == 0


def test_who_only_measures_need_not_ask(reminders):
    plain_run(4, stop=None)
    assert reminders() == 0


# Two monitors


def test_a_second_monitor_of_the_same_model_and_optimizer_closes_the_first(said):
    model = mlp()
    optimizer = sgd(model)
    loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
    shown = GradientMonitor(model, optimizer, loader)  # as a notebook keeps what it has shown
    for _ in range(2):
        for x, y, _ in loader:
            step(model, optimizer, x, y)
    history, suspects = shown.history(), shown.suspects(min_score=0)
    monitor = GradientMonitor(model, optimizer, loader)
    (message,) = said()
    assert "same model and optimizer" in message
    assert "closed" in message
    for x, y, _ in loader:
        step(model, optimizer, x, y)
    assert len(monitor.history()) == 1
    assert (shown.history(), shown.suspects(min_score=0)) == (history, suspects)
    assert len(model._forward_hooks) == 1
    monitor.close()
    assert not model._forward_hooks
    assert len(said()) == 1


def test_monitors_with_optimizers_of_their_own_live_side_by_side(said):
    model = mlp()
    optimizers = [torch.optim.SGD(model[place].parameters(), 0.05) for place in (0, 2)]
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitors = [GradientMonitor(model, optimizer, loader) for optimizer in optimizers]
    for _ in range(2):
        for x, y, _ in loader:
            optimizers[0].zero_grad()
            optimizers[1].zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizers[0].step()
            optimizers[1].step()
    assert [len(monitor.history()) for monitor in monitors] == [2, 2]
    assert said() == []
    for monitor in monitors:
        monitor.close()


def test_a_monitor_that_could_not_be_made_closes_no_other(said):
    model = mlp()
    optimizer = sgd(model)
    monitor = GradientMonitor(model, optimizer)
    with pytest.raises(TypeError):
        GradientMonitor(model, optimizer, [1, 2])
    assert said() == []
    assert len(model._forward_hooks) == 1
    monitor.close()
