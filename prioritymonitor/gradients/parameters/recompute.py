"""Layers without a closed form: their own backward pass, one sample at a time.

First all at once by `torch.func.vmap`; where it can't follow the layer, one after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...capture.rerun import unchanged_randomness, without_trace
from ...errors import is_from_signal, may_pass
from ..factors import Direct, Factors
from .calls import TrainedCall, UnknownSamplesError


def recomputed(call: TrainedCall, names: list[str]) -> dict[str, Factors]:
    """Factors of the layer's own parameters.

    The layer must give each sample the same output as in the batch: no random numbers, and no
    mixing of samples. Where it does not, its gradients don't add up, and the self-check says so.

    Args:
        call: The call.
        names: Names in the layer of the parameters to measure.
    """
    parameters = {name: call.module.get_parameter(name).detach() for name in names}
    others = {
        name: tensor.detach().clone()
        for name, tensor in (*call.module.named_parameters(), *call.module.named_buffers())
        if name not in parameters
    }
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs, call.gradients))
    dims = [_sample_dim(call, leaf) for leaf in leaves]
    if not any(dim is not None for dim in dims):
        raise UnknownSamplesError("no argument of the layer runs over the samples")

    def pullback(*of_sample: Any) -> dict[str, Tensor]:
        alone = [
            leaf if dim is None else leaf.unsqueeze(dim)
            for leaf, dim in zip(of_sample, dims, strict=True)
        ]
        args, kwargs, cotangents = pytree.tree_unflatten(alone, spec)

        def outputs(own: dict[str, Tensor]) -> list[Tensor]:
            output = torch.func.functional_call(call.module, {**others, **own}, args, kwargs)
            found = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
            kept = zip(found, cotangents, strict=True)
            return [x for x, cotangent in kept if cotangent is not None]

        back: Any = torch.func.vjp(outputs, parameters)[1]
        (gradients,) = back([cotangent for cotangent in cotangents if cotangent is not None])
        return gradients  # type: ignore[no-any-return]

    device = next(iter(parameters.values())).device
    with without_trace(call.module, device), unchanged_randomness(device):
        gradients = _of_each(pullback, leaves, dims, call.samples)
    return {name: Direct(rows) for name, rows in gradients.items()}


def _sample_dim(call: TrainedCall, leaf: Any) -> int | None:
    if not isinstance(leaf, Tensor) or leaf.ndim == 0:
        return None
    if isinstance(call.module, nn.RNNBase) and not _is_sequence(call, leaf):
        return 1  # a hidden state, [layers, B, width] whatever batch_first says
    if leaf.ndim > call.batch_dim and leaf.shape[call.batch_dim] == call.samples:
        return call.batch_dim
    for dim in (0, 1):
        if leaf.ndim > dim and leaf.shape[dim] == call.samples:
            return dim
    return None


def _is_sequence(call: TrainedCall, leaf: Tensor) -> bool:
    return leaf is call.input or leaf is call.gradients[0]


def _of_each(
    pullback: Any, leaves: list[Any], dims: list[int | None], samples: int
) -> dict[str, Tensor]:
    try:
        mapped = torch.func.vmap(pullback, in_dims=tuple(dims), randomness="different")
        return mapped(*leaves)  # type: ignore[no-any-return]
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if may_pass(error) or is_from_signal(error):
            raise
        rows = []
        for sample in range(samples):
            own = [
                leaf if dim is None else leaf.select(dim, sample)
                for leaf, dim in zip(leaves, dims, strict=True)
            ]
            rows.append(pullback(*own))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
