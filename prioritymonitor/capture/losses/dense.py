"""From the positions of a sample to the sample: its loss is the mean over them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...records import HeadGradients, Observation, TargetKind, Visits


def of_samples(rows: Observation, positions: int, reached: Tensor | None) -> Observation:
    """Samples, from what was observed of their positions.

    Positions that the loss ignores don't count. Under a mean over all positions of a batch, each
    one weighs B/N with B samples and N positions that count: then the mean of the samples'
    gradients is the gradient of that loss.

    Args:
        rows: With one row for each position, `[K · B · P]`.
        positions: Their number P for each sample.
        reached: How many positions the loss counts, measured or not, `[K]`; None where all are
            measured. The strength is that of the whole gradient of the logits.
    """
    counted = rows.visits.counted.view(-1, positions).to(rows.visits.sample_loss.dtype)
    number, passes = counted.sum(1), len(rows.health.finite)
    samples = (number > 0).view(passes, -1).sum(1)
    measured = number.view(passes, -1).sum(1).clamp(min=1)
    residual = rows.head.residual.view(passes, -1) * (samples / measured).unsqueeze(1)
    head = HeadGradients(
        residual=residual.view(-1, positions, rows.head.residual.shape[1]),
        strength=rows.head.strength * (measured if reached is None else reached) / samples,
    )
    return replace(rows, visits=_mean_visits(rows.visits, counted), head=head)


def _mean_visits(rows: Visits, counted: Tensor) -> Visits:
    """Means over the positions that count, `[B, P]`."""
    number = counted.sum(1)
    share = counted / number.clamp(min=1).unsqueeze(1)
    unknown = torch.full_like(number, -1, dtype=torch.int64)
    has_classes = rows.targets is not TargetKind.NUMBERS
    return Visits(
        given_label=unknown,
        sample_loss=(rows.sample_loss.view_as(share) * share).sum(1),
        margin=(rows.margin.view_as(share) * share).sum(1),
        error=(rows.error.view_as(share) * share).sum(1),
        rival=unknown,
        counted=number > 0,
        targets=TargetKind.SEVERAL if has_classes else rows.targets,
        classes=rows.classes,
    )
