"""Each batch is traced to its samples, however the loader is set up and used."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from prioritymonitor import GradientMonitor, StopReason
from tests.support.cases import INPUTS
from tests.support.observed import labels_seen

SAMPLES = 53


def dataset():
    """The label tells the index: sample i has label i."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(SAMPLES, INPUTS, generator=generator)
    return TensorDataset(inputs, torch.arange(SAMPLES))


def watched(loader, **options):
    model = torch.nn.Linear(INPUTS, SAMPLES)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    return model, optimizer, GradientMonitor(model, optimizer, loader, **options)


def train(model, optimizer, x, y):
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def traced(monitor):
    return labels_seen(monitor)


class EvenFirst:
    """A batch sampler of the user's own, with an attribute of its own."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        order = [*range(0, SAMPLES, 2), *range(1, SAMPLES, 2)]
        return iter([order[i : i + 5] for i in range(0, SAMPLES, 5)])

    def __len__(self):
        return 11


LOADERS = {
    "shuffled": lambda: DataLoader(dataset(), batch_size=8, shuffle=True),
    "two workers": lambda: DataLoader(dataset(), batch_size=8, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(
        dataset(), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True
    ),
    "prefetching": lambda: DataLoader(
        dataset(), batch_size=4, shuffle=True, num_workers=2, prefetch_factor=5
    ),
    "custom batch sampler": lambda: DataLoader(dataset(), batch_sampler=EvenFirst()),
    "batch sampler over a random one": lambda: DataLoader(
        dataset(), batch_sampler=BatchSampler(RandomSampler(range(SAMPLES)), 7, False)
    ),
    "batches from the sampler": lambda: DataLoader(
        dataset(), batch_size=None, sampler=BatchSampler(RandomSampler(range(SAMPLES)), 7, False)
    ),
    "batches of one": lambda: DataLoader(dataset(), batch_size=1, shuffle=True),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_every_sample_is_traced(make):
    loader = make()
    model, optimizer, monitor = watched(loader)
    for _ in range(2):
        for x, y in loader:
            train(model, optimizer, x, y)
    assert traced(monitor) == {i: i for i in range(SAMPLES)}
    assert len(monitor.history()) == 2
    monitor.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_dropped_last_batches_leave_the_rest_traced(workers):
    loader = DataLoader(dataset(), batch_size=8, shuffle=True, drop_last=True, num_workers=workers)
    model, optimizer, monitor = watched(loader)
    for x, y in loader:
        train(model, optimizer, x, y)
    found = traced(monitor)
    assert len(found) == 48
    assert all(index == label for index, label in found.items())
    monitor.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_breaking_off_an_epoch_keeps_index_and_batch_together(workers, persistent):
    loader = DataLoader(
        dataset(),
        batch_size=4,
        shuffle=True,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
    )
    model, optimizer, monitor = watched(loader)
    for epoch in range(6):
        for number, (x, y) in enumerate(loader):
            train(model, optimizer, x, y)
            if number == epoch:
                break
    found = traced(monitor)
    assert found
    assert all(index == label for index, label in found.items())
    assert len(monitor.history()) == 5  # the sixth ends when a seventh begins
    monitor.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_the_loop_skips_are_not_traced(workers):
    loader = DataLoader(dataset(), batch_size=4, num_workers=workers)
    model, optimizer, monitor = watched(loader)
    for number, (x, y) in enumerate(loader):
        if number % 3 == 0:
            continue
        train(model, optimizer, x, y)
    skipped = {i for n in range(0, 14, 3) for i in range(4 * n, 4 * n + 4)}
    assert traced(monitor) == {i: i for i in range(SAMPLES) if i not in skipped}
    monitor.close()


def test_a_batch_cut_into_micro_batches_is_traced():
    loader = DataLoader(dataset(), batch_size=12, shuffle=True)
    model, optimizer, monitor = watched(loader)
    for x, y in loader:
        optimizer.zero_grad()
        for part, labels in zip(x.split(5), y.split(5), strict=True):
            F.cross_entropy(model(part), labels).backward()
        optimizer.step()
    assert traced(monitor) == {i: i for i in range(SAMPLES)}
    monitor.close()


def test_a_distributed_sampler_gives_the_samples_of_its_rank():
    data = dataset()
    sampler = DistributedSampler(data, num_replicas=2, rank=1, shuffle=True)
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    model, optimizer, monitor = watched(loader)
    seen = set()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for x, y in loader:
            seen.update(y.tolist())
            train(model, optimizer, x, y)
    assert traced(monitor) == {i: i for i in seen}
    monitor.close()


def test_indices_into_a_subset_are_positions_in_the_subset():
    subset = Subset(dataset(), list(range(40, 10, -1)))
    loader = DataLoader(subset, batch_size=8, shuffle=True)
    flags = torch.zeros(30, dtype=torch.bool)
    model, optimizer, monitor = watched(loader, noisy=flags)
    for x, y in loader:
        train(model, optimizer, x, y)
    assert traced(monitor) == {position: 40 - position for position in range(30)}
    monitor.close()


def test_samples_drawn_several_times_are_traced():
    sampler = WeightedRandomSampler(torch.ones(SAMPLES), 3 * SAMPLES, replacement=True)
    loader = DataLoader(dataset(), batch_size=16, sampler=sampler)
    model, optimizer, monitor = watched(loader)
    for x, y in loader:
        train(model, optimizer, x, y)
    assert all(index == label for index, label in traced(monitor).items())
    monitor.close()


def test_a_broken_sample_that_the_loop_survives_keeps_identity():
    class Broken(torch.utils.data.Dataset):
        def __init__(self):
            self.good = dataset()

        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            if index == 9:
                raise OSError("unreadable")
            return self.good[index]

    loader = DataLoader(Broken(), batch_size=4)
    model, optimizer, monitor = watched(loader)
    batches = iter(loader)
    while True:
        try:
            x, y = next(batches)
        except OSError:
            continue
        except StopIteration:
            break
        train(model, optimizer, x, y)
    assert traced(monitor) == {i: i for i in range(SAMPLES) if i not in range(8, 12)}
    monitor.close()


def test_a_metric_pass_over_the_train_loader_is_no_epoch():
    loader = DataLoader(dataset(), batch_size=8, shuffle=True)
    model, optimizer, monitor = watched(loader)
    for _ in range(3):
        for x, y in loader:
            train(model, optimizer, x, y)
        with torch.no_grad():
            for x, _ in loader:
                model(x)
    assert [record["epoch"] for record in monitor.history()] == [1, 2, 3]
    monitor.close()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(dataset())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: DataLoader(Stream(), batch_size=8), "IterableDataset"),
        (lambda: DataLoader(dataset(), batch_size=8, num_workers=2, in_order=False), "in_order"),
    ],
    ids=["stream", "out of order"],
)
def test_without_identities_it_measures_says_so_once_and_never_stops(make, reason, said):
    loader = make()
    model, optimizer, monitor = watched(loader, every=1)
    for _ in range(12):
        for x, y in loader:
            train(model, optimizer, x, y)
        assert not monitor.should_stop
    assert sum(reason in message for message in said()) == 1
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert monitor.latest["dominance_ratio"] > 0
    assert monitor.suspects(min_score=0) == []
    assert monitor.restore_best() is None
    assert len(monitor.history()) == 12
    monitor.close()


def test_without_a_train_loader_steps_are_measured():
    model, optimizer, monitor = watched(None, every=1)
    x, y = dataset().tensors
    train(model, optimizer, x, y)
    assert monitor.latest["coherence"]
    assert not monitor.should_stop
    assert monitor.history() == []
    monitor.close()


def test_only_a_fixed_subset_of_a_large_data_set_is_tracked():
    tracked = []
    for _ in range(2):
        loader = DataLoader(dataset(), batch_size=8, shuffle=True)
        model, optimizer, monitor = watched(loader, max_tracked=20, noisy=torch.arange(53) % 2 == 0)
        for _ in range(2):
            for x, y in loader:
                train(model, optimizer, x, y)
        tracked.append(traced(monitor))
        monitor.close()
    assert len(tracked[0]) == 20
    assert all(index == label for index, label in tracked[0].items())
    assert tracked[0] == tracked[1]
