"""The engine `closed_form` against plain autograd on single samples."""

import copy
import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from benchmarks.engines.architectures import ARCHITECTURES
from prioritymonitor.gradients.parameters.closed_form import ClosedFormEngine
from tests.support import engine_driver
from tests.support.engine_driver import Driver, by_hand, largest_difference, train
from tests.support.layer_kinds import KINDS, Wrapped, inputs_for

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


measured = functools.partial(engine_driver.measured, ClosedFormEngine)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_kind_of_layer_agrees_with_autograd(kind, data):
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]))
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    model, shape = kind(data.draw)
    model = model.to(dtype)
    batches = [(inputs_for(model, shape, size, dtype), torch.randint(3, (size,))) for size in sizes]
    driver, error = measured(model, batches)
    assert driver.problems == []
    assert driver.records[0].coverage == 1
    assert not error > TOLERANCE[dtype]  # not a number where every gradient is zero


MIXING = {"cnn_batch_norm", "resnet18", "resnet18_no_inplace"}


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in MIXING])
def test_covers_real_architectures_exactly(name):
    torch.manual_seed(0)
    model = ARCHITECTURES[name].make_model().double()
    inputs, labels = ARCHITECTURES[name].make_batch(3)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    driver, error = measured(model, [(inputs, labels)])
    assert driver.problems == []
    assert driver.records[0].coverage == 1
    assert error < TOLERANCE[torch.float64]


def batch(size=6, width=5):
    return torch.randn(size, width, dtype=torch.float64), torch.randint(3, (size,))


def test_batch_norm_gives_each_sample_its_row_of_the_batch_gradient():
    torch.manual_seed(0)
    scale, shift = torch.randn(4).double(), torch.randn(4).double()
    model = nn.Sequential(nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 3))
    model = model.double()
    model[1].weight.data, model[1].bias.data = scale, shift
    x, y = torch.randn(6, 2, 5, dtype=torch.float64), torch.randint(3, (6,))

    # The oracle: each sample with parameters of its own, all with the values of the model's.
    own = [p.detach().expand(6, *p.shape).clone().requires_grad_() for p in model.parameters()]
    kernel, offset, weight, bias, matrix, last = own
    hidden = torch.stack([model[0]._conv_forward(x[i], kernel[i], offset[i]) for i in range(6)])
    normed = torch.nn.functional.batch_norm(hidden, None, None, training=True)
    hidden = (normed * weight[:, :, None] + bias[:, :, None]).flatten(1)
    logits = (matrix @ hidden.unsqueeze(2)).squeeze(2) + last
    rows = torch.autograd.grad(cross_entropy(logits, y, reduction="sum"), own)

    driver = Driver(ClosedFormEngine, model, SGD(model.parameters(), lr=0.1))
    before = copy.deepcopy(model.state_dict())
    train(model, SGD(model.parameters(), lr=0.0), [(x, y)])  # no optimizer of the driver's: a pass
    assert driver.records == []
    model.load_state_dict(before)
    optimizer = SGD(model.parameters(), lr=0.1)
    driver.close()
    driver = Driver(ClosedFormEngine, model, optimizer)
    train(model, optimizer, [(x, y)])
    (record,) = driver.records
    w = driver.weights[0]
    sums = {
        name: [
            ((1 - w) @ row.flatten(1)).view(row.shape[1:]),
            (w @ row.flatten(1)).view(row.shape[1:]),
        ]
        for (name, _), row in zip(model.named_parameters(), rows, strict=True)
    }
    square = sum(row.flatten(1).square().sum(1) for row in rows)
    (problem,) = driver.problems
    assert "BatchNorm in training mode mixes the samples" in problem
    assert record.is_mixed
    assert largest_difference(record, sums, square) < TOLERANCE[torch.float64]


