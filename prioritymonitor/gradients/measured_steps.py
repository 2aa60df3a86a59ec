"""Measured steps: moments computed on the device, statistics on the host, many steps at once.

Only sums over samples run on the device in a step. What becomes of them takes dozens of operations
on single numbers, so it waits until the host reads the moments of many steps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..capture.parameters import is_spread, whole
from ..records import GroupMoments, HeadUpdate, SegmentMoments, Step
from .groups import HeadPass, contributions, group_moments, segment_products
from .parts import (
    StepPart,
    constants_of,
    counts_of,
    full_precision,
    head_passes,
    moments_of,
    part_of,
    segments_of,
)
from .statistics import block_statistics, group_statistics, segment_statistics

MOST_CLASSES = 20
"""Above this many classes the values per class are left out of the scalars."""

MOST_BLOCKS = 20
"""Above this many blocks of the model the values per block are left out of the scalars."""

_MOST_WAITING = 64
"""Measured steps that wait on the device at most, before the host reads them."""

Shapes = tuple[tuple[str, torch.Size], ...]
"""Names and shapes of moments that are laid side by side."""


@dataclass(frozen=True)
class StepScalars:
    """The scalars of one measured step."""

    step: int
    time: float
    values: dict[str, float]


class _Kind(NamedTuple):
    """What steps have in common that are read at once."""

    shapes: Shapes
    constants: tuple[tuple[str, float], ...]
    device: torch.device


class _Waiting(NamedTuple):
    """A measured step whose moments are not read yet."""

    number: int
    time: float
    moments: Tensor
    kind: _Kind


class StepStatistics:
    """Measures steps without waiting for the device.

    Args:
        overhead: Gives the share of wall time spent in the monitor since it was last called.
    """

    def __init__(self, overhead: Callable[[], float]) -> None:
        self.latest: dict[str, float] = {}
        """Statistics of the last step that was read, or that a resumed run had read."""
        self._overhead = overhead
        self._waiting: list[_Waiting] = []

    def measure(self, number: int, step: Step, noisy_weight: Tensor, true_label: Tensor) -> None:
        """Measure a step.

        Args:
            number: Its number.
            step: The step, with at least one micro-batch.
            noisy_weight: How noisy each label is taken to be, over all its micro-batches, `[B]`.
            true_label: Class of each sample if its label is noisy, `[B]`.
        """
        with full_precision(noisy_weight.device):
            moments, constants = _moments(step, noisy_weight, true_label)
        self._add(number, time.time(), moments, constants)

    def add(self, number: int, at: float, part: StepPart) -> None:
        """Take a step as measured.

        Args:
            number: Its number.
            at: When it was made, in seconds since 1970.
            part: What all of its samples add to it.
        """
        with full_precision(part.moments["count"].device):
            moments = moments_of(part)
        self._add(number, at, moments, part.constants)

    def _add(
        self, number: int, at: float, moments: dict[str, Tensor], constants: dict[str, float]
    ) -> None:
        row = torch.cat([moment.reshape(-1) for moment in moments.values()])
        shapes = tuple((name, moment.shape) for name, moment in moments.items())
        kind = _Kind(shapes, tuple(constants.items()), row.device)
        self._waiting.append(_Waiting(number, at, row, kind))

    @property
    def is_full(self) -> bool:
        """True when the host should read what waits."""
        return len(self._waiting) >= _MOST_WAITING

    def read(self) -> list[StepScalars]:
        """All that waits, by one transfer for each run of steps with the same kind of moments."""
        waiting, self._waiting = self._waiting, []
        scalars: list[StepScalars] = []
        for kind, alike in itertools.groupby(waiting, key=lambda one: one.kind):
            numbers, times, rows, _ = zip(*alike, strict=True)
            values = _scalars(torch.stack(rows).cpu().double(), kind)
            scalars += map(StepScalars, numbers, times, values)
        if scalars:
            scalars[-1].values["overhead_fraction"] = self._overhead()
            self.latest = scalars[-1].values
        return scalars

    def peek(self) -> dict[str, float]:
        """Statistics of the last measured step, read or not; nothing changes by it."""
        latest, waiting = self.latest, self._waiting[-1:]
        if not waiting:
            return dict(latest)
        ((_, _, row, kind),) = waiting
        (values,) = _scalars(row.cpu().double().unsqueeze(0), kind)
        known = {"overhead_fraction"} & latest.keys()
        return values | {name: latest[name] for name in known}


def _moments(
    step: Step, noisy_weight: Tensor, true_label: Tensor
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Everything that the statistics need, in the cheaper of two forms."""
    passes, update = head_passes(step, noisy_weight), step.head_update
    if update is None or step.is_of_all or not _has_cheap_products(passes, update):
        part = part_of(step, passes, true_label)
        return moments_of(part), part.constants
    (head,), moments = passes, counts_of(step)
    for segments in segments_of(step, passes, true_label):
        of_segments = segment_products(segments)
        moments["segment_sums"] = of_segments.sums
        moments["segment_diagonal"] = of_segments.diagonal
    group = group_moments(head, moments["count"])
    bias = None if update.bias is None else whole(update.bias)
    moments["contributions"] = contributions(head, HeadUpdate(whole(update.weight), bias))
    moments |= {"sums": group.sums, "diagonal": group.diagonal}
    return moments, constants_of(step)


