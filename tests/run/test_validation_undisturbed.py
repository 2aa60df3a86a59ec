"""Held-out samples disturb nothing, and what goes wrong with them ends nothing else."""

import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from prioritymonitor import GradientMonitor
from tests.capture.test_no_disturbance import assert_identical
from tests.support.cases import CLASSES, INPUTS, make_data, make_loader, mlp
from tests.support.small_run import SmallRun


class Noting(nn.Module):
    """Notes each pass in itself, in training or not."""

    def __init__(self):
        super().__init__()
        self.passes, self.outputs = 0, []
        self.register_buffer("seen", torch.zeros(1))
        self.table = nn.Embedding(4, 8, max_norm=0.5)

    def forward(self, x):
        self.passes += 1
        self.outputs.append(float(x.detach().sum()))
        self.seen += len(x)
        return x + self.table(torch.zeros(len(x), dtype=torch.int64)) * torch.rand(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), Noting(), nn.ReLU(), nn.Dropout(0.3)
        )
        self.frozen = nn.BatchNorm1d(8).eval()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.frozen(self.body(x)))


class Augmented(Dataset):
    """Draws from every source of randomness, and from generators of its own."""

    def __init__(self):
        self.data = make_data(torch.float32)
        self.transforms = [np.random.default_rng(1), random.Random(1), np.random.RandomState(1)]

    def __len__(self):
        return len(self.data.given)

    def __getitem__(self, index):
        noise = torch.randn(INPUTS) + random.random() + np.random.rand()
        own = [one.random() if hasattr(one, "random") else one.rand() for one in self.transforms]
        return self.data.inputs[index] + 0.1 * (noise + sum(own)), self.data.given[index]


def train(with_validation, workers, batches, keeps_workers=False):
    """What training leads to, and all that it leaves in the model, the loaders and Python."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model, dataset, generator = Net(), Augmented(), torch.Generator().manual_seed(3)
    options = {"num_workers": workers, "shuffle": True, "generator": generator, "batch_size": 8}
    loader = DataLoader(dataset, **options)
    held_out = DataLoader(dataset, **options, persistent_workers=keeps_workers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    hooked, losses = [], []
    model.head.register_forward_hook(lambda *called: hooked.append(called[0].training))
    model.register_forward_pre_hook(lambda *called: hooked.append(called[0].training))
    validation = held_out if with_validation else None
    monitor = GradientMonitor(model, optimizer, loader, every=2, validation=validation)
    for _ in range(3):
        for number, (x, y) in enumerate(loader):
            if number == batches:
                break
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    monitor.end_epoch()
    history = monitor.history()
    assert all((record["validation"] is not None) is with_validation for record in history)
    outcome = {
        "history": [record | {"time": None, "validation": None} for record in history],
        "samples": {name: column.tolist() for name, column in monitor.samples().items()},
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "optimizer": optimizer.state_dict(),
        "modes": [module.training for module in model.modules()],
        "noted": [model.body[2].passes, model.body[2].outputs],
        "losses": losses,
        "hooked": hooked,
        "random": [torch.get_rng_state(), generator.get_state(), random.getstate()],
        "numpy": np.random.get_state()[1].tolist(),
        "own": [one.random() for one in dataset.transforms[:2]] + [dataset.transforms[2].rand()],
        "modes of torch": [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")],
    }
    monitor.restore_best()
    monitor.close()
    return outcome | {"best": model.state_dict()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [100, 5], ids=["whole epochs", "epochs broken off"])
def test_training_is_bit_identical_with_and_without_held_out_samples(workers, batches):
    assert_identical(train(True, workers, batches), train(False, workers, batches))


def test_workers_that_the_held_out_loader_keeps_are_left_alone():
    run = SmallRun()
    held_out = make_loader(
        make_data(torch.float32), batch_size=20, num_workers=1, persistent_workers=True
    )
    monitor = run.watched(validation=held_out)
    going_on = iter(held_out)
    first = next(going_on)
    run.train(2)
    rest = list(going_on)
    assert torch.equal(torch.cat([y for _, y, _ in (first, *rest)]), make_data().given)
    assert None not in values(monitor)
    monitor.close()


def test_a_held_out_loader_that_the_loop_uses_too_goes_on_as_before():
    """Also where another monitor trains on it."""
    run, other = SmallRun(), SmallRun()
    trained = other.watched()
    monitor = run.watched(validation=other.loader)
    for _ in range(2):
        run.train()
        other.train()
    assert trained.samples()["visits"].tolist() == [2] * 60
    assert None not in values(monitor)
    monitor.close()
    trained.close()


def values(monitor):
    return [record["validation"] for record in monitor.history()]


# What goes wrong


class Broken:
    """A loader that raises at its second batch, so many times."""

    def __init__(self, error, times=10**6):
        self.error, self.left = error, times

    def __iter__(self):
        batch = make_data(torch.float32).inputs, make_data().given
        yield batch
        if self.left > 0:
            self.left -= 1
            raise self.error
        yield batch


def fit(validation, epochs=3, model=None, **options):
    run = SmallRun()
    if model is not None:
        run.model = model
        run.optimizer = torch.optim.SGD(model.parameters(), 0.05)
    monitor = run.watched(validation=validation, **options)
    run.train(epochs)
    assert len(monitor.history()) == epochs
    assert (monitor.samples()["visits"] > 0).all()
    assert monitor.restore_best() == monitor.best_epoch
    monitor.close()
    return values(monitor)


@pytest.mark.parametrize("error", [ValueError("no such file"), StopIteration()], ids=repr)
def test_a_held_out_loader_that_fails_is_said_once_and_ends_nothing_else(error, said):
    assert fit(Broken(error)) == [None] * 3
    (message,) = said()
    assert message.startswith("validation= is off, measuring and training go on: ")


def test_a_worker_that_fails_is_said_once_and_ends_nothing_else(said):
    class Unreadable(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            raise KeyError(index)

    assert fit(DataLoader(Unreadable(), num_workers=1)) == [None] * 3
    assert len(said()) == 1
    assert "KeyError" in said()[0]


def test_what_may_pass_is_tried_again(said):
    first, *later = fit(Broken(torch.OutOfMemoryError("no memory left"), times=1))
    assert first is None
    assert None not in later
    assert [message.startswith("validation= failed and is tried") for message in said()] == [True]


class ForTrainingOnly(nn.Module):
    """Can't be called in evaluation mode, as a module that wants other things there."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        if not self.training:
            raise RuntimeError("wants a whole batch")
        return self.body(x)


