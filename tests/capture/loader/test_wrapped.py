"""The DataLoader inside of what people put around it is found, or it is said what to pass."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from prioritymonitor import ArgumentTypeError, GradientMonitor
from tests.capture.loader.test_running_ahead import SAMPLES, dataset, train, watched
from tests.support.observed import labels_seen


class OnDevice:
    """What many scripts have: takes batches to a device, and works like the loader otherwise."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for x, y in self.loader:
            yield x.double().float(), y


class Prefetching(OnDevice):
    """Yields a batch when it has the next one, as timm's PrefetchLoader does."""

    def __iter__(self):
        ahead = None
        for batch in super().__iter__():
            if ahead is not None:
                yield ahead
            ahead = batch
        yield ahead


def with_a_bar(loader):
    return pytest.importorskip("tqdm").tqdm(loader, disable=True)


def combined(loader):
    utilities = pytest.importorskip("lightning.pytorch.utilities")
    return utilities.CombinedLoader([loader])


def nested(loader):
    return Prefetching(OnDevice(loader))


WRAPPERS = {
    "on a device": OnDevice,
    "prefetching": Prefetching,
    "nested": nested,
    "a progress bar": with_a_bar,
    "Lightning's combined loader": combined,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_is_around_a_loader_can_be_passed_in(wrap, said):
    loader = wrap(DataLoader(dataset(), batch_size=8, shuffle=True))
    model, optimizer, monitor = watched(loader)
    for _ in range(2):
        for batch in loader:
            train(model, optimizer, batch[0][0] if wrap is combined else batch)
        assert not monitor.should_stop
    assert labels_seen(monitor) == {i: i for i in range(SAMPLES)}
    assert len(monitor.history()) == 2
    assert said() == []
    monitor.close()


@pytest.mark.parametrize(
    "around",
    [
        lambda loader: itertools.islice(loader, 3),
        lambda loader: map(tuple, loader),
        lambda loader: (batch for batch in loader),
        lambda loader: itertools.cycle(loader),
    ],
    ids=["islice", "map", "generator", "cycle"],
)
def test_the_loader_inside_an_iterator_is_passed_in_itself(around):
    loader = DataLoader(dataset(), batch_size=8)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ArgumentTypeError, match="pass the torch DataLoader"):
        GradientMonitor(model, optimizer, around(loader))
    assert "_get_iterator" not in vars(loader)


@pytest.mark.parametrize("epochs", [3])
def test_batches_of_a_generator_around_the_loader_are_traced(epochs):
    loader = DataLoader(dataset(), batch_size=8, shuffle=True)
    model, optimizer, monitor = watched(loader)
    endless = (batch for _ in itertools.count() for batch in loader)
    for batch in itertools.islice(endless, epochs * len(loader)):
        train(model, optimizer, batch)
    monitor.close()
    assert labels_seen(monitor) == {i: i for i in range(SAMPLES)}
    assert len(monitor.history()) == epochs


def test_of_several_loaders_the_one_to_follow_is_asked_for():
    loaders = [DataLoader(dataset(), batch_size=8), DataLoader(dataset(), batch_size=8)]
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ArgumentTypeError, match="around 2 DataLoaders"):
        GradientMonitor(model, optimizer, loaders)
