"""What it takes to get votes: nothing of it is seen in the training, and none of it stays."""

import copy
import gc
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from tests.capture.test_no_disturbance import Everything, assert_identical
from tests.support.cases import CLASSES, make_data, mlp
from tests.support.observed import content_of
from tests.support.votes import (
    HIDDEN,
    WIDTH,
    FailsInEvaluation,
    attached,
    hidden_classes,
    pretrained,
    right,
    votes_of,
)


class Restless(Everything):
    """Draws from every source in evaluation mode too, writes to its input, counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = []

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        self.last = x
        x.mul_(2.0)
        noise = 0.01 * (random.random() + np.random.rand())
        return super().forward(x + noise * torch.rand_like(x))


def trained(watched, keep_hooks=False):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Restless()
    model.body[1].eval()  # a mode of its own
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    data = make_data(torch.float32)
    loader = DataLoader(TensorDataset(data.inputs, data.given), batch_size=12, shuffle=True)
    calls = []
    for layer in model.modules():
        layer.register_forward_hook(lambda *_: calls.append(1))
        layer.register_forward_pre_hook(lambda *_: calls.append(2))
    monitor = GradientMonitor(model, optimizer, loader) if watched else None
    modes, inputs = [], []
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            inputs.append(x.clone())  # which the model writes to
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(inputs[-1]), y)
            loss.backward()
            optimizer.step()
            modes.append([layer.training for layer in model.modules()])
    found = {
        "model": model.state_dict(),
        "attributes": sorted(vars(model)),
        "seen": model.seen,
        "last": model.last,
        "calls": len(calls),
        "modes": modes,
        "inputs": inputs,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
    }
    if monitor is not None:
        assert (monitor.samples()["vote"] >= 0).all()
        monitor.close()
    return found


def test_training_is_bit_identical_and_hooks_are_called_as_often():
    assert_identical(trained(True), trained(False))


@pytest.mark.parametrize("closed_early", [False, True])
def test_the_copy_of_the_weights_is_gone_once_votes_are_there_and_after_close(closed_early):
    width = 113 + closed_early  # of no other tensor

    def copies():
        tensors = [x for x in gc.get_objects() if type(x) is torch.Tensor]
        return sum(x.shape == (width, WIDTH + HIDDEN) for x in tensors)

    inputs, given, _ = hidden_classes()
    model = nn.Sequential(nn.Linear(WIDTH + HIDDEN, width), nn.Linear(width, CLASSES))
    optimizer, loader = attached(model, inputs, given)
    monitor = GradientMonitor(model, optimizer, loader, keep_best=None)
    for number, (x, y) in enumerate(loader):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.zero_grad()
        if number == 2:
            assert copies() == 1
            if closed_early:
                break
    if closed_early:
        monitor.close()
    assert copies() == 0
    monitor.close()


def test_a_failure_of_the_second_pass_leaves_the_votes_of_inputs(said):
    data = make_data(torch.float32)
    votes = votes_of(FailsInEvaluation(), data.inputs, data.given)
    assert torch.equal(votes, votes_of(mlp(), data.inputs, data.given, head=None))
    assert said() == []


# Going on after an interruption


class Interrupted:
    def __init__(self):
        torch.manual_seed(0)
        self.model = pretrained()
        inputs, given, _ = hidden_classes()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1.0)
        self.loader = DataLoader(TensorDataset(inputs, given), batch_size=20)
        self.monitor = GradientMonitor(self.model, self.optimizer, self.loader)

    def train(self, first=0, last=100):
        for number, (x, y) in enumerate(self.loader):
            if number == last:
                break
            if number >= first:
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(x), y).backward()
                self.optimizer.step()

    def outcome(self):
        return {
            "samples": {name: x.tolist() for name, x in self.monitor.samples().items()},
            "history": [record | {"time": None} for record in self.monitor.history()],
        }


@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_run_has_the_votes_of_an_uninterrupted_one(epoch, batch, tmp_path):
    whole = Interrupted()
    for _ in range(3):
        whole.train()
    run = Interrupted()
    for _ in range(epoch):
        run.train()
    run.train(last=batch)
    parts = {
        "model": run.model.state_dict(),
        "monitor": run.monitor.state_dict(),
    }
    torch.save(parts, tmp_path / "state.pt")
    run.monitor.close()
    parts = torch.load(tmp_path / "state.pt", weights_only=True)
    run = Interrupted()
    run.model.load_state_dict(parts["model"])
    run.monitor.load_state_dict(parts["monitor"])
    run.train(first=batch)
    for _ in range(2 - epoch):
        run.train()
    assert_identical(run.outcome(), whole.outcome())
    assert right(torch.tensor(run.outcome()["samples"]["vote"]), hidden_classes()[2]) > 0.95


def test_initial_weights_of_another_model_are_refused():
    run = Interrupted()
    run.train(last=3)
    state = run.monitor.state_dict()
    weights = copy.deepcopy(state)
    content_of(weights)["representations"]["initial"]["weights"]["0.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"initial weight 0\.weight of shape \[3\]"):
        run.monitor.load_state_dict(weights)
    run.monitor.load_state_dict(state)
