"""A criterion that is called more than once on the same logits, as for labels mixed in pairs.

The loss is then a sum of the calls, each with a factor of its own: `λ l(z, y) + (1 − λ) l(z, y')`.
The factors are fitted to the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MIXED = 1e-3
"""Share of a second call from which on the labels are mixed."""


@dataclass(frozen=True)
class WeightedSum:
    """What the calls make together."""

    loss: Tensor
    """`[K, R]`."""
    residual: Tensor
    """`[K, R, C]`."""
    share: Tensor
    """Of each call, with a sum of 1, `[K, n]`."""

    def main(self, given: Sequence[Tensor]) -> Tensor:
        """The targets of the call with the largest share in each pass."""
        passes = torch.arange(len(self.share), device=self.share.device)
        return torch.stack(tuple(given), 1)[passes, self.share.argmax(1)]

    def weight_of(self, given: Sequence[Tensor], label: Tensor) -> Tensor:
        """Weight of labels `[K, R]` in the targets of all calls, `[K, R]`."""
        pairs = zip(self.share.unbind(1), given, strict=True)
        parts = [share.unsqueeze(1) * (target == label) for share, target in pairs]
        return torch.stack(parts).sum(0)

    def target_of(self, given: Sequence[Tensor], classes: int) -> Tensor:
        """Soft targets that the labels of all calls make together, `[K, R, C]`."""
        shape = (*given[0].shape, classes)
        target = torch.zeros(shape, dtype=self.share.dtype, device=self.share.device)
        for share, label in zip(self.share.unbind(1), given, strict=True):
            weight = share.unsqueeze(1).expand_as(label).unsqueeze(2)
            target.scatter_add_(2, label.clamp(0, classes - 1).unsqueeze(2), weight)
        return target

    @property
    def is_mixed(self) -> Tensor:
        """Bool `[K]`."""
        return self.share.amax(1) < 1 - _MIXED


def weighted_sum(calls: Sequence[tuple[Tensor, Tensor]], gradient: Tensor) -> WeightedSum:
    """Fit the factors of the calls.

    Args:
        calls: Loss `[K, R]` and residual `[K, R, C]` of each.
        gradient: What reached the logits, `[K, R, C]`.
    """
    losses, residuals = (torch.stack(parts, 1) for parts in zip(*calls, strict=True))
    flat = residuals.flatten(2).double().nan_to_num()
    # The smallest factors that explain it: calls with the same labels share theirs.
    inverse = torch.linalg.pinv(flat @ flat.mT, hermitian=True)
    along = flat @ gradient.flatten(1).double().nan_to_num().unsqueeze(2)
    factor = (inverse @ along).squeeze(2).to(gradient.dtype)
    share = factor / factor.sum(1, keepdim=True)
    return WeightedSum(
        loss=(share.unsqueeze(2) * losses).sum(1),
        residual=(share[:, :, None, None] * residuals).sum(1),
        share=share,
    )
