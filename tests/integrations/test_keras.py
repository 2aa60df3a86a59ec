"""A Keras model in a plain torch loop; its own `fit` steps no torch optimizer."""

import os

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import ArgumentTypeError, GradientMonitor
from tests.integrations.same_training import (
    CLASSES,
    INPUTS,
    curve_of,
    in_a_plain_loop,
    loader_of,
    model,
    optimizer_of,
    pairs,
)

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="keras is not installed", exc_type=ImportError)
if keras.backend.backend() != "torch":
    pytest.skip("keras has another backend", allow_module_level=True)


def keras_model():
    """The network of the same training, in Keras."""
    layers, start = keras.layers, model()
    network = keras.Sequential(
        [layers.Input((INPUTS,)), layers.Dense(256, activation="relu"), layers.Dense(CLASSES)]
    )
    for layer, linear in zip(network.layers, (start[0], start[2]), strict=True):
        layer.set_weights([linear.weight.detach().numpy().T, linear.bias.detach().numpy()])
    return network


def test_a_keras_model_in_a_torch_loop_stops_alike_without_statistics_of_its_head(said):
    network, loader = keras_model(), loader_of(pairs())
    optimizer = optimizer_of(network)
    monitor = GradientMonitor(network, optimizer, loader, every=1)
    while not monitor.should_stop:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x, training=True), y).backward()
            optimizer.step()
    curve, expected = curve_of(monitor), in_a_plain_loop()
    assert curve.stop_epoch == expected.stop_epoch
    torch.testing.assert_close(curve.priority, expected.priority, rtol=0, atol=1e-5)
    assert len({*curve.suspects} & {*expected.suspects}) > 0.95 * len(expected.suspects)
    assert "dominance_ratio" not in monitor.latest  # its Dense is no nn.Linear
    assert "losses, suspects and the stop go on" in said()[0]
    monitor.close()


def test_an_optimizer_of_keras_is_refused():
    network = keras_model()
    network.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    with pytest.raises(ArgumentTypeError, match=r"Adam; pass a torch\.optim\.Optimizer"):
        GradientMonitor(network, network.optimizer, loader_of(pairs()))
