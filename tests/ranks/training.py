"""A training on wrong labels that one process or several can run on the same joined batches."""

import contextlib
import logging
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Sampler, TensorDataset

from prioritymonitor import GradientMonitor

SAMPLES, BATCH, CLASSES = 600, 40, 4
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def data(samples=SAMPLES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 8, generator=generator).double()
    true = inputs[:, :CLASSES].argmax(1)
    wrong = torch.randint(0, CLASSES, (samples,), generator=generator)
    is_drawn = torch.rand(samples, generator=generator) < 0.4
    return TensorDataset(inputs, torch.where(is_drawn, wrong, true))


class JoinedBatches(Sampler):
    """The same batches in the same order, however many ranks take a part of each."""

    def __init__(self):
        self._epoch = 0

    def __len__(self):
        return SAMPLES // BATCH

    def __iter__(self):
        generator = torch.Generator().manual_seed(self._epoch)
        self._epoch += 1
        own = BATCH // RANKS
        for batch in torch.randperm(SAMPLES, generator=generator).view(-1, BATCH):
            yield batch[RANK * own : (RANK + 1) * own].tolist()


def joined():
    return DataLoader(data(), batch_sampler=JoinedBatches())


class Said(logging.Handler):
    """What the monitor has said on this rank, but for the epochs' own lines."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("prioritymonitor").addHandler(self)
        return self.lines

    def __exit__(self, *exception):
        logging.getLogger("prioritymonitor").removeHandler(self)


class Scalars:
    """A writer of the user's that keeps what it gets, in double precision."""

    def __init__(self):
        self.values = {}

    def add_scalar(self, tag, value, step, walltime=None):
        self.values[tag, step] = float(value)


def collectives():
    """How many the process's own group has seen."""
    return dist.group.WORLD._get_sequence_number_for_group() if dist.is_initialized() else 0


def own(parameter):
    """What this rank has of it."""
    part = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return part.detach().clone()


def replicated(model):
    return nn.parallel.DistributedDataParallel(model)


def sharded(model):
    for part in (model[0], model[2], model):
        fully_shard(part)
    return model


def sharded_and_compiled(model):
    return torch.compile(sharded(model), backend="eager")


def train(
    loader=None,
    epochs=3,
    *,
    is_watched=True,
    accumulate=1,
    uses_join=False,
    reads=True,
    seed=0,
    before_step=lambda monitor, epoch, number: None,
    leaves=lambda epoch, number: False,
    relabelled=lambda labels, epoch: labels,
    prepared=replicated,
    **options,
):
    """Train, and give everything that ranks may be asked for.

    Args:
        loader: The train loader; None: that of the joined batches.
        epochs: How many at most.
        is_watched: Whether this rank has a monitor.
        accumulate: Micro-batches of a step.
        uses_join: Whether ranks have different numbers of batches.
        reads: Whether `should_stop` is read.
        seed: Of the first weights.
        before_step: Called between the backward pass and the step.
        leaves: Whether the loop breaks off its pass after that step.
        relabelled: What the loop makes of the labels.
        prepared: What several ranks make of the model.
        options: For the monitor.
    """
    loader = joined() if loader is None else loader
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, CLASSES)).double()
    net = prepared(model) if RANKS > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with Said() as said:
        first, began = collectives(), time.monotonic()
        monitor = GradientMonitor(net, optimizer, loader, **options) if is_watched else None
        stopped = []
        for epoch in range(1, epochs + 1):
            if hasattr(loader.sampler, "set_epoch"):
                loader.sampler.set_epoch(epoch)
            with net.join() if uses_join else contextlib.nullcontext():
                for number, (x, y) in enumerate(loader, start=1):
                    y, is_step = relabelled(y, epoch), number % accumulate == 0
                    with contextlib.nullcontext() if is_step or RANKS < 2 else net.no_sync():
                        (F.cross_entropy(net(x), y) / accumulate).backward()
                    if is_step:
                        before_step(monitor, epoch, number)
                        optimizer.step()
                        optimizer.zero_grad()
                    if leaves(epoch, number):
                        break
            stopped.append(bool(monitor) and reads and monitor.should_stop)
            if epochs > 10 and stopped[-1]:
                break
        result = {
            "weights": [own(p) for p in model.parameters()],
            "random": torch.get_rng_state(),
            "collectives": collectives() - first,
            "seconds": time.monotonic() - began,
        }
        if monitor is not None:
            result["restored"] = monitor.restore_best()
            decision = monitor.decision
            result |= {
                "kept": [own(p) for p in model.parameters()],
                "decision": [decision.stop, decision.reason.name, decision.epoch],
                "message": decision.message,
                "best": decision.best_epoch,
                "noise_rate": monitor.noise_rate,
                "suspects": [tuple(one) for one in monitor.suspects()],
                "history": [
                    {k: v for k, v in one.items() if k != "time"} for one in monitor.history()
                ],
                "visits": torch.tensor(monitor.samples()["visits"]),
                "stopped": stopped,
                "log_dir": str(monitor.log_dir),
                "latest": monitor.latest,
                "scalars": getattr(options.get("writer"), "values", {}),
            }
            monitor.close()
    return result | {"said": list(said)}
