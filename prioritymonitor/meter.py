"""Measured steps: statistics computed on the device, read by the host in bunches."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .attribution import contributions, feature_products, group_moments, segment_moments
from .records import Step
from .statistics import group_statistics, segment_statistics

MOST_CLASSES = 20
"""Above this many classes the values per class are left out of the scalars."""

_MOST_WAITING = 64
"""Measured steps that wait on the device at most, before the host reads them."""


@dataclass(frozen=True)
class StepScalars:
    """The scalars of one measured step."""

    step: int
    time: float
    values: dict[str, float]


class StepMeter:
    """Measures steps without waiting for the device."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, float, tuple[str, ...], Tensor]] = []

    def measure(self, number: int, step: Step, noisy_weight: Tensor, true_label: Tensor) -> None:
        """Measure a step.

        Args:
            number: Its number.
            step: The step, with at least one micro-batch.
            noisy_weight: How noisy each label is taken to be, over all its micro-batches, `[B]`.
            true_label: Class of each sample if its label is noisy, `[B]`.
        """
        # Autocast would round the products to half precision where the loop runs inside it.
        with torch.no_grad(), torch.autocast(noisy_weight.device.type, enabled=False):
            named = statistics_of(step, noisy_weight, true_label)
        finite = torch.cat([batch.finite for batch in step.batches]).all()
        vector = torch.cat([value.reshape(-1) for value in named.values()])
        vector = torch.where(finite, vector, torch.nan)
        names = tuple(_scalar_names(named))
        self._waiting.append((number, time.time(), names, vector))

    @property
    def is_full(self) -> bool:
        """True when the host should read what waits."""
        return len(self._waiting) >= _MOST_WAITING

    def read(self) -> list[StepScalars]:
        """All that waits, by one transfer per run of steps with the same scalars."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        host = torch.cat([vector for *_, vector in waiting]).cpu()
        rows = torch.split(host, [len(vector) for *_, vector in waiting])
        return [
            StepScalars(number, when, dict(zip(names, row.tolist(), strict=True)))
            for (number, when, names, _), row in zip(waiting, rows, strict=True)
        ]


def statistics_of(step: Step, noisy_weight: Tensor, true_label: Tensor) -> dict[str, Tensor]:
    """All statistics of a step: scalars, and `[C]` for those by class."""
    batches = step.batches
    loss = torch.cat([batch.sample_loss for batch in batches])
    counted = torch.cat([batch.counted for batch in batches])
    named = {"train_loss": loss.sum() / counted.sum()}
    features = [batch.features for batch in batches if batch.features is not None]
    if step.update is None or len(features) < len(batches):
        return named
    residual = torch.cat([batch.residual for batch in batches])
    target = torch.cat([batch.target for batch in batches])
    rows = torch.cat(features).to(residual.dtype)
    weight = noisy_weight.to(residual.dtype)
    products = feature_products(rows, step.update.bias is not None)
    clean, noisy = contributions(residual, rows, weight, counted, step.update)
    segments = segment_moments(residual, products, weight, target, true_label)
    named |= group_statistics(group_moments(residual, products, weight, counted))
    named |= {"contribution_clean": clean, "contribution_noisy": noisy}
    named |= segment_statistics(segments)
    if residual.shape[1] > MOST_CLASSES:
        named = {name: value for name, value in named.items() if value.ndim == 0}
    return named


def _scalar_names(named: dict[str, Tensor]) -> list[str]:
    names = []
    for name, value in named.items():
        if value.ndim == 0:
            names.append(name)
        else:
            stem = name.replace("_by_class", "")
            names += [f"{stem}/{label}" for label in range(len(value))]
    return names
