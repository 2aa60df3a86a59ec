"""Measured steps: moments computed on the device, statistics on the host, many steps at once.

Only sums over samples run on the device in a step. What becomes of them takes dozens of operations
on single numbers, so it waits until the host reads the moments of many steps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture.parameters import whole
from ..records import (
    GroupGradients,
    GroupMoments,
    HeadUpdate,
    SegmentMoments,
    Step,
    TargetKind,
)
from .blocks import all_moments, block_products
from .groups import (
    HeadPass,
    Segments,
    contributions,
    group_gradients,
    group_moments,
    segment_moments,
    segment_products,
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


class StepStatistics:
    """Measures steps without waiting for the device.

    Args:
        overhead: Gives the share of wall time spent in the monitor since it was last called.
    """

    def __init__(self, overhead: Callable[[], float]) -> None:
        self.latest: dict[str, float] = {}
        """Statistics of the last step that was read, or that a resumed run had read."""
        self._overhead = overhead
        self._waiting: list[tuple[int, float, Tensor, Shapes]] = []

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
            row, shapes = _packed(_moments(step, noisy_weight, true_label))
        self._waiting.append((number, time.time(), row, shapes))

    @property
    def is_full(self) -> bool:
        """True when the host should read what waits."""
        return len(self._waiting) >= _MOST_WAITING

    def read(self) -> list[StepScalars]:
        """All that waits, by one transfer for each run of steps with the same kind of moments."""
        waiting, self._waiting = self._waiting, []
        scalars: list[StepScalars] = []
        for shapes, alike in itertools.groupby(waiting, key=lambda entry: entry[3]):
            numbers, times, rows, _ = zip(*alike, strict=True)
            moments = _unpacked(torch.stack(rows).cpu().double(), shapes)
            scalars += map(StepScalars, numbers, times, _scalars(moments))
        if scalars:
            scalars[-1].values["overhead_fraction"] = self._overhead()
            self.latest = scalars[-1].values
        return scalars

    def peek(self) -> dict[str, float]:
        """Statistics of the last measured step, read or not; nothing changes by it."""
        latest, waiting = self.latest, self._waiting[-1:]
        if not waiting:
            return dict(latest)
        ((_, _, row, shapes),) = waiting
        (values,) = _scalars(_unpacked(row.cpu().double().unsqueeze(0), shapes))
        known = {"overhead_fraction"} & latest.keys()
        return values | {name: latest[name] for name in known}


def _moments(step: Step, noisy_weight: Tensor, true_label: Tensor) -> dict[str, Tensor]:
    """Everything that the statistics need; `_scalars` makes them of it."""
    visits = [one.visits for one in step.observations]
    loss = torch.cat([some.sample_loss for some in visits])
    count = torch.cat([some.counted for some in visits]).sum().to(loss.dtype)
    finite = torch.cat([one.health.finite for one in step.observations]).all()
    passes = _head_passes(step, noisy_weight)
    by_products = len(passes) == 1 and not step.is_of_all and passes[0].has_cheap_products
    moments = {
        "loss": loss.sum(),
        "count": count,
        "broken": torch.where(finite, 0.0, torch.nan),
        "eps": torch.full_like(count, torch.finfo(step.observations[0].head.residual.dtype).eps),
    }
    if passes and all(some.targets is TargetKind.ONE for some in visits):
        given_labels = [some.given_label for some in visits]
        true_labels = true_label.split([len(labels) for labels in given_labels])
        segments = list(map(Segments, passes, given_labels, true_labels))
        moments |= _segment_moments(segments, by_products=by_products)
    if step.is_of_all:
        return moments | _all_moments(step.parameters, count)
    if step.head_update is None or not passes:
        return moments
    bias = step.head_update.bias
    update = HeadUpdate(whole(step.head_update.weight), None if bias is None else whole(bias))
    if by_products:
        return moments | _product_moments(passes[0], update, count)
    return moments | _gradient_moments(group_gradients(passes, update), count)


def _head_passes(step: Step, noisy_weight: Tensor) -> list[HeadPass]:
    """What each pass shows of the head; empty where it is not measured."""
    if step.head_update is None or any(one.head.features is None for one in step.observations):
        return []
    has_bias, passes, first = step.head_update.bias is not None, [], 0
    for head in [one.head for one in step.observations]:
        assert head.features is not None
        residual, last = head.residual, first + len(head.residual)
        weight = noisy_weight[first:last].to(residual.dtype)
        passes.append(HeadPass(residual, whole(head.features).to(residual.dtype), weight, has_bias))
        first = last
    return passes


def _segment_moments(segments: list[Segments], *, by_products: bool) -> dict[str, Tensor]:
    moments = segment_products(*segments) if by_products else segment_moments(segments)
    return {"segment_sums": moments.sums, "segment_diagonal": moments.diagonal}


def _product_moments(head: HeadPass, update: HeadUpdate, count: Tensor) -> dict[str, Tensor]:
    group = group_moments(head, count)
    along = contributions(head, update)
    return {"sums": group.sums, "diagonal": group.diagonal, "contributions": along}


def _gradient_moments(gradients: GroupGradients, count: Tensor) -> dict[str, Tensor]:
    blocks, products = block_products(gradients)
    group = all_moments(gradients, products, count)
    return {
        "sums": group.sums,
        "diagonal": group.diagonal,
        "contributions": -products.sum(0)[:, 2],
        **{f"block/{name}": product[:, :2] for name, product in zip(blocks, products, strict=True)},
    }


def _all_moments(gradients: GroupGradients | None, count: Tensor) -> dict[str, Tensor]:
    if gradients is None:
        return {}
    return _gradient_moments(gradients, count) | {
        "coverage": torch.full_like(count, gradients.coverage),
        "mixed": torch.full_like(count, torch.nan if gradients.is_mixed else 0.0),
    }


def _packed(moments: dict[str, Tensor]) -> tuple[Tensor, Shapes]:
    row = torch.cat([moment.reshape(-1) for moment in moments.values()])
    return row, tuple((name, moment.shape) for name, moment in moments.items())


def _unpacked(rows: Tensor, shapes: Shapes) -> dict[str, Tensor]:
    """Moments of S steps, `[S, …]` each, from their rows."""
    parts = rows.split([shape.numel() for _, shape in shapes], dim=1)
    return {
        name: part.reshape(len(rows), *shape)
        for (name, shape), part in zip(shapes, parts, strict=True)
    }


def _scalars(moments: dict[str, Tensor]) -> list[dict[str, float]]:
    """Statistics of S steps from their moments, `[S, …]`."""
    count, broken, eps = moments["count"], moments["broken"], moments["eps"]
    named = {"batch_loss": moments["loss"] / count}
    if "sums" in moments:
        group = GroupMoments(moments["sums"], moments["diagonal"], count)
        named |= group_statistics(group, eps)
        if "mixed" in moments:  # rows of one batch say nothing about the population
            named |= {k: v + moments["mixed"] for k, v in named.items() if "_population" in k}
        clean, noisy = (moments["contributions"].T / count).unbind(0)
        named |= {"contribution_clean": clean, "contribution_noisy": noisy}
    if "segment_sums" in moments:
        segments = SegmentMoments(moments["segment_sums"], moments["segment_diagonal"])
        named |= segment_statistics(segments, eps)
    blocks = {name: value for name, value in moments.items() if name.startswith("block/")}
    if 1 < len(blocks) <= MOST_BLOCKS:
        for name, products in blocks.items():
            named |= block_statistics(products, "/" + name.removeprefix("block/"))
    columns = {}
    for name, values in named.items():
        if values.ndim == 1:
            columns[name] = values + broken
        elif values.shape[1] <= MOST_CLASSES:
            stem = name.replace("_by_class", "")
            by_class = (values + broken.unsqueeze(1)).unbind(1)
            columns |= {f"{stem}/{label}": value for label, value in enumerate(by_class)}
    if "coverage" in moments:
        columns["coverage"] = moments["coverage"]
    table = torch.stack(list(columns.values()), dim=1).tolist()
    return [dict(zip(columns, row, strict=True)) for row in table]
