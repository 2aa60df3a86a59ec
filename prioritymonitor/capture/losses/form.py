"""The shape in which a criterion takes logits and targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Form(NamedTuple):
    """How a criterion takes a single position of each sample: as a batch of that one position.

    Attributes:
        ndim: Number of dimensions of the logits.
        class_dim: Dimension of the classes among them: 1, or −1 for the last.
    """

    ndim: int
    class_dim: int

    def rows(self, logits: Tensor) -> Tensor:
        """Logits of K micro-batches `[K, R, C]` in this form, `K · R` samples."""
        shape = [logits.shape[0] * logits.shape[1], *[1] * (self.ndim - 1)]
        if self.ndim > 1:
            shape[self.class_dim] = logits.shape[2]
        return logits.reshape(shape)

    def targets(self, target: Tensor) -> Tensor:
        """Targets `[K, R]`, or `[K, R, C]` with a value per logit, in this form."""
        if target.ndim > 2:
            return self.rows(target)
        return target.reshape(-1, *[1] * (self.ndim - 2))


def form_of(shape: torch.Size, target: Tensor, class_dim: int) -> Form:
    """The form in which logits of a shape and their target reached the criterion."""
    ndim = target.ndim if has_value_per_logit(shape, target, class_dim) else target.ndim + 1
    return Form(ndim, class_dim if ndim > 2 else 1)


def has_value_per_logit(shape: torch.Size, target: Tensor, class_dim: int) -> bool:
    """Whether the target holds a value for each logit, not a class for each row."""
    if class_count(shape, class_dim) == 1:
        return target.ndim == len(shape)
    return target.numel() == shape.numel()


def class_count(shape: torch.Size, class_dim: int) -> int:
    """Number of classes; logits `[B]` have one."""
    return shape[class_dim] if len(shape) > 1 else 1
