"""The engine `opacus`: its formulas in a plain model."""

import copy
import functools
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import SGD

from benchmarks.engines.architectures import ARCHITECTURES, VOCABULARY
from prioritymonitor.errors import ArgumentValueError
from prioritymonitor.gradients.parameters.opacus import OpacusEngine, check_model
from tests.support import engine_driver
from tests.support.engine_driver import (
    Driver,
    by_hand,
    largest_difference,
    make_batches,
    small_batch,
    small_mlp,
    train,
)

pytest.importorskip("opacus")


measured = functools.partial(engine_driver.measured, OpacusEngine)


# A plain model


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "vit", "hand_written_text_transformer", "hf_vit", "hf_bert"]
)
def test_agrees_with_autograd_on_single_samples(name):
    model = ARCHITECTURES[name].make_model().double().train()
    driver, error = measured(model, make_batches(name, [3]))
    assert error < 1e-9
    if not driver.problems:
        assert driver.records[0].coverage == 1


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_agrees_in_single_precision(name):
    driver, error = measured(
        ARCHITECTURES[name].make_model(), make_batches(name, [3], torch.float32)
    )
    assert driver.problems == []
    assert error < 1e-4


class PrivateLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        from opacus.layers import DPLSTM

        self.tokens = nn.Embedding(VOCABULARY, 6)
        self.lstm = DPLSTM(6, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, 4)

    def forward(self, tokens):
        return self.head(self.lstm(self.tokens(tokens))[0][:, -1])


def test_recurrent_layers_of_opacus():
    driver, error = measured(PrivateLSTM().double(), make_batches("lstm", [3]))
    assert driver.problems == []
    assert driver.records[0].coverage == 1
    assert error < 1e-9


def test_a_model_that_is_one_layer():
    driver, error = measured(nn.Linear(5, 3).double(), [small_batch()])
    assert driver.problems == []
    assert error < 1e-12


@pytest.mark.parametrize("sizes", [[1], [4, 4, 4]])
def test_batches_of_one_and_accumulation(sizes):
    batches = [small_batch(size) for size in sizes]
    driver, error = measured(small_mlp(), batches, divisor=len(sizes))
    assert driver.problems == []
    assert error < 1e-12


def test_frozen_layers_are_no_part_of_it():
    model = small_mlp()
    model[0].weight.requires_grad_(False)
    driver, error = measured(model, [small_batch()])
    assert set(driver.records[0].sums) == {"0.bias", "2.weight", "2.bias"}
    assert driver.records[0].coverage == 1
    assert error < 1e-12


def test_position_embeddings_without_samples_are_left_out():
    name = "hf_gpt2_classifier"
    driver, error = measured(ARCHITECTURES[name].make_model().double(), make_batches(name, [3]))
    assert len(driver.problems) == 1
    assert "transformer.wpe.weight: its layer had an input of 1 rows" in driver.problems[0]
    assert 0.5 < driver.records[0].coverage < 1
    assert error < 1e-9


class TwoViews(nn.Module):
    """Calls its layers by keyword."""

    def __init__(self):
        super().__init__()
        self.inner = small_mlp()

    def forward(self, x):
        hidden = self.inner[1](self.inner[0](input=x))
        return self.inner[2](input=hidden)


def test_two_forward_passes_and_one_backward_pass():
    model = TwoViews()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model)
    driver = Driver(OpacusEngine, model, optimizer)
    batches = [small_batch(4), small_batch(4)]
    model(batches[0][0])  # a metric, without backward pass
    losses = [nn.CrossEntropyLoss()(model(x), y) for x, y in batches]
    sum(losses).backward()
    with torch.no_grad():
        model(batches[0][0])
    optimizer.step()
    assert driver.errors == driver.problems == []
    # backward goes through the last pass first
    first, second = batches
    hand = by_hand(before, SGD(before.parameters(), 0.1), [second, first], driver.weights)
    assert largest_difference(driver.records[0], *hand) < 1e-12


def test_mixed_precision():
    model = small_mlp().float()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model)
    driver = Driver(OpacusEngine, model, optimizer)
    x, y = small_batch(16)
    with torch.autocast("cpu", torch.bfloat16):
        train(model, optimizer, [(x.float(), y)])
    assert driver.errors == driver.problems == []
    hand = by_hand(before, SGD(before.parameters(), 0.1), [(x.float(), y)], driver.weights)
    assert largest_difference(driver.records[0], *hand) < 3e-2


