"""Layers and layouts that could be taken for something else, under the engine `closed_form`."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from prioritymonitor.gradients.parameters.closed_form import ClosedFormEngine
from tests.gradients.parameters.test_closed_form import TOLERANCE, batch, measured
from tests.support.engine_driver import Driver, largest_difference, train


class Ragged(nn.Module):
    """Bags of unequal lengths, one after the other."""

    def __init__(self, **options):
        super().__init__()
        self.bags = nn.EmbeddingBag(7, 4, **options)
        self.head = nn.Linear(4, 3)

    def forward(self, samples):
        offsets = torch.tensor([0, *(len(tokens) for tokens in samples)]).cumsum(0)
        if not self.bags.include_last_offset:
            offsets = offsets[:-1]
        return self.head(self.bags(torch.cat(samples), offsets))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("include_last_offset", [True, False])
def test_bags_of_unequal_lengths_are_followed(mode, include_last_offset):
    torch.manual_seed(0)
    model = Ragged(mode=mode, include_last_offset=include_last_offset).double()
    samples, labels = [torch.randint(7, (n,)) for n in (3, 1, 4, 2)], torch.arange(4) % 3
    rows = []
    for sample, label in zip(samples, labels, strict=True):
        loss = cross_entropy(model([sample]), label.unsqueeze(0))
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    cross_entropy(model(samples), labels).backward()
    optimizer.step()
    driver.close()
    (record,), (w,) = driver.records, driver.weights
    by_name = dict(zip(dict(model.named_parameters()), zip(*rows, strict=True), strict=True))
    sums = {
        name: [sum((1 - a) * g for a, g in zip(w, gs, strict=True)), sum(map(torch.mul, w, gs))]
        for name, gs in by_name.items()
    }
    square = torch.stack([sum(g.square().sum() for g in row) for row in rows])
    assert driver.problems == []
    assert largest_difference(record, sums, square) < TOLERANCE[torch.float64]


class Doubled(nn.Linear):
    """Looks like a linear layer and is another."""

    def forward(self, x):
        return super().forward(x) * 2


def test_a_layer_that_only_descends_from_a_known_one_is_computed_as_itself():
    torch.manual_seed(0)
    model = nn.Sequential(Doubled(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    driver, error = measured(model, [batch()])
    assert driver.problems == []
    assert error < TOLERANCE[torch.float64]


class TimeFirst(nn.Module):
    """Keeps time before the samples, which shows only where their numbers differ."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.memory = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        hidden, _ = self.memory(self.mix(self.words(tokens.t())).tanh())
        return self.head(hidden[-1])


@pytest.mark.parametrize("length", [2, 3, 6, 12])
def test_time_before_samples_is_exact_or_left_out(length):
    torch.manual_seed(0)
    model = TimeFirst().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    data = torch.randint(7, (6, length)), torch.randint(3, (6,))
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    train(model, optimizer, [data])
    driver.close()
    model.load_state_dict(before)
    (record,), (w,) = driver.records, driver.weights
    assert_right(model, data, record, w)
    assert bool(driver.problems) == (record.coverage < 1)
    if length in (2, 3):  # nothing misleads
        assert record.coverage == 1


def assert_right(model, data, record, weight):
    """Each measured parameter's sums are those of single samples."""
    names = dict(model.named_parameters())
    rows = []
    for x, y in zip(*data, strict=True):
        loss = cross_entropy(model(x.unsqueeze(0)), y.unsqueeze(0))
        rows.append(torch.autograd.grad(loss, list(names.values())))
    for name, gradients in zip(names, zip(*rows, strict=True), strict=True):
        if name in record.sums:
            noisy = sum(w * g for w, g in zip(weight, gradients, strict=True))
            assert torch.allclose(record.sums[name][1], noisy, rtol=1e-9, atol=1e-12), name


class TwoViews(nn.Module):
    """Sends two views of each sample through one layer, all first views first."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        first, second = self.encoder(torch.cat((x, x.flip(1)))).tanh().chunk(2)
        return self.head(first * second)


def test_two_views_in_one_pass_are_left_out_and_named():
    torch.manual_seed(0)
    model = TwoViews().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    train(model, optimizer, [batch()])
    driver.close()
    assert set(driver.records[0].sums) == {"head.weight", "head.bias"}
    assert any("encoder.weight" in problem for problem in driver.problems)


class Positions(nn.Module):
    """Takes the positions of each sample as rows of their own, one sample after the other."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        rows = self.encoder(x.flatten(0, 1)).tanh()
        return self.head(rows.unflatten(0, (len(x), -1)).sum(1))


def test_positions_one_sample_after_the_other_are_exact():
    torch.manual_seed(0)
    data = torch.randn(6, 4, 5, dtype=torch.float64), torch.randint(3, (6,))
    driver, error = measured(Positions().double(), [data])
    assert driver.problems == []
    assert error < TOLERANCE[torch.float64]
