"""The engine `func` leaves training as it is, and says what it can't measure."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD

from benchmarks.engines.architectures import logits_of
from prioritymonitor.errors import ArgumentValueError, PriorityMonitorError
from prioritymonitor.gradients.parameters.func import FuncEngine, check_model
from tests.support import engine_driver
from tests.support.engine_driver import (
    Driver,
    by_hand,
    dropout_model,
    largest_difference,
    small_batch,
    small_mlp,
    train,
)

measured = functools.partial(engine_driver.measured, FuncEngine)


EXACT = ["mlp", "cnn", "vit", "lstm", "text_transformer", "hand_written_text_transformer"]

# No disturbance


def test_training_is_the_same_to_the_bit():
    finals = []
    for with_engine in (False, True):
        torch.manual_seed(0)
        model = dropout_model().float()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        if with_engine:
            driver = Driver(FuncEngine, model, optimizer)
        for _ in range(3):
            train(model, optimizer, [(x.float(), y) for x, y in [small_batch(), small_batch()]])
        finals.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*finals)
    assert all(record is not None for record in driver.records)


class Remembering(nn.Module):
    """Counts its calls in a buffer and keeps its features."""

    def __init__(self):
        super().__init__()
        self.inner = small_mlp()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.features = self.inner[0](x)
        return self.inner[2](self.features)


def test_nothing_of_the_model_changes():
    model = Remembering()
    optimizer = SGD(model.parameters(), lr=0.1)
    own_calls = []
    model.inner[0].register_forward_hook(lambda *_: own_calls.append(1))
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {name: list(module._forward_pre_hooks) for name, module in model.named_modules()}
    driver = Driver(FuncEngine, model, optimizer)
    train(model, optimizer, [small_batch()])
    features = model.features
    assert driver.records[0].coverage == 1
    assert len(own_calls) == model.calls == 1
    assert features.grad_fn is not None
    assert features.sum().item() == features.sum().item()  # no left-over of a mapped call
    driver.close()
    for name, module in model.named_modules():
        assert vars(module).keys() - {"features"} == attributes[name].keys() - {"features"}
        assert list(module._forward_pre_hooks) == hooks[name]
    for parameter in model.parameters():
        assert not parameter._post_accumulate_grad_hooks
        assert vars(parameter) == {}


def test_hooks_that_compute_the_weight_are_run():
    with pytest.warns(FutureWarning):
        first = nn.utils.weight_norm(nn.Linear(5, 8))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    train(model, optimizer, [small_batch()])
    assert driver.problems == []
    assert {"0.weight_g", "0.weight_v"} < set(driver.records[0].sums)
    assert driver.records[0].coverage == 1
    assert model[0].weight.grad_fn is not None  # that of the training pass


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model_is_measured_uncompiled(in_place):
    model = small_mlp()
    if in_place:
        model.compile(backend="eager")
        loop_model = model
    else:
        loop_model = torch.compile(model, backend="eager")
    before = copy.deepcopy(small_mlp())
    before.load_state_dict(model.state_dict())
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, loop_model, optimizer)
    batches = [small_batch()]
    train(loop_model, optimizer, batches)
    sums, square = by_hand(before, SGD(before.parameters(), 0.1), batches, driver.weights)
    prefix = "" if in_place else "_orig_mod."
    sums = {prefix + name: both for name, both in sums.items()}
    assert largest_difference(driver.records[0], sums, square) < 1e-12


def test_a_part_that_is_compiled_is_not_compiled_anew():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = nn.Sequential(Gate(), small_mlp())  # which can't be mapped
    model[1] = torch.compile(model[1], backend=backend)
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    for _ in range(2):
        train(model, optimizer, [small_batch()])
    assert driver.records[0].coverage == 1
    assert len(graphs) == 1


def test_logits_in_full_precision_after_layers_in_half_precision():
    class Float(nn.Module):
        def forward(self, logits):
            return logits.float()

    model = nn.Sequential(small_mlp(), Float()).float()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    x, y = small_batch(16)
    with torch.autocast("cpu", torch.bfloat16):
        train(model, optimizer, [(x.float(), y)])
    assert driver.problems == []


def test_mixed_precision_is_measured_in_full_precision():
    model = small_mlp().float()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model)
    driver = Driver(FuncEngine, model, optimizer)
    x, y = small_batch(16)
    with torch.autocast("cpu", torch.bfloat16):
        train(model, optimizer, [(x.float(), y)])
    assert driver.problems == []
    hand = by_hand(before, SGD(before.parameters(), 0.1), [(x.float(), y)], driver.weights)
    assert largest_difference(driver.records[0], *hand) < 3e-2


# What can't be measured


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small_mlp()
        self.gate = Gate()

    def forward(self, x):
        return self.inner(self.gate(x))


class Gate(nn.Module):
    def forward(self, x):
        return x if x.isfinite().all() else x.nan_to_num()


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small_mlp()

    def forward(self, x):
        return self.inner(x / x.norm())


def test_a_model_that_cannot_be_mapped_is_run_sample_by_sample():
    model = Branching()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model)
    driver = Driver(FuncEngine, model, optimizer, chunk_size=4)
    batches = [small_batch()]
    train(model, optimizer, batches)
    hand = by_hand(before, SGD(before.parameters(), 0.1), batches, driver.weights)
    assert largest_difference(driver.records[0], *hand) < 1e-12
    train(model, optimizer, batches)
    assert len(driver.problems) == 1
    assert "gate (Gate) can't be mapped over samples" in driver.problems[0]
    assert 'engine="closed_form"' in driver.problems[0]


def test_a_model_that_mixes_its_samples_is_found_out():
    model = Mixing()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    for _ in range(2):
        train(model, optimizer, [small_batch()])
    assert driver.records == [None, None]
    assert len(driver.problems) == 1
    assert "inner.0.weight" in driver.problems[0]


def test_samples_in_another_dimension_are_refused_in_words():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_mlp()

        def forward(self, x):
            return self.inner(x.mean(0))

    model = SequenceFirst()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    x, labels = torch.randn(4, 6, 5, dtype=torch.float64), torch.randint(3, (6,))
    with pytest.raises(PriorityMonitorError, match="another dimension than the first"):
        train(model, optimizer, [(x, labels)])
    assert driver.engine.collect() is None


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (nn.BatchNorm1d(8, affine=False), "GroupNorm"),
        (nn.RReLU(), "closed_form"),
        (nn.Embedding(4, 8, max_norm=1.0), "closed_form"),
        (nn.Embedding(4, 8, sparse=True), "closed_form"),
    ],
)
def test_what_can_never_work_raises_at_construction(layer, remedy):
    model = nn.Sequential(nn.Linear(5, 8), layer)
    with pytest.raises(ArgumentValueError, match=rf"and 1 \({type(layer).__name__}\).*{remedy}"):
        check_model(model)


def test_batch_norm_in_eval_mode_is_fine():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    model[1].eval()
    check_model(model)
    driver, error = measured(model, [small_batch()])
    assert driver.problems == []
    assert error < 1e-12


def test_a_parameter_whose_samples_do_not_add_up_is_left_out():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        x, y = small_batch()
        penalty = model[0].weight.square().sum()  # no sample's loss
        (nn.CrossEntropyLoss()(model(x), y) + penalty).backward()
        optimizer.step()
    assert len(driver.problems) == 1
    assert "0.weight" in driver.problems[0]
    for record in driver.records:
        assert set(record.sums) == {"2.weight", "2.bias"}
        assert record.coverage == pytest.approx(27 / 75)
        both = [sum(record.sums[name]) for name in record.sums]
        assert record.square.sum() > 0 < sum(part.norm() for part in both)


def test_nothing_is_held_for_a_step_that_was_given_up():
    model = small_mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    nn.CrossEntropyLoss()(logits_of(model(small_batch()[0])), small_batch()[1]).backward()
    driver.engine.discard()
    assert driver.engine.collect() is None
    driver.weights.clear()
    before = copy.deepcopy(model)
    batches = [small_batch()]
    train(model, optimizer, batches)
    hand = by_hand(before, SGD(before.parameters(), 0.1), batches, driver.weights)
    assert largest_difference(driver.records[0], *hand) < 1e-12
