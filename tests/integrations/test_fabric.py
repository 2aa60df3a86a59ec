"""Lightning Fabric with the two lines as they are: no integration is needed."""

import functools

import pytest
import torch.nn.functional as F

from prioritymonitor import GradientMonitor
from tests.capture.test_no_disturbance import assert_identical
from tests.integrations.same_training import (
    MOST_EPOCHS,
    assert_same,
    curve_of,
    in_a_plain_loop,
    loader_of,
    model,
    optimizer_of,
    pairs,
)
from tests.support.small_run import SmallRun

fabrics = pytest.importorskip("lightning.fabric", reason="lightning is not installed")

plain_loop = functools.cache(in_a_plain_loop)


class Training:
    """The same training as a plain loop's.

    Args:
        monitor_first: Make the monitor of what Fabric is given, and not of what it gives.
        accumulate: Micro-batches of an optimizer step.
    """

    def __init__(self, monitor_first=False, accumulate=1):
        self.fabric = fabrics.Fabric(accelerator="cpu", devices=1)
        self.accumulate = accumulate
        network, self.loader = model(), loader_of(pairs())
        optimizer = optimizer_of(network)
        if monitor_first:
            self.monitor = GradientMonitor(network, optimizer, self.loader)
        self.model, self.optimizer = self.fabric.setup(network, optimizer)
        self.prepared = self.fabric.setup_dataloaders(self.loader)
        if not monitor_first:
            self.monitor = GradientMonitor(self.model, self.optimizer, self.prepared)

    def train(self, first=0, last=None):
        """An epoch, or a part of it."""
        for number, (x, y) in enumerate(self.prepared):
            if number == last:
                break
            if number < first:
                continue
            loss = F.cross_entropy(self.model(x), y) / self.accumulate
            self.fabric.backward(loss)
            if (number + 1) % self.accumulate == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()

    def run(self, done=0):
        """Until the stop."""
        for _ in range(done, MOST_EPOCHS):
            self.train()
            if self.monitor.should_stop:
                break
        curve = curve_of(self.monitor)
        self.monitor.close()
        return curve

    @property
    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "monitor": self.monitor}


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_training_as_a_plain_loop_stops_alike(accumulate, monitor_first):
    assert_same(Training(monitor_first, accumulate).run(), plain_loop(accumulate))


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("batches", [0, 7])
def test_a_run_resumed_from_a_checkpoint_ends_as_the_uninterrupted_one(
    batches, monitor_first, tmp_path
):
    first = Training(monitor_first)
    for _ in range(4):
        first.train()
    first.train(last=batches)
    first.fabric.save(tmp_path / "state.ckpt", first.parts)
    first.monitor.close()
    resumed = Training(monitor_first)
    resumed.fabric.load(tmp_path / "state.ckpt", resumed.parts)
    for _ in range(4):  # Fabric counts the passes, and gives each its order
        next(iter(resumed.prepared))
    resumed.train(first=batches)
    assert_same(resumed.run(done=5), plain_loop())


def test_training_stays_bit_for_bit_what_it_is_and_nothing_is_left():
    results, left = [], []
    for is_watched in (False, True):
        run = SmallRun()
        fabric = fabrics.Fabric(accelerator="cpu", devices=1)
        network, optimizer = fabric.setup(run.model, run.optimizer)
        loader = fabric.setup_dataloaders(run.loader)
        before = run.on_it()
        monitor = GradientMonitor(network, optimizer, loader, every=1) if is_watched else None
        for _ in range(3):
            for x, y, _index in loader:
                optimizer.zero_grad()
                fabric.backward(run.criterion(network(x), y))
                optimizer.step()
        if monitor is not None:
            assert len(monitor.history()) == 3
            monitor.close()
        results.append(run.result())
        left.append(run.on_it() == before)
    assert left == [True, True]
    assert_identical(*results)
