"""Pure: the gradients of a step's samples and how noisy each is, in; moments of the groups, out.

The gradient of sample i with respect to the head is `g_i = r_i ⊗ [h_i, 1]`, so that
`<g_i, g_j> = (r_i · r_j)(h_i · h_j + 1)`: every product of group gradients comes from `[B, B]`
matrices, and no per-sample gradient is ever made. With dense logits a sample's gradient is the sum
over its P positions, and so are its products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..records import GroupMoments, HeadUpdate, SegmentMoments

_MOST_ROWS = 1024
"""Positions whose products with all others are held at once."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Residuals or features of micro-batches, one after the other.

    Args:
        parts: `[B_k, C]`, or `[B_k, P_k, C]` for dense logits, whose samples may have different
            numbers of positions; the missing ones are filled with zeros.
    """
    if parts[0].ndim == 3:
        most = max(part.shape[1] for part in parts)
        parts = [F.pad(part, (0, 0, 0, most - part.shape[1])) for part in parts]
    return torch.cat(list(parts))


def feature_products(features: Tensor, has_bias: bool) -> Tensor:
    """`h_i · h_j`, plus 1 for a head with bias, `[B, B]`.

    Args:
        features: Inputs of the head, `[B, D]`.
        has_bias: Whether the head has a bias.
    """
    return features @ features.T + float(has_bias)


def gradient_products(residual: Tensor, products: Tensor) -> Tensor:
    """`<g_i, g_j>`, `[B, B]`.

    Args:
        residual: `[B, C]`, zero rows for samples that don't count.
        products: From `feature_products`, `[B, B]`.
    """
    return (residual @ residual.T) * products


def dense_gradient_products(residual: Tensor, features: Tensor, has_bias: bool) -> Tensor:
    """`<g_i, g_j>`, `[B, B]`, of samples with several positions.

    Args:
        residual: `[B, P, C]`, or `[B, C]` for a single position.
        features: Inputs of the head, `[B, P, D]` or `[B, D]`.
        has_bias: Whether the head has a bias.
    """
    if residual.ndim == 2:
        residual, features = residual.unsqueeze(1), features.unsqueeze(1)
    samples, positions = residual.shape[:2]
    rows, inputs = residual.flatten(0, 1), features.flatten(0, 1)
    parts = []
    at_once = max(_MOST_ROWS // positions, 1) * positions
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        gram = (rows[part] @ rows.T) * (inputs[part] @ inputs.T + float(has_bias))
        parts.append(gram.view(-1, positions, samples, positions).sum((1, 3)))
    return torch.cat(parts)


def group_moments(gram: Tensor, noisy_weight: Tensor, counted: Tensor) -> GroupMoments:
    """Moments of the clean and the noisy group.

    Args:
        gram: `<g_i, g_j>`, `[B, B]`.
        noisy_weight: How noisy each label is taken to be, in [0, 1], `[B]`.
        counted: Which samples count, bool `[B]`.
    """
    membership = torch.stack((1 - noisy_weight, noisy_weight), dim=1)
    return GroupMoments(
        sums=membership.T @ gram @ membership,
        diagonal=membership.T @ (gram.diagonal().unsqueeze(1) * membership),
        count=counted.sum(),
    )


def segment_moments(
    residual: Tensor,
    products: Tensor,
    noisy_weight: Tensor,
    given_label: Tensor,
    true_label: Tensor,
) -> SegmentMoments:
    """Moments of the single-logit gradients `r_ic [h_i, 1]` of each class c.

    A single logit z is taken as the two classes' logits 0 and z, to which it is equal.

    Args:
        residual: `[B, C]`.
        products: From `feature_products`, `[B, B]`.
        noisy_weight: `[B]`.
        given_label: Class of each sample if its label is clean, `[B]`.
        true_label: Class of each sample if its label is noisy: the true one where it is known,
            the predicted one otherwise, `[B]`.
    """
    if residual.shape[1] == 1:
        residual = torch.cat((-residual, residual), dim=1)
    classes = torch.arange(residual.shape[1], device=residual.device)
    clean = (1 - noisy_weight).unsqueeze(1) * (given_label.unsqueeze(1) == classes)
    noisy = noisy_weight.unsqueeze(1) * (true_label.unsqueeze(1) == classes)
    coefficient = torch.stack((clean, noisy)) * residual  # [2, B, C]
    own = products.diagonal().unsqueeze(1)
    return SegmentMoments(
        sums=(coefficient * (products @ coefficient)).sum(1),
        diagonal=(coefficient.square() * own).sum(1),
    )


def contributions(
    residual: Tensor, features: Tensor, noisy_weight: Tensor, update: HeadUpdate
) -> Tensor:
    """First-order loss decrease that the update buys on each group, times the number of samples.

    Divided by it, they are `−<G_c, u>` and `−<G_n, u>`.

    Args:
        residual: `[B, C]` or `[B, P, C]`.
        features: `[B, D]` or `[B, P, D]`.
        noisy_weight: `[B]`.
        update: What the optimizer did to the head.

    Returns:
        `[2]`: clean, noisy.
    """
    moved = features @ update.weight.to(features.dtype).T
    if update.bias is not None:
        moved = moved + update.bias.to(features.dtype)
    along = (residual * moved).flatten(1).sum(1)
    membership = torch.stack((1 - noisy_weight, noisy_weight))
    return -(membership @ along)
