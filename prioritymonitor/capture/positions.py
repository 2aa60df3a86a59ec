"""Positions of dense logits: the pixels of an image, the tokens of a sequence.

A sample with many positions is measured on a few of them, always the same ones for logits of one
shape, so that the cost at the head does not grow with images and vocabularies.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_POSITIONS = 32
"""Positions of a sample that are measured."""

_MOST_ROWS = 1024
"""Positions of a micro-batch that are measured, of all samples."""

_MOST_ENTRIES = 2**24
"""Logits of a micro-batch that are measured: with a large vocabulary, fewer positions."""

_SEED = 20230605


@dataclass(frozen=True)
class Rows:
    """Takes one row per measured position from tensors of one layout.

    Attributes:
        samples: Number B of samples; they come one after the other, whatever the shape.
        class_dim: Dimension of the classes, or of the features.
        chosen: Measured positions of each sample, int64 `[B, P]`; None for all of them.
    """

    samples: int
    class_dim: int
    chosen: Tensor | None

    def of(self, tensor: Tensor) -> Tensor:
        """`[B·P, C]`, a view if all positions are measured and the memory allows it."""
        if tensor.ndim == 2 and len(tensor) == self.samples:
            return tensor
        rows = by_position(tensor, self.samples, self.class_dim)
        if self.chosen is not None:
            samples = torch.arange(len(rows), device=rows.device)
            rows = rows[samples.unsqueeze(1), self.chosen]
        return rows.flatten(0, 1)


def by_position(tensor: Tensor, samples: int, class_dim: int) -> Tensor:
    """`[B, N, C]` with N positions per sample, a view where the memory allows it."""
    if tensor.ndim == 1:
        tensor, class_dim = tensor.unsqueeze(1), 1
    rows = tensor.movedim(class_dim, -1)
    return rows.reshape(samples, -1, rows.shape[-1])


def choose_positions(
    samples: int, positions: int, classes: int, device: torch.device, labels: Tensor | None
) -> Tensor | None:
    """Which positions of each sample are measured, int64 `[B, P]`; None for all of them.

    Args:
        samples: B.
        positions: Positions N of each sample.
        classes: C.
        device: Where the logits are.
        labels: What may be the labels, `[B, N]`; negative where the loss ignores them. Positions
            with a label come first. A causal language model predicts the label of the next
            position, so those before a label come second.
    """
    count = min(_MOST_POSITIONS, _MOST_ROWS // samples, _MOST_ENTRIES // (samples * classes))
    count = max(count, 1)
    if positions <= count:
        return None
    order = _order(positions, device).expand(samples, -1)
    if labels is not None:
        unlabelled = labels.to(device, non_blocking=True) < 0
        order = order + unlabelled
        order[:, :-1] += unlabelled[:, :-1] & unlabelled[:, 1:]
    return order.topk(count, dim=1, largest=False).indices.sort(dim=1).values


@functools.lru_cache(maxsize=64)
def _order(positions: int, device: torch.device) -> Tensor:
    """A fixed random number in [0, 1) for each position, `[N]`."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.rand(positions, generator=generator, dtype=torch.float32).to(device)
