"""Pure: moments of a step to its statistics.

Definitions: docs/pages/measured.md. Reference: Liu, Abedsoltan, Belkin, arXiv 2306.02533.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import GroupMoments, SegmentMoments


def group_statistics(moments: GroupMoments, eps: Tensor) -> dict[str, Tensor]:
    """Ratio, cosine, share and coherence of steps, `[S]` each.

    The plain names are those of this batch; `_population` marks the U-statistic over pairs of
    different samples, which does not grow as batches get smaller. Where an unbiased square comes
    out negative the value is NaN.

    Args:
        moments: Of the steps.
        eps: Relative rounding of the gradients that they were made of, `[S]`.
    """
    count = moments.count
    squares, scatter = _diagonal(moments.sums), _diagonal(moments.diagonal)
    pairs = moments.sums - moments.diagonal
    mean_product = pairs.sum((-2, -1)) / (count * (count - 1))
    mean_square = moments.diagonal.sum((-2, -1)) / count
    return {
        **_compare_groups(moments.sums, squares.sqrt(), ""),
        **_compare_groups(pairs, _unbiased_norm(_diagonal(pairs), scatter, eps), "_population"),
        "coherence": mean_product / mean_square,
    }


def block_statistics(products: Tensor, suffix: str) -> dict[str, Tensor]:
    """Ratio, cosine and share within one block of the model, for S steps.

    Args:
        products: Of the clean and the noisy group with each other, `[S, 2, 2]`.
        suffix: Ends each name.
    """
    return _compare_groups(products, _diagonal(products).sqrt(), suffix)


def _compare_groups(products: Tensor, norms: Tensor, suffix: str) -> dict[str, Tensor]:
    clean, noisy = norms.unbind(-1)
    cross = products[..., 0, 1]
    total = products.sum((-2, -1))
    share = (products[..., 1, 1] + cross) / torch.where(total > 0, total, torch.nan)
    return {
        "dominance_ratio" + suffix: clean / noisy,
        "group_cosine" + suffix: cross / (clean * noisy),
        "noise_share" + suffix: share,
    }


def _diagonal(products: Tensor) -> Tensor:
    return products.diagonal(dim1=-2, dim2=-1)


def _unbiased_norm(pairs: Tensor, diagonal: Tensor, eps: Tensor) -> Tensor:
    """Root of a sum over pairs; NaN where it is negative or no more than rounding.

    A group of one sample has no pairs, and what is left of `sums − diagonal` is rounding.
    """
    rounding = 64 * eps.view(-1, *(1 for _ in pairs.shape[1:])) * diagonal
    return torch.where(pairs > rounding, pairs, torch.nan).sqrt()


def segment_statistics(moments: SegmentMoments, eps: Tensor) -> dict[str, Tensor]:
    """Single-logit segment ratios of S steps: `[S, C]` for each class, `[S]` of all together.

    At initialisation the ratio is `(C−1)(1−δ)/δ` at a noise rate δ, and `(1−δ)/δ` for two classes.

    Args:
        moments: Of the steps.
        eps: Relative rounding of the gradients that they were made of, `[S]`.
    """
    statistics = {}
    pairs, diagonal = moments.sums - moments.diagonal, moments.diagonal
    for name, norms in (
        ("segment_ratio_by_class", moments.sums.sqrt()),
        ("segment_ratio", moments.sums.sum(-1).sqrt()),
        ("segment_ratio_by_class_population", _unbiased_norm(pairs, diagonal, eps)),
        ("segment_ratio_population", _unbiased_norm(pairs.sum(-1), diagonal.sum(-1), eps)),
    ):
        clean, noisy = norms.unbind(1)
        statistics[name] = clean / noisy
    return statistics
