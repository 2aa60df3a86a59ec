"""From the positions of a sample to the sample: its loss is the mean over them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...records import Labels
from .observed import Observed


def of_samples(observed: Observed, positions: int, reached: Tensor | None) -> Observed:
    """Samples, from what was observed of their positions.

    Positions that the loss ignores don't count. Under a mean over all positions of a batch, each
    one weighs B/N with B samples and N positions that count: then the mean of the samples'
    gradients is the gradient of that loss.

    Args:
        observed: With one row for each position, `[K · B · P]`.
        positions: Their number P for each sample.
        reached: How many positions the loss counts, measured or not, `[K]`; None where all are
            measured. The strength is that of the whole gradient of the logits.
    """
    counted = observed.counted.view(-1, positions).to(observed.sample_loss.dtype)
    number = counted.sum(1)
    share = counted / number.clamp(min=1).unsqueeze(1)
    is_counted = number > 0
    micro_batches = len(observed.finite)
    samples = is_counted.view(micro_batches, -1).sum(1)
    measured = number.view(micro_batches, -1).sum(1).clamp(min=1)
    weight = samples / measured
    residual = observed.residual.view(micro_batches, -1) * weight.unsqueeze(1)
    unknown = torch.full_like(number, -1, dtype=torch.int64)
    several = observed.labels is not Labels.NUMBERS
    return replace(
        observed,
        target=unknown,
        residual=residual.view(-1, positions, observed.residual.shape[1]),
        sample_loss=(observed.sample_loss.view_as(share) * share).sum(1),
        margin=(observed.margin.view_as(share) * share).sum(1),
        error=(observed.error.view_as(share) * share).sum(1),
        rival=unknown,
        counted=is_counted,
        strength=observed.strength * (measured if reached is None else reached) / samples,
        labels=Labels.SEVERAL if several else observed.labels,
    )
