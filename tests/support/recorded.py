"""Train loaders that are recorded without a monitor around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor.capture.hooks import Guard
from prioritymonitor.capture.loader.handed_out import HandedOut
from prioritymonitor.capture.loader.recorder import LoaderRecorder

SAMPLES = 20


def dataset(samples: int = SAMPLES) -> TensorDataset:
    """The label tells the index: sample i has label i."""
    return TensorDataset(torch.zeros(samples, 1), torch.arange(samples))


def record(loader: DataLoader[Any]) -> tuple[LoaderRecorder, SimpleNamespace]:
    """A recorder, and what it told: the number of `epochs` and the list of `errors`."""
    told = SimpleNamespace(epochs=0, errors=[])

    def epoch_ended() -> None:
        told.epochs += 1

    return LoaderRecorder(loader, epoch_ended, Guard(told.errors.append)), told


def current(recorder: LoaderRecorder) -> HandedOut | None:
    """The batch that a pass in this thread is likeliest to be of; None without any."""
    return next(iter(recorder.waiting.candidates()), None)


def use(recorder: LoaderRecorder, count: int) -> HandedOut | None:
    """Train on the current batch, `count` samples, and step."""
    batch = current(recorder)
    if batch is not None:
        batch.take(count, 0)
        recorder.trained_on(batch)
    recorder.stepped()
    return batch


def trace(recorder: LoaderRecorder, loader: DataLoader[Any]) -> list[tuple[Any, list[int]]]:
    """Traverse the loader once: the indices that the recorder tells, and the labels there were."""
    pairs = []
    for _, labels in loader:
        batch = use(recorder, len(labels))
        known = batch.index if batch is not None else None
        pairs.append((None if known is None else known.tolist(), labels.tolist()))
    return pairs
