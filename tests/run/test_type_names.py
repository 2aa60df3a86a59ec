"""A thing of a wrong type is named with its module, and what to pass instead of it."""

import os

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prioritymonitor import ArgumentTypeError, GradientMonitor
from tests.support.cases import make_data, mlp


def refused(model=None, optimizer=None, loader=None):
    model = mlp() if model is None else model
    if optimizer is None:
        parameters = (model if isinstance(model, nn.Module) else mlp()).parameters()
        optimizer = torch.optim.SGD(parameters, 0.1)
    with pytest.raises(ArgumentTypeError) as raised:
        GradientMonitor(model, optimizer, loader)
    return str(raised.value)


@pytest.fixture
def keras(monkeypatch):
    if "KERAS_BACKEND" not in os.environ:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="keras is not installed")


def test_an_optimizer_of_keras_is_named_with_the_loop_that_works(keras):
    message = refused(optimizer=keras.optimizers.Adam())
    assert message.startswith("got optimizer of type keras.")
    assert ".Adam; pass a torch.optim.Optimizer" in message
    assert "call the Keras model in a loop of torch" in message


def test_an_optimizer_of_fastai_is_named_with_the_wrapper_that_works():
    # fastai is no dependency of the tests: a class of the same module and name stands for it.
    optimizer = type("Optimizer", (), {"__module__": "fastai.optimizer"})()
    message = refused(optimizer=optimizer)
    assert "got optimizer of type fastai.optimizer.Optimizer" in message
    assert "OptimWrapper, opt=torch.optim.AdamW" in message


def test_a_trainer_as_model_is_told_of_its_callback():
    skorch = pytest.importorskip("skorch", reason="skorch is not installed")
    message = refused(model=skorch.NeuralNetClassifier(mlp))
    assert "got model of type skorch.classifier.NeuralNetClassifier" in message
    assert "prioritymonitor.integrations.skorch" in message


def test_a_class_of_ones_own_is_told_of_the_framework_it_comes_from():
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class OwnTrainer(lightning.Trainer):
        pass

    message = refused(model=OwnTrainer(logger=False, accelerator="cpu"))
    assert "OwnTrainer" in message
    assert "prioritymonitor.integrations.lightning" in message


def test_a_data_set_as_train_loader_is_named():
    data = make_data(torch.float32)
    message = refused(loader=TensorDataset(data.inputs, data.given))
    assert "got train_loader of type torch.utils.data.dataset.TensorDataset" in message
    assert "pass the torch DataLoader" in message


def test_a_class_is_no_optimizer():
    message = refused(optimizer=torch.optim.SGD)
    assert message.startswith("got the class torch.optim.sgd.SGD as optimizer, and not one made")


@pytest.mark.parametrize(("thing", "name"), [("resnet", "str"), ([], "list"), (nn, "module")])
def test_types_of_python_go_by_their_short_names(thing, name):
    assert f"got model of type {name};" in refused(model=thing)
    assert f"got optimizer of type {name};" in refused(optimizer=thing)
