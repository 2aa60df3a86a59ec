"""Measured steps: moments computed on the device, statistics on the host, many steps at once.

Only products of `[B, B]` and smaller run on the device in a step. What becomes of them takes dozens
of operations on single numbers, so it waits until the host reads the moments of many steps.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from .attribution import contributions, feature_products, group_moments, segment_moments
from .records import GroupMoments, SegmentMoments, Step
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
        self._waiting: list[tuple[int, float, Tensor]] = []

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
            moments = _moments(step, noisy_weight, true_label)
        self._waiting.append((number, time.time(), moments))

    @property
    def is_full(self) -> bool:
        """True when the host should read what waits."""
        return len(self._waiting) >= _MOST_WAITING

    def read(self) -> list[StepScalars]:
        """All that waits, by one transfer for each run of steps with the same kind of moments."""
        waiting, self._waiting = self._waiting, []
        scalars: list[StepScalars] = []
        for _, alike in itertools.groupby(waiting, key=lambda entry: entry[2].shape):
            numbers, times, moments = zip(*alike, strict=True)
            rows = _scalars(torch.stack(moments).cpu().double())
            scalars += map(StepScalars, numbers, times, rows)
        return scalars


def _moments(step: Step, noisy_weight: Tensor, true_label: Tensor) -> Tensor:
    """Everything that the statistics need, in one row; `_scalars` takes it apart."""
    batches = step.batches
    loss = torch.cat([batch.sample_loss for batch in batches])
    counted = torch.cat([batch.counted for batch in batches])
    finite = torch.cat([batch.finite for batch in batches]).all()
    parts = [loss.sum(), counted.sum(), torch.where(finite, 0.0, torch.nan)]
    features = [batch.features for batch in batches if batch.features is not None]
    if step.update is not None and len(features) == len(batches):
        residual = torch.cat([batch.residual for batch in batches])
        target = torch.cat([batch.target for batch in batches])
        rows = torch.cat(features).to(residual.dtype)
        weight = noisy_weight.to(residual.dtype)
        products = feature_products(rows, step.update.bias is not None)
        group = group_moments(residual, products, weight, counted)
        segment = segment_moments(residual, products, weight, target, true_label)
        parts += [contributions(residual, rows, weight, step.update)]
        parts += [group.sums, group.diagonal, segment.sums, segment.diagonal]
    return torch.cat([part.reshape(-1).to(loss.dtype) for part in parts])


def _scalars(rows: Tensor) -> list[dict[str, float]]:
    """Statistics of S steps from their moments, `[S, …]`."""
    loss, count, broken = rows[:, :3].unbind(1)
    rest = rows[:, 3:]
    named = {"train_loss": loss / count}
    if rest.shape[1]:
        steps, classes = len(rows), (rest.shape[1] - 10) // 4
        sums, diagonal = rest[:, 2:10].view(steps, 2, 2, 2).unbind(1)
        segments = rest[:, 10:].view(steps, 2, 2, classes).unbind(1)
        named |= group_statistics(GroupMoments(sums, diagonal, count))
        named["contribution_clean"], named["contribution_noisy"] = (rest[:, :2].T / count).unbind(0)
        named |= segment_statistics(SegmentMoments(*segments))
    columns = {}
    for name, values in named.items():
        if values.ndim == 1:
            columns[name] = values + broken
        elif values.shape[1] <= MOST_CLASSES:
            stem = name.replace("_by_class", "")
            by_class = (values + broken.unsqueeze(1)).unbind(1)
            columns |= {f"{stem}/{label}": value for label, value in enumerate(by_class)}
    table = torch.stack(list(columns.values()), dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]
