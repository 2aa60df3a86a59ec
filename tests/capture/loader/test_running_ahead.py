"""Batches that are drawn before those of earlier ones are used keep their samples."""

import itertools
import queue
import threading
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from prioritymonitor.capture.loader.waiting import WaitingBatches
from tests.support.cases import INPUTS
from tests.support.observed import labels_seen

SAMPLES = 53


def dataset():
    """The label tells the index: sample i has label i."""
    generator = torch.Generator().manual_seed(5)
    return TensorDataset(torch.randn(SAMPLES, INPUTS, generator=generator), torch.arange(SAMPLES))


def watched(loader, **options):
    model = torch.nn.Linear(INPUTS, SAMPLES)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return model, optimizer, GradientMonitor(model, optimizer, loader, **options)


def train(model, optimizer, *batches):
    """One optimizer step."""
    optimizer.zero_grad()
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
    optimizer.step()


def one_ahead(loader):
    batches = iter(loader)
    ahead = next(batches)
    for following in batches:
        yield [ahead]
        ahead = following
    yield [ahead]


def groups_of(count):
    """Draws all micro-batches of a step first."""

    def drawn(loader):
        batches = iter(loader)
        while group := list(itertools.islice(batches, count)):
            yield group

    return drawn


def ahead_in_groups(loader):
    return groups_of(3)(batch for (batch,) in one_ahead(loader))


def all_at_once(loader):
    return ([batch] for batch in list(loader))


def in_another_thread(loader):
    waiting = queue.Queue(maxsize=2)

    def draw():
        for batch in loader:
            waiting.put([batch])
        waiting.put(None)

    threading.Thread(target=draw).start()
    return iter(waiting.get, None)


def with_some_passed_over(loader):
    return (group for number, group in enumerate(one_ahead(loader)) if number % 5 != 2)


WAYS = {
    "one ahead": one_ahead,
    "two at once": groups_of(2),
    "four at once": groups_of(4),
    "one ahead of three at once": ahead_in_groups,
    "a whole epoch at once": all_at_once,
    "another thread": in_another_thread,
    "some passed over": with_some_passed_over,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def test_a_thread_that_comes_to_the_end_before_the_last_step_does_not_end_the_epoch_without_it():
    loader = DataLoader(dataset(), batch_size=60)
    model, optimizer, monitor = watched(loader)
    batches = iter(loader)
    for epoch in (1, 2):
        x, y = next(batches)
        F.cross_entropy(model(x), y).backward()
        drawing = threading.Thread(target=next, args=(batches, None))
        drawing.start()
        drawing.join()
        optimizer.step()
        assert not monitor.should_stop
        assert len(monitor.history()) == epoch
        batches = iter(loader)
    monitor.close()


def test_once_a_pass_has_shown_that_the_loop_runs_ahead_the_next_are_taken_for_what_they_are():
    first_guesses = []
    choose = WaitingBatches.choose

    def chosen(waiting, candidates, shown, *, is_on_host):
        batch = choose(waiting, candidates, shown, is_on_host=is_on_host)
        first_guesses.append(candidates[0] is batch)
        return batch

    loader = DataLoader(dataset(), batch_size=8)
    model, optimizer, monitor = watched(loader)
    with patch.object(WaitingBatches, "choose", chosen):
        for group in one_ahead(loader):
            train(model, optimizer, *group)
    assert first_guesses == [False, *[True] * 6]
    monitor.close()


@ways
@pytest.mark.parametrize("batch_size", [1, 4, 8, 60])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_is_traced_and_each_epoch_is_one(way, batch_size, workers, said):
    if workers and batch_size != 8:
        pytest.skip("workers draw the same, whatever the batch")
    loader = DataLoader(dataset(), batch_size=batch_size, shuffle=True, num_workers=workers)
    model, optimizer, monitor = watched(loader)
    trained_on, ends = set(), []
    for _ in range(3):
        for group in way(loader):
            trained_on.update(torch.cat([y for _, y in group]).tolist())
            train(model, optimizer, *group)
        assert not monitor.should_stop
        ends.append(len(monitor.history()))
    monitor.end_epoch()
    assert labels_seen(monitor) == {i: i for i in trained_on}
    if way is not with_some_passed_over:  # its last batch is one of them
        assert ends == [1, 2, 3]
        assert (monitor.samples()["visits"] == 3).all()
    assert said() == []
    monitor.close()


def test_a_run_of_one_epoch_is_traced():
    loader = DataLoader(dataset(), batch_size=4, shuffle=True)
    model, optimizer, monitor = watched(loader)
    for group in one_ahead(loader):
        train(model, optimizer, *group)
    monitor.close()
    assert labels_seen(monitor) == {i: i for i in range(SAMPLES)}
    assert len(monitor.history()) == 1


def test_a_look_at_the_data_before_training_is_no_epoch():
    loader = DataLoader(dataset(), batch_size=4, shuffle=True)
    model, optimizer, monitor = watched(loader)
    for _ in range(2):
        assert len(list(loader)) == 14
        for group in one_ahead(loader):
            train(model, optimizer, *group)
    monitor.close()
    assert labels_seen(monitor) == {i: i for i in range(SAMPLES)}
    assert len(monitor.history()) == 2


def test_training_on_other_data_after_a_look_at_the_loader_is_traced_to_nothing():
    loader = DataLoader(dataset(), batch_size=4)
    model, optimizer, monitor = watched(loader)
    assert len(list(loader)) == 14
    for _ in range(3):
        train(model, optimizer, (torch.randn(4, INPUTS), torch.tensor([3, 1, 50, 7])))
    monitor.end_epoch()
    assert labels_seen(monitor) == {}
    monitor.close()
