"""Pure: gradients of samples at the head, in; moments of the clean and the noisy group, out.

The gradient of sample i with respect to the head is `g_i = r_i ⊗ [h_i, 1]`, with dense logits the
sum of that over its P positions. No such gradient is ever made. Two forms give the same moments:

- products of samples, `<g_i, g_j> = (r_i · r_j)(h_i · h_j + 1)`, `[B, B]`: cheaper for few samples
  with many classes;
- group gradients, `[2, C, D + 1]`, beside the squared norms of single samples: cheaper otherwise,
  and the form that adds up over passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..records import GroupGradients, GroupMoments, HeadUpdate, SegmentMoments
from .blocks import wide
from .factors import Direct, Outer, sums_and_square


@dataclass(frozen=True)
class HeadPass:
    """What one pass shows of its samples' gradients at the head."""

    residual: Tensor
    """`[B, C]`, or `[B, P, C]` for dense logits; zero for samples that don't count."""
    features: Tensor
    """Inputs of the head, `[B, D]` or `[B, P, D]`, of the same type."""
    noisy_weight: Tensor
    """How noisy each label is taken to be, in [0, 1], `[B]`, of the same type."""
    has_bias: bool
    """Whether the head has a bias."""

    @property
    def membership(self) -> Tensor:
        """Part of each sample in the clean and the noisy group, `[B, 2]`."""
        return torch.stack((1 - self.noisy_weight, self.noisy_weight), dim=1)

    @cached_property
    def feature_products(self) -> Tensor:
        """`h_i · h_j`, plus 1 for a head with bias, of all positions, `[BP, BP]`."""
        rows = self.features.flatten(0, -2)
        return rows @ rows.T + float(self.has_bias)

    @property
    def has_cheap_products(self) -> bool:
        """Whether products of samples take fewer operations than group gradients.

        With R = BP rows, products and the changes of the logits take R²(C + D) and RCD; group
        gradients and the squared norms take 2RCD and RP(C + D).
        """
        classes, width = self.residual.shape[-1], self.features.shape[-1]
        rows = self.residual.numel() // max(classes, 1)
        own = rows // max(len(self.residual), 1)
        return (rows - own) * (classes + width) < classes * width


# Products of samples


def group_moments(head: HeadPass, count: Tensor) -> GroupMoments:
    """Moments of the two groups from products of samples.

    Args:
        head: The only pass of a step.
        count: How many samples count.
    """
    rows = head.residual.flatten(0, -2)
    products = (rows @ rows.T) * head.feature_products
    if head.residual.ndim == 3:
        samples, positions = head.residual.shape[:2]
        products = products.view(samples, positions, samples, positions).sum((1, 3))
    products, membership = wide(products), wide(head.membership)
    return GroupMoments(
        sums=membership.T @ products @ membership,
        diagonal=membership.T @ (products.diagonal().unsqueeze(1) * membership),
        count=count,
    )


def contributions(head: HeadPass, update: HeadUpdate) -> Tensor:
    """First-order loss decrease that the update buys on each group, times the number of samples.

    Divided by it, they are `−<G_c, u>` and `−<G_n, u>`.

    Returns:
        `[2]`: clean, noisy.
    """
    moved = head.features @ update.weight.to(head.features.dtype).T
    if update.bias is not None:
        moved = moved + update.bias.to(moved.dtype)
    along = (head.residual * moved).flatten(1).sum(1)
    return -(wide(head.membership).T @ wide(along))


# Group gradients


