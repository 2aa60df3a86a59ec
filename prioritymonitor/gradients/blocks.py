"""Pure: group gradients of some parameters, in; products of the groups by block of the model, out.

A block is a top-level child of the model, by the first part of its parameters' names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import GroupGradients

_WRAPPERS = {"module", "_orig_mod", "_module"}
"""What stands before the names of a model in a wrapper: of data parallel training, of
`torch.compile`, of Opacus."""

_ENTRIES_AT_ONCE = 2**20
"""Numbers of a parameter that are taken in double precision at a time."""


def wide(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it: moments are compared by their differences."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def block_products(
    sums: dict[str, tuple[Tensor, Tensor]], changes: dict[str, Tensor]
) -> tuple[tuple[str, ...], Tensor]:
    """Products of the two groups with each other and with the update, by block.

    Args:
        sums: Parameter name -> clean and noisy sum over the samples of the step.
        changes: Parameter name -> what the optimizer did to it.

    Returns:
        Names of the N blocks, and, in double precision, `[N, 2, 3]`: rows clean and noisy; columns
        clean, noisy and update.
    """
    products: dict[str, list[Tensor]] = {}
    for name, groups in sums.items():
        parts = (part.flatten().split(_ENTRIES_AT_ONCE) for part in (*groups, changes[name]))
        products.setdefault(_block_of(name), []).extend(map(_products, *parts))
    if not products:
        return (), torch.zeros(0, 2, 3, dtype=torch.float64)
    summed = torch.stack([torch.stack(parts).sum(0) for parts in products.values()])
    return tuple(products), summed


def _products(clean: Tensor, noisy: Tensor, change: Tensor) -> Tensor:
    """`[2, 3]`, of some numbers of a parameter."""
    rows = wide(torch.stack((clean, noisy, change)))
    return rows[:2] @ rows.T


def _block_of(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        del parts[0]
    return parts[0]


def diagonal(gradients: GroupGradients) -> Tensor:
    """The part of the products of the two groups that samples have with themselves, `[2, 2]`."""
    weight = wide(gradients.noisy_weight)
    membership = torch.stack((1 - weight, weight), dim=1)
    return membership.T @ (wide(gradients.square).unsqueeze(1) * membership)