def test_a_parameter_that_no_layer_of_its_own_uses_is_left_out():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(5, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(nn.functional.linear(self.first(x), self.first.weight))

    model = Tied().double()
    driver, _ = measured(model, [small_batch()])
    assert set(driver.records[0].sums) == {"head.weight", "head.bias"}
    assert len(driver.problems) == 1
    assert "first.weight" in driver.problems[0]


def test_a_layer_that_fails_is_left_out_by_name():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return x * self.scale if x.isfinite().all() else x

    model = nn.Sequential(Gated(), nn.Linear(5, 3)).double()
    driver, error = measured(model, [small_batch()])
    assert set(driver.records[0].sums) == {"1.weight", "1.bias"}
    assert len(driver.problems) == 1
    assert "0.scale: Gated: vmap" in driver.problems[0]
    assert error < 1e-12


# No disturbance


def leftovers(model):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = {name: sorted(vars(module)) for name, module in model.named_modules()}
    counts = [len(getattr(module, kind)) for module in model.modules() for kind in hooks]
    on_parameters = [
        (sorted(vars(p)), bool(p._post_accumulate_grad_hooks)) for p in model.parameters()
    ]
    return found, counts, on_parameters


def test_nothing_of_the_model_changes_and_training_is_the_same_to_the_bit():
    torch.manual_seed(0)
    start = ARCHITECTURES["hf_vit"].make_model()
    batches = [make_batches("hf_vit", [3, 3], torch.float32) for _ in range(3)]
    finals = []
    for with_engine in (False, True):
        torch.manual_seed(1)
        model = copy.deepcopy(start)
        found = leftovers(model)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        driver = Driver(OpacusEngine, model, optimizer) if with_engine else None
        for step, of_step in enumerate(batches):
            if driver is not None:
                driver.is_measured = step != 1
            train(model, optimizer, of_step)
        if driver is not None:
            assert len(driver.records) == 2
            driver.close()
        assert leftovers(model) == found
        finals.append(torch.cat([p.flatten() for p in model.parameters()]))
        finals.append(torch.rand(()))
    assert torch.equal(finals[0], finals[2])
    assert torch.equal(finals[1], finals[3])


def test_layers_carry_hooks_in_measured_steps_only():
    model = small_mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(OpacusEngine, model, optimizer)
    seen = []
    for is_measured in (True, False):
        driver.is_measured = is_measured
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(small_batch()[0]), small_batch()[1]).backward()
        seen.append(len(model[0]._forward_hooks))
        optimizer.step()
    assert seen == [1, 0]


# What can't be measured


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.BatchNorm1d(8), "GroupNorm"),
        (nn.BatchNorm1d(8, affine=False), "GroupNorm"),
        (nn.BatchNorm1d(8).eval(), "buffers"),
        (nn.LSTM(8, 8), "DPLSTM"),
        (nn.GRU(8, 8), "DPGRU"),
        (nn.RNN(8, 8), "DPRNN"),
        (nn.MultiheadAttention(8, 2), "DPMultiheadAttention"),
    ],
)
def test_what_can_never_work_raises_at_construction(layer, remedy):
    model = nn.Sequential(nn.Linear(5, 8), layer)
    with pytest.raises(ArgumentValueError, match=rf"and 1 \({type(layer).__name__}\).*{remedy}"):
        check_model(model)


def test_a_compiled_model_is_refused():
    model = small_mlp()
    model[0].compile(backend="eager")
    with pytest.raises(ArgumentValueError, match='engine="func"'):
        check_model(model)


def test_a_model_that_is_compiled_later_trains_on_unmeasured():
    model = small_mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(OpacusEngine, model, optimizer)
    model.compile(backend="eager", fullgraph=True)
    model(small_batch()[0])
    train(model, optimizer, [small_batch()])
    assert driver.errors == []
    assert driver.records == [None]
    assert len(driver.problems) == 1


def test_without_opacus_the_error_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "opacus"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArgumentValueError, match=r'pip install "prioritymonitor\[opacus\]"'):
        check_model(small_mlp())


def test_logging_stays_as_the_user_configured_it():
    script = """
import logging
from torch import nn
from prioritymonitor.gradients.parameters.opacus import check_model
check_model(nn.Linear(2, 2))
assert logging.getLogger().handlers == [], logging.getLogger().handlers
assert logging.getLogger().level == logging.WARNING
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert logging.getLogger("opacus") is not None