def group_gradients(passes: Sequence[HeadPass], update: HeadUpdate) -> GroupGradients:
    """Group gradients of the head, added up over the passes of a step.

    Args:
        passes: At least one.
        update: What the optimizer did to the head.
    """
    changes = {"head.weight": update.weight}
    if update.bias is not None:
        changes["head.bias"] = update.bias
    sums: dict[str, Tensor] = {}
    squares = []
    for head in passes:
        square = torch.zeros_like(head.noisy_weight)
        for name in changes:
            own, own_square = sums_and_square([_factors(head, name)], head.membership.T)
            added = torch.stack(own)
            sums[name] = sums[name] + added if name in sums else added
            square = square + own_square
        squares.append(square)
    return GroupGradients(
        sums={name: (both[0], both[1]) for name, both in sums.items()},
        square=torch.cat(squares),
        noisy_weight=torch.cat([head.noisy_weight for head in passes]),
        coverage=1.0,
        changes=changes,
    )


def _factors(head: HeadPass, name: str) -> Outer | Direct:
    residual, features = (
        rows.unsqueeze(1) if rows.ndim == 2 else rows for rows in (head.residual, head.features)
    )
    return Outer(residual, features) if name == "head.weight" else Direct(residual.sum(1))


# Segments


@dataclass(frozen=True)
class Segments:
    """Single-logit gradients `r_ic [h_i, 1]` of the samples of a pass: which one of each counts.

    A clean sample is in the segment of its given label, a noisy one in that of its true label, or
    of the predicted one where the true one is not known. A single logit z is taken as the two
    classes' logits 0 and z, to which it is equal.
    """

    head: HeadPass
    """Its residual is `[B, C]`."""
    given_label: Tensor
    """`[B]`."""
    true_label: Tensor
    """`[B]`."""

    @property
    def classes(self) -> int:
        """C."""
        return max(self.head.residual.shape[1], 2)

    @cached_property
    def labels(self) -> Tensor:
        """Class of each sample if it is clean, and if it is noisy, `[2, B]`; C for none."""
        labels = torch.stack((self.given_label, self.true_label))
        return torch.where((labels >= 0) & (labels < self.classes), labels, self.classes)

    @cached_property
    def amounts(self) -> Tensor:
        """`r_ic` of that class, times the sample's part in the group, `[2, B]`."""
        residual = self.head.residual
        if residual.shape[1] == 1:
            residual = torch.cat((-residual, residual), dim=1)
        own = residual.gather(1, self.labels.clamp(max=self.classes - 1).T).T
        return own * self.head.membership.T * (self.labels < self.classes)

    def per_class(self, rows: Tensor) -> Tensor:
        """Sums over the samples of each class, `[2, C, ...]`, of `[2, B, ...]`."""
        sums = rows.new_zeros(2, self.classes + 1, *rows.shape[2:])
        for group, label, own in zip(sums, self.labels, rows, strict=True):
            group.index_add_(0, label, own)
        return sums[:, :-1]


def segment_gradients(passes: Sequence[Segments]) -> tuple[Tensor, Tensor]:
    """Summed gradients of the segments, `[2, C, D + 1]`, and squares of single ones, `[2, C]`.

    Args:
        passes: Of a step, at least one; both are added up over them.
    """
    sums, diagonals = [], []
    for one in passes:
        bias = torch.full_like(one.head.features[:, :1], float(one.head.has_bias))
        inputs = torch.cat((one.head.features, bias), dim=1)
        sums.append(one.per_class(one.amounts.unsqueeze(2) * inputs))
        diagonals.append(one.per_class(one.amounts.square() * inputs.square().sum(1)))
    return torch.stack(sums).sum(0), wide(torch.stack(diagonals)).sum(0)


def segment_squares(gradients: Tensor) -> Tensor:
    """Squared norms of summed gradients of the segments, `[2, C]`."""
    return wide(gradients).square().sum(2)


def segment_products(one: Segments) -> SegmentMoments:
    """The same from products of samples, of a single pass."""
    products, amounts = one.head.feature_products, one.amounts
    together = one.labels.unsqueeze(2) == one.labels.unsqueeze(1)
    summed = ((products * together) @ amounts.unsqueeze(2)).squeeze(2)
    return SegmentMoments(
        sums=wide(one.per_class(amounts * summed)),
        diagonal=wide(one.per_class(amounts.square() * products.diagonal())),
    )
