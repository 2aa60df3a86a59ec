"""Models and optimizers that change, share or add parts; the oracle takes single samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.test_any_loop import (
    EXACT,
    Net,
    exact_ways,
    followed,
    make_step,
    sgd,
    train,
    ways,
)
from tests.support.cases import CLASSES, INPUTS
from tests.support.followed import Followed


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        images = F.pad(x, (0, 1)).view(len(x), 2, 2, 2).repeat(1, 1, 2, 2)
        return self.head(self.norm(self.first(images)).relu().mean((2, 3)))


@ways
def test_channels_last_and_a_frozen_batch_norm(way, said):
    model = Convolutional().to(memory_format=torch.channels_last)
    model.norm.running_mean.uniform_()
    model.norm.eval()
    train(followed(way, model))
    assert said() == []


@ways
def test_parameter_groups_that_come_and_layers_that_thaw_and_freeze(way, said):
    def head_only(model):
        return torch.optim.SGD(model.head.parameters(), 0.1, momentum=0.9)

    run = followed(way, optimizer=head_only)
    run.model.first.requires_grad_(False)
    changes = {
        1: lambda: run.optimizer.add_param_group({"params": run.model.norm.parameters()}),
        2: lambda: run.optimizer.add_param_group({"params": run.model.first.parameters()}),
        3: lambda: run.model.first.requires_grad_(True),
        4: lambda: run.model.norm.requires_grad_(False),
    }
    for number, (x, y, index) in enumerate(run.loader):
        changes.get(number, lambda: None)()
        run.optimizer.zero_grad()
        run.take(x, y, index)
        F.cross_entropy(run.model(x), y).backward()
        make_step(run)
        assert run.monitor.latest.get("coverage", 1) == 1
    assert said() == []
    run.monitor.close()


class LowRank(nn.Module):
    """A frozen layer with a small trained one beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Parameter(torch.randn(layer.out_features, 2) * 0.1)

    def forward(self, x):
        return self.layer(x) + self.down(x) @ self.up.T


@pytest.mark.parametrize("way", ["closed_form", "func"])
def test_trained_matrices_beside_frozen_layers(way, said):
    model = Net()
    model.first = LowRank(model.first)
    model.head.requires_grad_(False)

    def adapters(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)

    run = followed(way, model, adapters)
    train(run)
    assert said() == []
    assert run.monitor.latest["coverage"] == 1


def test_a_frozen_head_is_measured_without_contributions_to_it(said):
    model = Net()
    run = followed("head", model)
    model.head.requires_grad_(False)
    for x, y, _ in run.loader:
        run.optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        run.optimizer.step()
    latest = run.monitor.latest
    assert latest["contribution_clean"] == latest["contribution_noisy"] == 0
    assert said() == []
    run.monitor.close()


class Auxiliary(nn.Module):
    """Gives features besides the logits, for a second loss."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(INPUTS, 9)
        self.second = nn.Linear(9, 9)
        self.side = nn.Linear(9, 3)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x):
        hidden = self.first(x).relu()
        return self.head(self.second(hidden).relu()), self.side(hidden)


def both_losses(model, x, y):
    logits, side = model(x)
    return F.cross_entropy(logits, y) + 0.3 * side.square().sum(1).mean()


@pytest.mark.parametrize("order", [1, -1])
def test_an_auxiliary_loss_is_a_part_of_each_samples_gradient(order, said):
    def loss(model, x, y):
        logits, side = model(x)
        parts = [F.cross_entropy(logits, y), 0.3 * side.square().sum(1).mean()]
        return sum(parts[::order])

    run = followed("closed_form", Auxiliary(), loss=both_losses)
    train(run, loss)
    assert said() == []
    assert run.monitor.latest["coverage"] == 1


def test_an_auxiliary_loss_that_func_does_not_see_is_named(said):
    run = followed("func", Auxiliary())
    for x, y, _ in run.loader:
        run.optimizer.zero_grad()
        both_losses(run.model, x, y).backward()
        run.optimizer.step()
    assert 0 < run.monitor.latest["coverage"] < 1
    (problem,) = said()
    assert "first.weight" in problem
    assert "side.weight" in problem
    run.monitor.close()


@ways
def test_a_penalty_on_weights_is_no_part_of_any_sample(way, said):
    run = followed(way)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        penalty = run.model.first.weight.square().sum()
        (F.cross_entropy(run.model(x), y) + 0.1 * penalty).backward()
        run.before_step()
        run.optimizer.step()
        if way == "head":
            run.check(EXACT)
    if way == "head":
        assert said() == []
    else:
        (problem,) = said()
        assert "first.weight" in problem
        assert 0 < run.monitor.latest["coverage"] < 1
    run.monitor.close()


@exact_ways
@pytest.mark.parametrize("to_none", [True, False])
def test_adversarial_examples_are_trained_on_and_the_passes_that_make_them_are_not(way, to_none):
    run = followed(way)
    for x, y, index in run.loader:
        x = x.clone().requires_grad_()
        F.cross_entropy(run.model(x), y).backward()
        worse = (x + 0.1 * x.grad.sign()).detach()
        run.optimizer.zero_grad(set_to_none=to_none)
        run.take(worse, y, index)
        F.cross_entropy(run.model(worse), y).backward()
        make_step(run)
    run.monitor.close()


@exact_ways
def test_two_optimizers_of_one_model_have_a_monitor_each(way):
    model = Net().double()
    body = torch.optim.Adam([*model.first.parameters(), *model.norm.parameters()], 0.01)
    head = torch.optim.SGD(model.head.parameters(), 0.1)
    runs = [Followed(way, model, head, dtype=torch.float64)]
    if way == "closed_form":
        runs.append(Followed(way, model, body, dtype=torch.float64, loader=runs[0].loader))
    for x, y, index in runs[0].loader:
        model.zero_grad()
        for run in runs:
            run.take(x, y, index)
            run.before_step()
        F.cross_entropy(model(x), y).backward()
        body.step()
        head.step()
        for run in runs:
            run.check(EXACT)
    for run in runs:
        run.monitor.close()


@exact_ways
def test_sparse_gradients_are_measured(way, said):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(11, 6, sparse=True)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x):
            return self.head(self.words((x[:, :3].abs() * 3).long() % 11).mean(1))

    train(followed(way, Words(), lambda model: sgd(model, momentum=0)))
    assert said() == []
