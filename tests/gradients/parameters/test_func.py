"""The engine `func`: per-sample gradients by torch.func."""

import copy
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from benchmarks.engines.architectures import ARCHITECTURES, LSTMClassifier
from prioritymonitor.errors import PriorityMonitorError
from prioritymonitor.gradients.parameters.func import FuncEngine
from tests.support import engine_driver
from tests.support.engine_driver import (
    Driver,
    dropout_model,
    largest_difference,
    make_batches,
    small_batch,
    small_mlp,
    train,
)

measured = functools.partial(engine_driver.measured, FuncEngine)


EXACT = ["mlp", "cnn", "vit", "lstm", "text_transformer", "hand_written_text_transformer"]


@pytest.mark.parametrize("name", [*EXACT, "hf_vit", "hf_bert"])
def test_agrees_with_autograd_on_single_samples(name):
    model = ARCHITECTURES[name].make_model().double().train()
    driver, error = measured(model, make_batches(name, [3]))
    assert driver.errors == driver.problems == []
    assert driver.records[0].coverage == 1
    assert error < 1e-9


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "hf_vit"])
def test_agrees_in_single_precision(name):
    model = ARCHITECTURES[name].make_model().train()
    driver, error = measured(model, make_batches(name, [3], torch.float32))
    assert driver.problems == []
    assert driver.records[0].coverage == 1
    assert error < 1e-4


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_can_be_mapped(layer):
    model = LSTMClassifier().double()
    model.lstm = layer(64, 64, num_layers=2, batch_first=True, bidirectional=True).double()
    model.head = nn.Linear(128, 4).double()
    driver, error = measured(model, make_batches("lstm", [3]))
    assert driver.problems == []
    assert error < 1e-9


def test_a_language_model_has_one_gradient_per_text():
    model = ARCHITECTURES["hf_gpt2"].make_model().double()
    model.config.pad_token_id = None
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    train(model, optimizer, make_batches("hf_gpt2", [3]))
    assert driver.problems == []
    assert driver.records[0].coverage == 1


def test_padding_masks_of_hugging_face_models():
    model = ARCHITECTURES["hf_bert"].make_model().double()
    tokens, labels = ARCHITECTURES["hf_bert"].make_batch(3)
    mask = torch.ones_like(tokens)
    mask[1:, -3:] = 0
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    driver, error = measured(model, [(batch, labels)])
    assert len(driver.problems) == 1
    assert "bert (BertModel) can't be mapped" in driver.problems[0]
    assert error < 1e-9


def test_models_that_look_at_their_tokens():
    name = "hf_gpt2_classifier"
    driver, error = measured(ARCHITECTURES[name].make_model().double(), make_batches(name, [3]))
    assert len(driver.problems) == 1
    assert error < 1e-9


@pytest.mark.parametrize("chunk_size", [1, 3, 6, 100])
def test_chunks_change_nothing(chunk_size):
    _, error = measured(small_mlp(), [small_batch()], chunk_size=chunk_size)
    assert error < 1e-12


def test_accumulation_with_batches_of_one_and_of_different_inputs():
    batches = [small_batch(4), small_batch(4), small_batch(4)]
    driver, error = measured(small_mlp(), batches, divisor=3)
    assert driver.problems == []
    assert error < 1e-12
    _, error = measured(small_mlp(), [small_batch(1)])
    assert error < 1e-12


def test_frozen_layers_are_no_part_of_it():
    model = small_mlp()
    model[0].weight.requires_grad_(False)
    driver, error = measured(model, [small_batch()])
    assert set(driver.records[0].sums) == {"0.bias", "2.weight", "2.bias"}
    assert driver.records[0].coverage == 1
    assert error < 1e-12


def test_arguments_shared_by_the_samples_stay_shared():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Embedding(5, 4)
            self.word = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 3)

        def forward(self, tokens, places, scale, nothing=None):
            return self.head((self.word(tokens) + self.place(places)).mul(scale).mean(1))

    torch.manual_seed(0)
    model = Shifted().double()
    tokens, labels, places = torch.randint(9, (3, 5)), torch.randint(3, (3,)), torch.arange(5)
    records = []
    for given in (places[None], places.expand(3, 5)):
        same = copy.deepcopy(model)
        optimizer = SGD(same.parameters(), lr=0.1)
        driver = Driver(FuncEngine, same, optimizer)
        loss = nn.CrossEntropyLoss()(same(tokens, given, scale=2.0, nothing=None), labels)
        loss.backward()
        optimizer.step()
        assert driver.problems == []
        records += driver.records
    assert largest_difference(records[0], records[1].sums, records[1].square) < 1e-12


# Randomness


def test_dropout_masks_are_those_of_the_training_pass():
    model = dropout_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    train(model, optimizer, [small_batch(4), small_batch(4)])
    assert driver.errors == driver.problems == []
    assert driver.records[0].coverage == 1


def test_dropout_in_chunks_is_refused_in_words():
    model = dropout_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    Driver(FuncEngine, model, optimizer, chunk_size=2)
    with pytest.raises(PriorityMonitorError, match="make micro-batches smaller"):
        train(model, optimizer, [small_batch(4)])


def test_masks_that_cannot_be_repeated_are_found_out():
    model = ARCHITECTURES["text_transformer"].make_model().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.2
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    for _ in range(2):
        train(model, optimizer, make_batches("text_transformer", [3]))
    record = driver.records[-1]
    left = record.coverage if record is not None else 0.0
    assert left < 1
    assert len(driver.problems) == 1
    assert "dropout" in driver.problems[0]


class NoisyModel(nn.Module):
    """Draws from every generator there is."""

    def __init__(self):
        super().__init__()
        self.inner = small_mlp()

    def forward(self, x):
        scale = 1 + random.random() + np.random.rand()
        return self.inner(x * scale + torch.randn_like(x))


def test_generators_are_where_they_were():
    model = NoisyModel()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(FuncEngine, model, optimizer)
    drawn = []
    for is_measured in (True, False):
        driver.is_measured = is_measured
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        inputs, labels = torch.ones(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        nn.CrossEntropyLoss()(model(inputs), labels).backward()
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
        optimizer.step()
        drawn.append((torch.rand(()).item(), random.random(), np.random.rand()))
    assert drawn[:2] == drawn[2:]
    assert driver.records[0].coverage == 1
    assert driver.problems == []
