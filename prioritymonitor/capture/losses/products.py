"""How well a loss explains the gradient of the logits, and where labels stand among classes."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = 16.0
"""How many times the rounding of a probability near 1 a residual may be off."""


class Products:
    """Products of the gradient and the residual of each row, `[K, R]` each.

    With them, how well a multiple of the residual explains the gradient costs next to nothing.
    """

    def __init__(self, gradient: Tensor, residual: Tensor) -> None:
        self.energy = gradient.square().sum(2)
        self.along = (gradient * residual).sum(2)
        self.square = residual.square().sum(2)
        self.finite = self.energy.sum(1).isfinite()
        self._entries = gradient[0].numel()
        self._eps = torch.finfo(gradient.dtype).eps

    def unexplained(self, factor: Tensor, strength: Tensor) -> Tensor:
        """Share of the gradient's energy that `factor` times the residual does not explain, `[K]`.

        Where every sample is fit, the gradient is the rounding of probabilities near 1; as much as
        rounding could do is explained.

        Args:
            factor: `[K, R]`.
            strength: Size of the gradient over the residual, `[K]`.
        """
        energy = self.energy.sum(1)
        left = self.energy - 2 * factor * self.along + factor.square() * self.square
        rounding = self._entries * (ROUNDINGS * self._eps * strength).square()
        return ((left.sum(1) - rounding).clamp(min=0) / energy).nan_to_num(nan=0.0)


def class_margin_(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where each label stands among the classes: its margin and its rival, `[K, R]` each.

    Args:
        scores: Probabilities or other scores, `[K, R, C]`; changed on the way, and left as given.
        target: Given labels, int64 `[K, R]`.
    """
    label = target.unsqueeze(2)
    own = scores.gather(2, label)
    rival_score, rival = scores.scatter_(2, label, -torch.inf).max(2)
    scores.scatter_(2, label, own)
    return own.squeeze(2) - rival_score, rival


def class_error(scores: Tensor, target: Tensor) -> Tensor:
    """Distance of the scores from zeros with a one at the label, `[K, R]`; arguments as above."""
    label = target.unsqueeze(2)
    residual = scores.scatter(2, label, scores.gather(2, label) - 1)
    return residual.square().sum(2).sqrt()
