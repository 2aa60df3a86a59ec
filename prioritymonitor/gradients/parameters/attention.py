"""Closed form of `nn.MultiheadAttention`, which projects inside one call.

The projections' outputs are nowhere to be seen, so the attention between them is computed once
more, and the gradient of the output is led back through it to them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...capture.rerun import unchanged_randomness
from ..factors import Direct, Factors, Outer
from .calls import TrainedCall


def attention(call: TrainedCall) -> dict[str, Factors]:
    """Factors of the parameters of `nn.MultiheadAttention`."""
    layer: Any = call.module
    if layer.bias_k is not None or call.input.ndim != 3:
        raise NotImplementedError("add_bias_kv and inputs without a batch")
    named = dict(zip(_NAMES, call.args, strict=False)) | call.kwargs
    inputs = [named.pop(name) for name in ("query", "key", "value")]
    if layer.batch_first:
        inputs = [rows.transpose(0, 1) for rows in inputs]
    gradient = call.gradient.transpose(0, 1) if layer.batch_first else call.gradient
    projected = [
        F.linear(rows, weight, bias).requires_grad_()
        for rows, weight, bias in zip(inputs, *_projections(layer), strict=True)
    ]
    with torch.enable_grad(), unchanged_randomness(gradient.device):
        if call.begun is not None:
            call.begun.restore()
        mixed = _mix(layer, projected, named, call.is_training)
    out = layer.out_proj.weight.detach().to(gradient.dtype)
    arrived = torch.autograd.grad(mixed, projected, gradient @ out)

    factors: dict[str, Factors] = {
        "out_proj.weight": Outer(_by_sample(gradient), _by_sample(mixed.detach())),
        "out_proj.bias": Direct(gradient.sum(0)),
        "in_proj_bias": Direct(torch.cat([rows.sum(0) for rows in arrived], dim=1)),
    }
    parts = [Outer(_by_sample(g), _by_sample(x)) for g, x in zip(arrived, inputs, strict=True)]
    if layer._qkv_same_embed_dim:
        factors["in_proj_weight"] = Stacked(parts)
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        factors |= dict(zip(names, parts, strict=True))
    return factors


class Stacked:
    """Factors of the blocks of a matrix, one below the other."""

    def __init__(self, parts: list[Outer]) -> None:
        self._parts = parts
        self.samples = parts[0].samples
        self.dtype = parts[0].dtype
        self.shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
        self.has_cheap_square = all(part.has_cheap_square for part in parts)

    def weighted(self, weight: Tensor) -> Tensor:
        """The blocks' sums, one below the other."""
        return torch.cat([part.weighted(weight) for part in self._parts])

    def square(self) -> Tensor:
        """The blocks have no entry in common, so their squares add up."""
        return torch.stack([part.square() for part in self._parts]).sum(0)

    def rows(self, part: slice) -> Tensor:
        """The blocks' gradients, one below the other."""
        return torch.cat([block.rows(part) for block in self._parts], dim=1)


_NAMES = (
    "query",
    "key",
    "value",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "average_attn_weights",
    "is_causal",
)


def _projections(layer: Any) -> tuple[list[Tensor], list[Tensor | None]]:
    if layer._qkv_same_embed_dim:
        weights = layer.in_proj_weight.detach().chunk(3)
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = [getattr(layer, name).detach() for name in names]
    bias = layer.in_proj_bias
    return list(weights), list(bias.detach().chunk(3)) if bias is not None else [None] * 3


def _mix(layer: Any, projected: list[Tensor], named: dict[str, Any], is_training: bool) -> Tensor:
    """The layer without its projections, by the same function, so that dropout falls alike."""
    same = torch.eye(layer.embed_dim, dtype=projected[0].dtype, device=projected[0].device)
    query, key, value = projected
    mixed, _ = F.multi_head_attention_forward(
        query,
        key,
        value,
        layer.embed_dim,
        layer.num_heads,
        None,
        None,
        None,
        None,
        layer.add_zero_attn,
        layer.dropout,
        same,
        None,
        training=is_training,
        use_separate_proj_weight=True,
        q_proj_weight=same,
        k_proj_weight=same,
        v_proj_weight=same,
        **named,
    )
    return mixed


def _by_sample(rows: Tensor) -> Tensor:
    """`[B, T, width]` from `[T, B, width]`."""
    return rows.transpose(0, 1)