def test_a_model_that_cannot_be_called_so_is_said_once_with_what_to_do(said):
    model = ForTrainingOnly()
    held_out = make_loader(make_data(torch.float32), batch_size=20)
    assert fit(held_out, model=model) == [None] * 3
    (message,) = said()
    assert "RuntimeError: wants a whole batch" in message
    assert "batches are (inputs, labels)" in message
    assert all(module.training for module in model.modules())


INPUT, GIVEN = make_data(torch.float32).inputs, make_data().given
UNUSABLE = {
    "without labels": ([(INPUT,)], "no labels were found in a batch of type tuple"),
    "with words for labels": ([(INPUT, ["a"] * 60)], "no labels were found"),
    "without samples": ([], "it gave no samples"),
    "with a label for each position": (
        [(INPUT, GIVEN.repeat(3, 1).T)],
        r"labels \[60, 3\] for logits \[60, 5\]",
    ),
    "with several labels": ([(INPUT, torch.ones(60, CLASSES))], "several classes"),
    "with numbers": ([(INPUT, torch.randn(60))], "numbers without classes"),
    "with labels beyond the classes": ([(INPUT, GIVEN + CLASSES)], "none of its labels"),
}


@pytest.mark.parametrize(("held_out", "why"), UNUSABLE.values(), ids=UNUSABLE)
def test_held_out_samples_that_cannot_be_judged_are_said_once(held_out, why, said):
    assert fit(held_out) == [None] * 3
    (message,) = said()
    assert re.search(why, message)


@pytest.mark.parametrize("by", ["the loader", "the model"])
def test_an_interruption_reaches_the_loop_and_the_monitor_goes_on(by, said):
    left = []

    class Interrupting(nn.Module):
        def forward(self, x):
            if not self.training and left:
                left.pop()
                raise KeyboardInterrupt
            return x

    run = SmallRun()
    run.model.append(Interrupting())
    held_out = Broken(KeyboardInterrupt(), times=1 if by == "the loader" else 0)
    monitor = run.watched(validation=held_out)
    if by == "the model":
        run.train()  # the neighbours' votes take passes in evaluation mode too, in the first epoch
        left.append(1)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert all(module.training for module in run.model.modules())
    assert torch.is_grad_enabled()
    run.train(1 if by == "the model" else 2)
    assert None not in values(monitor)
    assert monitor.samples()["visits"].tolist() == [3] * 60
    assert said() == []
    monitor.close()
