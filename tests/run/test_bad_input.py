"""Wrong arguments raise at construction; trouble during training is said once and survived."""

import errno

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import (
    ArgumentTypeError,
    ArgumentValueError,
    GradientMonitor,
    PriorityMonitorError,
    StopReason,
    StopRule,
    corrupt_labels,
)
from prioritymonitor.gradients.measured_steps import StepStatistics
from prioritymonitor.samples.history import SampleHistory
from tests.support.cases import INPUTS, make_data, make_loader, mlp

N = 60


def make(model=None, optimizer=None, loader="default", **options):
    model = model or mlp()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    if loader == "default":
        loader = make_loader(make_data(torch.float32), batch_size=10)
    return GradientMonitor(model, optimizer, loader, **options)


WRONG = {
    "optimizer of another model": (
        lambda: {"optimizer": torch.optim.SGD(mlp().parameters(), 0.1)},
        ArgumentValueError,
        "no trainable parameter",
    ),
    "optimizer that is none": (lambda: {"optimizer": "sgd"}, ArgumentTypeError, "optimizer"),
    "loader that is none": (lambda: {"loader": [1, 2]}, ArgumentTypeError, "train_loader"),
    "short mask": (lambda: {"noisy": torch.zeros(7, dtype=torch.bool)}, ArgumentValueError, "60"),
    "integer mask": (
        lambda: {"noisy": torch.zeros(N, dtype=torch.int64)},
        ArgumentTypeError,
        "bool",
    ),
    "mask of words": (lambda: {"noisy": ["yes"] * N}, ArgumentTypeError, "noisy"),
    "mask that is a word": (lambda: {"noisy": "labels"}, ArgumentTypeError, "noisy"),
    "mask without loader": (
        lambda: {"loader": None, "noisy": torch.zeros(N, dtype=torch.bool)},
        ArgumentValueError,
        "train_loader",
    ),
    "true labels that are floats": (
        lambda: {"true_labels": torch.zeros(N)},
        ArgumentTypeError,
        "integer",
    ),
    "unknown scope": (lambda: {"scope": "body"}, ArgumentValueError, "scope"),
    "unknown engine": (lambda: {"engine": "magic"}, ArgumentValueError, "engine"),
    "every 0": (lambda: {"every": 0}, ArgumentValueError, "every"),
    "every a fraction": (lambda: {"every": 0.5}, ArgumentTypeError, "every"),
    "every a word": (lambda: {"every": "often"}, ArgumentTypeError, "whole number"),
    "every a flag": (lambda: {"every": True}, ArgumentTypeError, "every=True"),
    "nothing tracked": (lambda: {"max_tracked": 0}, ArgumentValueError, "max_tracked"),
    "head that is no linear layer": (lambda: {"head": nn.ReLU()}, ArgumentTypeError, "head"),
    "head of another model": (lambda: {"head": nn.Linear(8, 5)}, ArgumentValueError, "head"),
    "unknown keep_best": (lambda: {"keep_best": "first"}, ArgumentValueError, "keep_best"),
    "validation that is none": (lambda: {"validation": 3}, ArgumentTypeError, "validation"),
    "validation that is a data set": (
        lambda: {"validation": TensorDataset(torch.zeros(3, INPUTS))},
        ArgumentTypeError,
        "DataLoader",
    ),
    "validation that can be read once": (
        lambda: {"validation": iter([])},
        ArgumentTypeError,
        "gone through again",
    ),
    "stop that is a number": (lambda: {"stop": 7}, ArgumentTypeError, "StopRule"),
    "criterion that is a word": (lambda: {"criterion": "ce"}, ArgumentTypeError, "criterion"),
    "function as criterion without labels": (
        lambda: {"criterion": F.cross_entropy, "loader": None},
        ArgumentValueError,
        "train_loader",
    ),
    "two places to write to": (
        lambda: {"log_dir": "runs", "writer": object()},
        ArgumentValueError,
        "log_dir and writer",
    ),
    "writer that cannot write": (lambda: {"writer": object()}, ArgumentTypeError, "add_scalar"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_raises_at_construction(options, error, message):
    loader = make_loader(make_data(torch.float32), batch_size=10)
    with pytest.raises(error, match=message) as raised:
        make(**{"loader": loader, **options()})
    assert isinstance(raised.value, PriorityMonitorError)
    assert "_get_iterator" not in vars(loader)


def test_the_train_loader_is_no_validation():
    loader = make_loader(make_data(torch.float32), batch_size=10)
    with pytest.raises(ArgumentValueError, match="other samples"):
        make(loader=loader, validation=loader)


def test_a_model_that_is_none_raises():
    with pytest.raises(ArgumentTypeError, match="model"):
        GradientMonitor("resnet", torch.optim.SGD(mlp().parameters(), 0.1))


def test_a_frozen_model_raises():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.requires_grad_(False)
    with pytest.raises(ArgumentValueError, match="no trainable parameter"):
        GradientMonitor(model, optimizer)


@pytest.mark.parametrize("field", ["patience", "min_epochs", "tolerance"])
def test_a_stop_rule_refuses_nonsense(field):
    with pytest.raises(ArgumentValueError, match=field):
        StopRule(**{field: -1})
    with pytest.raises(ArgumentTypeError, match=field):
        StopRule(**{field: "1.5" if field == "tolerance" else 1.5})


@pytest.mark.parametrize("mask", [np.zeros(N, bool), [False] * N, (True,) * N])
def test_masks_of_numpy_and_plain_bools_are_fine(mask):
    make(noisy=mask).close()


def test_corrupting_labels_refuses_nonsense_and_keeps_the_rate():
    targets = torch.arange(1000) % 10
    for kind in ("symmetric", "pair"):
        noisy = corrupt_labels(targets, 0.3, kind=kind, generator=torch.Generator().manual_seed(0))
        assert int((noisy != targets).sum()) == 300
        assert noisy.min() >= 0
        assert noisy.max() <= 9
    assert ((noisy - targets)[noisy != targets] % 10 == 1).all()
    with pytest.raises(ArgumentValueError, match="rate"):
        corrupt_labels(targets, 1.5)
    with pytest.raises(ArgumentValueError, match="kind"):
        corrupt_labels(targets, 0.1, kind="random")
    with pytest.raises(ArgumentValueError, match="classes"):
        corrupt_labels(torch.zeros(5, dtype=torch.int64), 0.1)
    with pytest.raises(ArgumentTypeError, match="integer"):
        corrupt_labels(torch.rand(5), 0.1)


def train(loss=None, model=None, epochs=2, batches=None, **options):
    """Train without any care for the monitor; return it with the number of steps made."""
    model = model or mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader, every=1, **options)
    steps = 0
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            value = loss(model, x, y, steps) if loss else F.cross_entropy(model(x), y)
            value.backward()
            if not torch.isfinite(value):
                optimizer.zero_grad()
            optimizer.step()
            steps += 1
    return monitor, steps


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_drop_the_step_and_are_counted(value, said):
    def loss(model, x, y, step):
        x = x.clone()
        if step == 3:
            x[2] = value
        return F.cross_entropy(model(x), y)

    monitor, steps = train(loss)
    assert steps == 12
    assert len(said()) == 1
    assert "1 batches of epoch 1 had NaN or infinite" in said()[0]
    assert len(monitor.history()) == 2
    assert all(np.isfinite(record["train_loss"]) for record in monitor.history())
    assert np.isfinite(monitor.latest["coherence"])
    monitor.close()


def test_a_loss_that_is_not_recognised_turns_measuring_off_with_the_remedy(said):
    monitor, steps = train(lambda model, x, y, step: F.cross_entropy(model(x) / 3, y))
    assert steps == 12
    assert len(said()) == 1
    assert "criterion=" in said()[0]
    assert monitor.decision.reason is StopReason.FAILED
    assert not monitor.should_stop
    monitor.close()


class Cosine(nn.Module):
    """Its logits are a scaled output of the last linear layer, not that output."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(INPUTS, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return 3.0 * self.head(self.body(x).relu())


@pytest.mark.parametrize("named", [False, True])
def test_a_head_that_does_not_give_the_logits_turns_its_statistics_off(named, said):
    model = Cosine()
    monitor, steps = train(model=model, **({"head": model.head} if named else {}))
    assert steps == 12
    assert len(said()) == 1
    assert "Statistics of the head are off" in said()[0]
    assert set(monitor.latest) == {"batch_loss", "overhead_fraction"}
    assert (monitor.samples()["visits"] > 0).all()
    assert len(monitor.history()) == 2
    monitor.close()


class OutOfRange(nn.Module):
    """A criterion of the user's own that takes labels from 1 to C."""

    def forward(self, logits, target):
        return F.cross_entropy(logits, target - 1)


def test_labels_out_of_range_are_survived(said):
    criterion = OutOfRange()
    monitor, steps = train(
        lambda model, x, y, step: criterion(model(x), y + 1), criterion=criterion
    )
    assert steps == 12
    assert len(said()) == 1
    assert "label" in said()[0]
    monitor.close()


def test_one_logit_per_sample_without_a_criterion_is_survived(said):
    def loss(model, x, y, step):
        return F.binary_cross_entropy_with_logits(model(x)[:, 0], (y > 2).float())

    monitor, steps = train(loss, model=nn.Linear(INPUTS, 1))
    assert steps == 12
    assert len(said()) == 1
    assert "pass the loss as criterion=" in said()[0]
    monitor.close()


def test_a_noisy_function_that_raises_turns_measuring_off_once(said):
    def noisy(inputs, targets, index):
        raise RuntimeError("no such table")

    monitor, steps = train(noisy=noisy)
    assert steps == 12
    assert len(said()) == 1
    assert "no such table" in said()[0]
    monitor.close()


def test_a_full_disk_stops_nothing_but_the_writing(said, monkeypatch, tmp_path):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", full)
    monitor, steps = train(log_dir=tmp_path)
    assert steps == 12
    assert len(said()) == 1
    assert "No space left" in said()[0]
    assert len(monitor.history()) == 2
    monitor.close()


def test_a_folder_that_cannot_be_made_turns_writing_off(said, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monitor, steps = train(log_dir=tmp_path / "file" / "run")
    assert steps == 12
    assert monitor.history()
    monitor.close()
    assert said()


def test_a_writer_that_raises_is_used_once(said):
    class Broken:
        calls = 0

        def add_scalar(self, *arguments):
            self.calls += 1
            raise ValueError("closed")

    writer = Broken()
    monitor, steps = train(writer=writer)
    assert steps == 12
    assert writer.calls == 1
    assert len(said()) == 1
    assert monitor.history()
    monitor.close()


def test_a_failure_inside_keeps_what_was_measured(said, monkeypatch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader, every=1)
    for epoch in range(3):
        if epoch == 2:
            history, suspects = monitor.history(), monitor.suspects(min_score=0)
            monkeypatch.setattr(SampleHistory, "record", lambda *a: 1 / 0)
        for x, y, _ in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert monitor.decision.reason is StopReason.FAILED
    assert sum("division by zero" in message for message in said()) == 1
    assert (monitor.history(), monitor.suspects(min_score=0)) == (history, suspects)
    monitor.close()


def test_statistics_of_steps_that_fail_end_nothing_else(said, monkeypatch):
    monkeypatch.setattr(StepStatistics, "measure", lambda *a: 1 / 0)
    monitor, _ = train()
    assert monitor.decision.reason is not StopReason.FAILED
    assert len(monitor.history()) == 2
    assert sum("statistics of steps are off" in message for message in said()) == 1
    monitor.close()


def test_a_training_set_of_one_class_is_survived():
    data = make_data(torch.float32)
    data.given.zero_()
    loader = DataLoader(torch.utils.data.TensorDataset(data.inputs, data.given), batch_size=10)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = GradientMonitor(model, optimizer, loader, every=1)
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert len(monitor.history()) == 2
    assert monitor.decision.reason is StopReason.CLEAN_DOMINATES
    monitor.close()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"k": -1}, ArgumentValueError, "k=-1"),
        ({"k": 1.5}, ArgumentTypeError, "k=1.5"),
        ({"min_score": 2}, ArgumentValueError, "min_score"),
        ({"min_score": "all"}, ArgumentTypeError, "min_score"),
    ],
)
def test_suspects_refuses_nonsense(wrong, error, message):
    monitor, _ = train()
    with pytest.raises(error, match=message):
        monitor.suspects(**wrong)
    assert monitor.suspects(0) == []
    monitor.close()


def test_an_empty_log_dir_is_no_folder():
    with pytest.raises(ArgumentValueError, match="log_dir"):
        make(log_dir="")


def test_a_data_set_that_grows_is_measured_and_its_new_samples_are_said(said):
    class Growing(torch.utils.data.Dataset):
        samples = 60

        def __len__(self):
            return self.samples

        def __getitem__(self, index):
            return torch.ones(INPUTS) * index, index % 5

    data, model = Growing(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = DataLoader(data, batch_size=10, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader)
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        data.samples = 80
    assert monitor.decision.reason is not StopReason.FAILED
    assert len(monitor.history()) == 3
    assert len(monitor.samples()["index"]) == 60
    assert sum("not all samples are followed" in message for message in said()) == 1
    monitor.close()


def test_a_default_device_that_holds_no_data_does_not_matter(said):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    with torch.device("meta"):
        monitor = GradientMonitor(model, optimizer, loader, every=1)
    for _ in range(2):
        for x, y, _ in loader:  # the loader itself can't be iterated over under such a default
            with torch.device("meta"):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    with torch.device("meta"):
        assert (monitor.samples()["visits"] > 0).all()
        assert "dominance_ratio" in monitor.latest
        monitor.close()
    assert not said()
