"""Labels that the loss gets beside those that the loader gave, from the first step on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, StopReason
from tests.support.cases import CLASSES, INPUTS, make_data
from tests.support.observed import labels_seen

SAMPLES = 480
GIVEN = make_data(torch.float32, SAMPLES).given
IN_LOOP = torch.where(
    torch.rand(SAMPLES, generator=torch.Generator().manual_seed(2)) < 0.2,
    (GIVEN + 1) % CLASSES,
    GIVEN,
)


class Loop:
    """Trains on what becomes of the loader's batches."""

    def __init__(self, change, labels=lambda y: y, classes=CLASSES, criterion=None, batch_size=40):
        data = make_data(torch.float32, SAMPLES)
        dataset = TensorDataset(data.inputs, labels(data.given), torch.arange(SAMPLES))
        torch.manual_seed(0)
        self.loader = DataLoader(dataset, batch_size, shuffle=True)
        self.model = nn.Sequential(nn.Linear(INPUTS, 16), nn.ReLU(), nn.Linear(16, classes))
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.change, self.loss = change, criterion or F.cross_entropy
        self.monitor = GradientMonitor(
            self.model, self.optimizer, self.loader, criterion=criterion, every=2
        )

    def train(self, epochs):
        for _ in range(epochs):
            for x, y, index in self.loader:
                x, y = self.change(x, y, index)
                self.optimizer.zero_grad()
                self.loss(self.model(x), y).backward()
                self.optimizer.step()
        self.monitor.end_epoch()
        return self.monitor


def shuffled(x, y, index):
    order = torch.randperm(len(y))
    return x[order], y[order]


def sometimes_shuffled(x, y, index):
    return shuffled(x, y, index) if index[0] % 8 == 0 else (x, y)


def of_others(x, y, index):
    """The labels of random other samples, which the loader did not give with these."""
    return x, GIVEN[torch.randint(SAMPLES, (len(y),))]


def one_hot(y):
    return F.one_hot(y, CLASSES).float()


def bits(y):
    return (y > 1).float()


BCE = nn.BCEWithLogitsLoss()

OUT_OF_ORDER = {
    "shuffled": {"change": shuffled},
    "shuffled at times": {"change": sometimes_shuffled},
    "of others": {"change": of_others},
    "shuffled, one-hot": {"change": shuffled, "labels": one_hot},
    "shuffled, criterion": {"change": shuffled, "criterion": nn.CrossEntropyLoss()},
    "shuffled, criterion is a function": {"change": shuffled, "criterion": F.cross_entropy},
    "shuffled, bits": {
        "change": lambda x, y, i: shuffled(x, y[:, None], i),
        "labels": bits,
        "criterion": BCE,
        "classes": 1,
    },
    "small batches": {"change": shuffled, "batch_size": 6},
}


@pytest.mark.parametrize("options", OUT_OF_ORDER.values(), ids=OUT_OF_ORDER)
def test_labels_in_another_order_are_noticed_in_a_run_of_one_epoch(options, said):
    monitor = Loop(**options).train(1)
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert monitor.suspects() == []
    assert not monitor.should_stop
    message = next(message for message in said() if "identity" in message)
    assert "showed other labels than train_loader gave" in message
    assert "changes their order or their labels" in message
    assert "noise_share" in monitor.latest  # statistics go on


IN_ORDER = {
    "as they are": {"change": lambda x, y, i: (x, y)},
    "from 1 on in the data": {"change": lambda x, y, i: (x, y - 1), "labels": lambda y: y + 1},
    "pairs of classes": {"change": lambda x, y, i: (x, y // 2), "classes": 3},
    "uint8": {"change": lambda x, y, i: (x, y.long()), "labels": lambda y: y.byte()},
    "a column": {"change": lambda x, y, i: (x, y[:, 0]), "labels": lambda y: y[:, None]},
    "one-hot": {"change": lambda x, y, i: (x, y), "labels": one_hot},
    "bool": {
        "change": lambda x, y, i: (x, y.float()[:, None]),
        "labels": lambda y: y > 1,
        "criterion": BCE,
        "classes": 1,
    },
    "ignored by its loss": {
        "change": lambda x, y, i: (x, y),
        "criterion": nn.CrossEntropyLoss(ignore_index=3),
    },
    "ignored by the loop": {"change": lambda x, y, i: (x, y.masked_fill(i % 3 == 0, -100))},
    "criterion is a function": {"change": lambda x, y, i: (x, y), "criterion": F.cross_entropy},
    "batches of two": {"change": lambda x, y, i: (x, y), "batch_size": 2},
}


@pytest.mark.parametrize("options", IN_ORDER.values(), ids=IN_ORDER)
def test_labels_that_are_made_of_the_loader_s_class_by_class_keep_identity(options, said):
    monitor = Loop(**options).train(2)
    assert monitor.decision.reason is not StopReason.NO_IDENTITY
    assert len(labels_seen(monitor)) > SAMPLES / 2
    assert not [message for message in said() if "label" in message]


def test_a_loop_that_changes_some_labels_is_followed_by_them_and_told_once(said):
    monitor = Loop(lambda x, y, i: (x, IN_LOOP[i])).train(3)
    assert monitor.decision.reason is not StopReason.NO_IDENTITY
    assert labels_seen(monitor) == dict(enumerate(IN_LOOP.tolist()))
    (message,) = [message for message in said() if "label" in message]
    assert (
        "of the samples showed other labels than train_loader gave; they are judged by" in message
    )


def test_identity_that_is_lost_later_leaves_what_was_known_before(said):
    loop = Loop(lambda x, y, i: (x, y))
    loop.train(4)
    visits = loop.monitor.samples()["visits"].sum()
    loop.change = shuffled
    monitor = loop.train(1)
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert monitor.samples()["visits"].sum() == visits


def test_pieces_of_a_batch_are_traced_and_picked_samples_are_not(said):
    """Two micro-batches of one batch; and the half of it that a loop chose."""

    def halves(loop):
        for x, y, _ in loop.loader:
            loop.optimizer.zero_grad()
            for part in (slice(0, 20), slice(20, 40)):
                F.cross_entropy(loop.model(x[part]), y[part], label_smoothing=0.1).backward()
            loop.optimizer.step()
        loop.monitor.end_epoch()
        return loop.monitor

    monitor = halves(Loop(lambda x, y, i: (x, y)))
    assert labels_seen(monitor) == dict(enumerate(GIVEN.tolist()))

    def picked(x, y, index):
        chosen = torch.randperm(len(y))[:20]
        return x[chosen], y[chosen]

    monitor = Loop(picked).train(1)
    assert len(labels_seen(monitor)) < SAMPLES / 20
