"""Pure: the gradients of a step's samples and how noisy each is, in; moments of the groups, out.

The gradient of sample i with respect to the head is `g_i = r_i ⊗ [h_i, 1]`, so that
`<g_i, g_j> = (r_i · r_j)(h_i · h_j + 1)`: every product of group gradients comes from `[B, B]`
matrices, and no per-sample gradient is ever made.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .records import GroupMoments, SegmentMoments, Update


def feature_products(features: Tensor, has_bias: bool) -> Tensor:
    """`h_i · h_j`, plus 1 for a head with bias, `[B, B]`.

    Args:
        features: Inputs of the head, `[B, D]`.
        has_bias: Whether the head has a bias.
    """
    return features @ features.T + float(has_bias)


def group_moments(
    residual: Tensor, products: Tensor, noisy_weight: Tensor, counted: Tensor
) -> GroupMoments:
    """Moments of the clean and the noisy group.

    Args:
        residual: `[B, C]`, zero rows for samples that don't count.
        products: From `feature_products`, `[B, B]`.
        noisy_weight: How noisy each label is taken to be, in [0, 1], `[B]`.
        counted: Which samples count, bool `[B]`.
    """
    gram = (residual @ residual.T) * products
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

    Args:
        residual: `[B, C]`.
        products: From `feature_products`, `[B, B]`.
        noisy_weight: `[B]`.
        given_label: Class of each sample if its label is clean, `[B]`.
        true_label: Class of each sample if its label is noisy: the true one where it is known,
            the predicted one otherwise, `[B]`.
    """
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
    residual: Tensor, features: Tensor, noisy_weight: Tensor, update: Update
) -> Tensor:
    """First-order loss decrease that the update buys on each group, times the number of samples.

    Divided by it, they are `−<G_c, u>` and `−<G_n, u>`.

    Args:
        residual: `[B, C]`.
        features: `[B, D]`.
        noisy_weight: `[B]`.
        update: What the optimizer did to the head.

    Returns:
        `[2]`: clean, noisy.
    """
    moved = features @ update.weight.to(features.dtype).T
    if update.bias is not None:
        moved = moved + update.bias.to(features.dtype)
    along = (residual * moved).sum(1)
    membership = torch.stack((1 - noisy_weight, noisy_weight))
    return -(membership @ along)
