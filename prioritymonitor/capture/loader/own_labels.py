"""The labels of a data set, read without touching a sample: for batches that come mixed already."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from .batches import LABEL_KEYS


def own_labels(dataset: Any) -> Tensor | None:
    """The label of each sample, int64 `[n]` on the host; None where it can't be told.

    Args:
        dataset: A `TensorDataset` of inputs and labels, one with `targets` or `labels`, a Hugging
            Face `Dataset` with such a column, or parts of them. No sample is loaded.
    """
    if isinstance(dataset, Subset):
        whole = own_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, device="cpu")]
    if isinstance(dataset, ConcatDataset):
        parts = [part for part in map(own_labels, dataset.datasets) if part is not None]
        return torch.cat(parts) if parts and len(parts) == len(dataset.datasets) else None
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, TensorDataset):
        return _classes(dataset.tensors[1], len(dataset)) if len(dataset.tensors) > 1 else None
    for name in LABEL_KEYS:
        for found in (getattr(dataset, name, None), _column(dataset, name)):
            labels = _classes(found, len(dataset)) if found is not None else None
            if labels is not None:
                return labels
    return None


def _column(dataset: Any, name: str) -> Any:
    """A column of a Hugging Face data set, without its transforms."""
    if name not in (getattr(dataset, "column_names", None) or ()):
        return None
    return dataset.with_format("numpy", columns=[name])[name]


def _classes(found: Any, count: int) -> Tensor | None:
    """So many whole numbers; None for anything else."""
    try:
        values = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    except (TypeError, ValueError):
        return None
    if values.shape != (count,) or values.dtype.kind not in "iub":
        return None
    return torch.from_numpy(values.astype(np.int64))