def _has_cheap_products(passes: list[HeadPass], update: HeadUpdate) -> bool:
    return len(passes) == 1 and passes[0].has_cheap_products and not is_spread(update.weight)


def _unpacked(rows: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Moments of S steps, `[S, …]` each, from their rows."""
    parts = rows.split([shape.numel() for _, shape in shapes], dim=1)
    return {
        name: part.reshape(len(rows), *shape)
        for (name, shape), part in zip(shapes, parts, strict=True)
    }


def _scalars(rows: Tensor, kind: _Kind) -> list[dict[str, float]]:
    """The statistics by name, of S steps of one kind, from the rows of their moments."""
    moments, constants = _unpacked(rows, kind.shapes), dict(kind.constants)
    broken, columns = moments["broken"], {}
    for name, values in _statistics(moments, constants["eps"]).items():
        if values.ndim == 1:
            columns[name] = values + broken
        elif values.shape[1] <= MOST_CLASSES:
            stem = name.replace("_by_class", "")
            by_class = (values + broken.unsqueeze(1)).unbind(1)
            columns |= {f"{stem}/{label}": value for label, value in enumerate(by_class)}
    if "coverage" in constants:
        columns["coverage"] = torch.full_like(broken, constants["coverage"])
    table = torch.stack(list(columns.values()), dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]


def _statistics(moments: dict[str, Tensor], of_type: float) -> dict[str, Tensor]:
    """Statistics of S steps from their moments, `[S, …]`: `[S]` each, `[S, C]` by class."""
    count = moments["count"]
    eps = torch.full_like(count, of_type)
    named = {"batch_loss": moments["loss"] / count}
    if "sums" in moments:
        group = GroupMoments(moments["sums"], moments["diagonal"], count)
        named |= group_statistics(group, eps)
        if "mixed" in moments:  # rows of one batch say nothing about the population
            named |= {k: v + moments["mixed"] for k, v in named.items() if "_population" in k}
    if "contributions" in moments:
        clean, noisy = (moments["contributions"].T / count).unbind(0)
        named |= {"contribution_clean": clean, "contribution_noisy": noisy}
    if "segment_sums" in moments:
        segments = SegmentMoments(moments["segment_sums"], moments["segment_diagonal"])
        named |= segment_statistics(segments, eps)
    blocks = {name: value for name, value in moments.items() if name.startswith("block/")}
    if 1 < len(blocks) <= MOST_BLOCKS:
        for name, products in blocks.items():
            named |= block_statistics(products, "/" + name.removeprefix("block/"))
    return named
