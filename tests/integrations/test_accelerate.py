"""Accelerate with the two lines as they are: no integration is needed."""

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader

from prioritymonitor import GradientMonitor
from tests.capture.test_no_disturbance import assert_identical
from tests.integrations.same_training import (
    BATCH,
    MOST_EPOCHS,
    SAMPLES,
    assert_same,
    curve_of,
    in_a_plain_loop,
    loader_of,
    model,
    noisy_data,
    optimizer_of,
    pairs,
)
from tests.support.small_run import SmallRun

pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard

ROOT = Path(__file__).parents[2]
plain_loop = functools.cache(in_a_plain_loop)


class Training:
    """The same training as a plain loop's; the monitor is made before or after `prepare()`."""

    def __init__(self, monitor_first=False, accumulate=1, loader=None, **configuration):
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=accumulate,
            dataloader_config=DataLoaderConfiguration(**configuration),
        )
        network, loader = model(), loader or loader_of(pairs())
        optimizer = optimizer_of(network)
        if monitor_first:
            self.monitor = GradientMonitor(network, optimizer, loader)
        prepared = self.accelerator.prepare(network, optimizer, loader)
        self.model, self.optimizer, self.loader = prepared
        if not monitor_first:
            self.monitor = GradientMonitor(*prepared)
        self.accelerator.register_for_checkpointing(self.monitor)

    def train(self, loader=None, batches=None):
        """An epoch, or its first batches."""
        for number, (x, y) in enumerate(loader or self.loader, start=1):
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(self.model(x), y)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if number == batches:
                break

    def run(self, done=0):
        """Until the stop."""
        for epoch in range(done, MOST_EPOCHS):
            self.loader.set_epoch(epoch)
            self.train()
            if self.monitor.should_stop:
                break
        return self.curve()

    def curve(self):
        curve = curve_of(self.monitor)
        self.monitor.close()
        return curve


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("configuration", "kind"),
    [({}, DataLoaderShard), ({"dispatch_batches": True}, DataLoaderDispatcher)],
)
def test_the_same_training_as_a_plain_loop_stops_alike(
    configuration, kind, accumulate, monitor_first
):
    training = Training(monitor_first, accumulate, **configuration)
    assert isinstance(training.loader, kind)
    assert_same(training.run(), plain_loop(accumulate))


@pytest.mark.parametrize("monitor_first", [True, False])
def test_a_shuffled_loader_with_a_sampler_of_accelerates_own_keeps_identity(monitor_first):
    shuffled = DataLoader(pairs(), BATCH, shuffle=True, num_workers=1)
    training = Training(monitor_first, loader=shuffled, use_seedable_sampler=True)
    training.train()
    training.train()
    assert not training.monitor.should_stop
    assert training.monitor.history()[-1]["samples_seen"] == SAMPLES
    samples = training.monitor.samples()
    assert (samples["given_label"] == noisy_data().given.numpy()).all()
    assert (samples["visits"] == 2).all()
    training.monitor.close()


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("batches", [None, 7])
def test_a_run_resumed_from_a_saved_state_ends_as_the_uninterrupted_one(
    batches, monitor_first, tmp_path
):
    """Within an epoch, by `skip_first_batches()`."""
    first = Training(monitor_first)
    for _ in range(4):
        first.train()
    if batches is not None:
        first.train(batches=batches)
    first.accelerator.save_state(tmp_path)
    first.monitor.close()
    resumed = Training(monitor_first)
    resumed.accelerator.load_state(tmp_path)
    if batches is not None:
        resumed.loader.set_epoch(4)
        resumed.train(skip_first_batches(resumed.loader, batches))
    assert_same(resumed.run(done=4 if batches is None else 5), plain_loop())


def test_training_stays_bit_for_bit_what_it_is_and_nothing_is_left():
    results, left = [], []
    for is_watched in (False, True):
        run = SmallRun()
        accelerator = Accelerator(cpu=True)
        prepared = accelerator.prepare(run.model, run.optimizer, run.loader)
        before = run.on_it()
        monitor = GradientMonitor(*prepared, every=1) if is_watched else None
        for _ in range(3):
            for x, y, _index in prepared[2]:
                prepared[1].zero_grad()
                accelerator.backward(run.criterion(prepared[0](x), y))
                prepared[1].step()
        if monitor is not None:
            assert len(monitor.history()) == 2 + monitor.should_stop
            monitor.close()
        results.append(run.result())
        left.append(run.on_it() == before)
    assert left == [True, True]
    assert_identical(*results)


WORKER = """
    import numpy as np, torch
    from torch.utils.data import DataLoader, Subset
    from tests.integrations.same_training import BATCH, noisy_data, pairs
    from tests.integrations.test_accelerate import Training

    torch.set_num_threads(1)
    given = noisy_data().given.numpy()
    for configuration in {}, dict(split_batches=True), dict(even_batches=False):
        data = DataLoader(Subset(pairs(), range(765)), BATCH, shuffle=True)
        training = Training(monitor_first=not configuration, loader=data, **configuration)
        training.train()
        training.train()
        training.monitor.end_epoch()
        samples = training.monitor.samples()
        seen = samples["visits"] > 0
        is_own = (samples["given_label"][seen] == given[:765][seen]).all()
        visits = samples["visits"][:765]  # the last batch is filled up with some of the first
        is_whole = (visits >= 2).all() and visits.sum() <= 2 * 800
        told = [(one["priority"], one["reason"]) for one in training.monitor.history()]
        # In one piece: the other rank writes to the same pipe.
        print(f"rank {configuration} {is_own} {is_whole} {told}" + chr(10), end="", flush=True)
        training.monitor.close()
    training.accelerator.end_training()
"""


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_know_the_samples_of_both_and_decide_the_same(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("rank")]
    assert len(said) == 6
    assert len(set(said)) == 3  # each of them by both ranks
    for line in said:
        assert "} True True [" in line
        assert line.count("CLEAN_DOMINATES") + line.count("TOO_EARLY") == 2
