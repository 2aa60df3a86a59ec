"""One training that every trainer can run: what it makes of it must equal what a plain loop makes.

A small network learns classes that can be told apart, then 35 % wrong labels by heart, and is
stopped on the way. Nothing of it depends on random numbers that a trainer may draw too: data,
weights and the order of each epoch have generators of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from prioritymonitor import GradientMonitor, corrupt_labels

SAMPLES, INPUTS, CLASSES, NOISE = 800, 10, 4, 0.35
BATCH = 40
MOST_EPOCHS = 40
"""What a trainer is asked for; the monitor stops it well before."""
SEED = 0


@dataclass(frozen=True)
class Noisy:
    """Samples with the labels that the network gets and the true ones."""

    inputs: Tensor
    """float32 `[n, 10]`."""
    given: Tensor
    """int64 `[n]`."""
    true: Tensor

    @property
    def is_wrong(self) -> Tensor:
        return self.given != self.true


def noisy_data() -> Noisy:
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.randn(CLASSES, INPUTS, generator=generator)
    true = torch.arange(SAMPLES) % CLASSES
    inputs = centres[true] + 0.7 * torch.randn(SAMPLES, INPUTS, generator=generator)
    return Noisy(inputs, corrupt_labels(true, NOISE, generator=generator), true)


def pairs() -> TensorDataset:
    """The data set as `(inputs, label)`."""
    data = noisy_data()
    return TensorDataset(data.inputs, data.given)


class Rows(Dataset[dict[str, Tensor]]):
    """The data set as dicts of `inputs` and `labels`, as transformers takes it."""

    def __init__(self) -> None:
        self._data = noisy_data()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self._data.inputs[index], "labels": self._data.given[index]}


class OrderOfEpochs(Sampler[int]):
    """Another order in each epoch, the same in every trainer.

    It counts the passes that are begun, and goes by `set_epoch()` where a trainer calls it; a loop
    that is resumed after `done` epochs calls `set_epoch(done)`.
    """

    def __init__(self) -> None:
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(SEED + self._epoch)
        self._epoch += 1
        return iter(torch.randperm(SAMPLES, generator=generator).tolist())

    def __len__(self) -> int:
        return SAMPLES


def loader_of(dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
    """A loader in that order; its `sampler` is an `OrderOfEpochs`."""
    return DataLoader(dataset, BATCH, sampler=OrderOfEpochs(), **options)


def model() -> nn.Sequential:
    """The network at its start; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return nn.Sequential(nn.Linear(INPUTS, 256), nn.ReLU(), nn.Linear(256, CLASSES))


class WithLoss(nn.Module):
    """The network with its loss in `forward`, as transformers takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = model()

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.body(inputs)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=3e-3)


@dataclass(frozen=True)
class Curve:
    """What a monitor made of the training."""

    priority: list[float]
    """Of each epoch."""
    stop_epoch: int | None
    """The epoch after which it said stop; None if it never did."""
    best_epoch: int | None
    suspects: list[int]
    """Their places in the data set, the likeliest first."""
    wrong_given: list[int]
    """Suspects whose given label is not the data set's own; none, or identity is lost."""


def curve_of(monitor: GradientMonitor) -> Curve:
    given, found = noisy_data().given, monitor.suspects()
    decision = monitor.decision
    return Curve(
        [record["priority"] for record in monitor.history()],
        decision.epoch if decision.stop else None,
        decision.best_epoch,
        [suspect.index for suspect in found],
        [suspect.index for suspect in found if suspect.given_label != given[suspect.index]],
    )


def in_a_plain_loop(accumulate: int = 1, **options: Any) -> Curve:
    """The oracle: two lines in a loop.

    Args:
        accumulate: Micro-batches of an optimizer step, whose mean loss is learnt from.
        options: For the monitor.
    """
    network, loader = model(), loader_of(pairs())
    optimizer = optimizer_of(network)
    monitor = GradientMonitor(network, optimizer, loader, **options)
    for _ in range(MOST_EPOCHS):
        for number, (x, y) in enumerate(loader, start=1):
            (F.cross_entropy(network(x), y) / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if monitor.should_stop:
            break
    curve = curve_of(monitor)
    monitor.close()
    return curve


def assert_same(curve: Curve, expected: Curve) -> None:
    """The same training gives the same curve, stop and suspects.

    Suspects of nearly the same score may change places.
    """
    assert curve.wrong_given == []
    assert curve.stop_epoch == expected.stop_epoch
    assert curve.best_epoch == expected.best_epoch
    torch.testing.assert_close(curve.priority, expected.priority, rtol=0, atol=1e-5)
    assert sorted(curve.suspects) == sorted(expected.suspects)