class Twice(nn.Module):
    """Uses a layer twice, and its weight once more as an embedding."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        hidden = self.shared(self.shared(self.words(tokens)).tanh()).sum(1)
        return self.head(hidden)


def test_uses_of_one_parameter_are_added_before_any_norm():
    torch.manual_seed(0)
    driver, error = measured(Twice().double(), [(torch.randint(7, (5, 3)), torch.randint(7, (5,)))])
    assert driver.problems == []
    assert error < TOLERANCE[torch.float64]


class Positions(nn.Module):
    """Adds tables without samples to each sample, as models of text do."""

    def __init__(self, length):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.places = nn.Embedding(length, 4)
        self.scaling = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.table = nn.Parameter(torch.randn(length + 3, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, tokens):
        length = tokens.shape[1]
        hidden = self.words(tokens) + self.places(torch.arange(length))
        hidden = hidden + self.scaling(torch.eye(4).double())[:length]
        hidden += self.table[None, :length]
        hidden = torch.cat((self.token.expand(len(tokens), -1, -1), hidden), 1)
        return self.head(hidden.tanh().mean(1))


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_tensors_without_samples_are_followed_to_where_they_meet_them(size):
    torch.manual_seed(0)
    data = torch.randint(7, (size, 4)), torch.randint(3, (size,))
    driver, error = measured(Positions(4).double(), [data])
    assert error < TOLERANCE[torch.float64]
    assert driver.problems == []


@pytest.mark.parametrize("divisor", [1, 2])
def test_micro_batches_add_up(divisor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()
    _, error = measured(model, [batch(4), batch(4)], divisor=divisor)
    assert error < TOLERANCE[torch.float64]


class Checkpointed(nn.Module):
    """Computes its body once more in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x):
        hidden = self.first(x)
        if self.training:
            hidden = checkpoint(self.body, hidden, use_reentrant=self.reentrant)
        else:
            hidden = self.body(hidden)
        return self.head(hidden)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_measured(reentrant):
    torch.manual_seed(0)
    model, batches = Checkpointed(reentrant).double(), [batch(), batch()]
    before = copy.deepcopy(model).eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    train(model, optimizer, batches)
    driver.close()
    expected = by_hand(before, SGD(before.parameters(), lr=0.1), batches, driver.weights)
    assert driver.problems == driver.errors == []
    assert driver.records[0].coverage == 1
    assert largest_difference(driver.records[0], *expected) < TOLERANCE[torch.float64]


class Chained(Positions):
    """Sends a table through a layer before it meets the samples."""

    def forward(self, tokens):
        places = self.scaling(self.places(torch.arange(tokens.shape[1])))
        return self.head((self.words(tokens) + places).tanh().mean(1))


@pytest.mark.parametrize("size", [2, 4, 6])
def test_a_table_that_goes_through_other_layers_is_left_out_and_named(size):
    torch.manual_seed(0)
    model = Chained(4).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    train(model, optimizer, [(torch.randint(7, (size, 4)), torch.randint(3, (size,)))])
    driver.close()
    assert "places.weight" not in driver.records[0].sums
    assert {"words.weight", "scaling.weight", "head.weight"} <= set(driver.records[0].sums)
    assert any("places.weight" in problem for problem in driver.problems)


def test_frozen_layers_are_no_part_of_the_coverage():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model[0].requires_grad_(False)
    driver, error = measured(model, [batch()])
    assert set(driver.records[0].sums) == {"2.weight", "2.bias"}
    assert driver.records[0].coverage == 1
    assert error < TOLERANCE[torch.float64]


class Hidden(nn.Module):
    """Uses the weight of a layer behind the layer's back."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.first(x).tanh() @ self.first.weight)


def test_a_layer_that_does_not_add_up_is_left_out_and_named():
    torch.manual_seed(0)
    driver, error = measured(Hidden().double(), [batch()])
    assert set(driver.records[0].sums) == {"head.weight", "head.bias"}
    assert driver.records[0].coverage == pytest.approx(18 / 48)
    (problem,) = driver.problems
    assert "first.weight" in problem
    assert error < 1  # the rest is exact, the norms are those of the head


def test_parameters_without_gradient_count_as_measured():
    torch.manual_seed(0)
    model = Wrapped(nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4)]), lambda pair, x: pair[0](x))
    driver, _ = measured(model.double(), [batch()])
    assert driver.records[0].coverage == 1
    assert driver.problems == []


def test_nothing_is_left_on_the_model():
    model = nn.Sequential(nn.Linear(5, 8), nn.MultiheadAttention(8, 2, 0.1)).double()
    before = {module: dict(vars(module)) for module in model.modules()}
    hooks = {m: [len(v) for k, v in vars(m).items() if "hooks" in k] for m in model.modules()}
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    driver.close()
    assert {module: dict(vars(module)) for module in model.modules()} == before
    assert hooks == {
        m: [len(v) for k, v in vars(m).items() if "hooks" in k] for m in model.modules()
    }
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


def test_dropout_inside_attention_falls_as_in_the_training_pass():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True)
    model = Wrapped(layer).double()
    state = torch.get_rng_state()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    x, y = torch.randn(4, 3, 4, dtype=torch.float64), torch.randint(3, (4,))
    train(model, optimizer, [(x, y)])
    driver.close()
    assert driver.problems == driver.errors == []  # the self-check would tell other masks
    assert driver.records[0].coverage == 1
    assert not torch.equal(torch.get_rng_state(), state)
