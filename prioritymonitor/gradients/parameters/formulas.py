"""Closed forms: what a call of a layer brings to each of its parameters.

One function per kind of layer, `(trained call) -> {name in the layer: use}`, and one table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..factors import Direct, Factors, Lookup, Outer
from .attention import attention
from .calls import TrainedCall, UnknownSamplesError
from .convolution import Convolution

Formula = Callable[[TrainedCall], dict[str, Factors]]


def formula_for(module: nn.Module) -> Formula | None:
    """The closed form for a layer; None without one.

    A class that changes what a layer does has none: only the very classes of the table count.
    """
    kind = type(module)
    return FORMULAS.get(kind) or FOREIGN.get(f"{kind.__module__}.{kind.__qualname__}")


def _linear(call: TrainedCall) -> dict[str, Factors]:
    left, right = _positions(call, call.gradient), _positions(call, call.input)
    return {"weight": Outer(left, right), "bias": Direct(left.sum(1))}


def _transposed_linear(call: TrainedCall) -> dict[str, Factors]:
    left, right = _positions(call, call.input), _positions(call, call.gradient)
    return {"weight": Outer(left, right), "bias": Direct(right.sum(1))}


def _positions(call: TrainedCall, tensor: Tensor) -> Tensor:
    """`[B, T, width]`."""
    rows = call.by_sample(tensor, others=1)
    return rows.unsqueeze(1) if rows.ndim == 2 else rows.flatten(1, -2)


def _convolution(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    space = len(layer.kernel_size)
    inputs, gradient = _images(call, call.input, space), _images(call, call.gradient, space)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = (0,) * space
    elif padding == "valid":
        padding = (0,) * space
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        inputs = F.pad(inputs, [end for n in reversed(total) for end in (n // 2, n - n // 2)])
        padding = (0,) * space
    weight = Convolution(
        call.samples,
        inputs,
        gradient,
        layer.weight.detach().to(inputs.dtype),
        layer.stride,
        padding,
        layer.dilation,
        layer.groups,
        _output_padding(layer, inputs, gradient) if layer.transposed else None,
    )
    return {"weight": weight, "bias": Direct(_summed(call, gradient.flatten(2).sum(2)))}


def _images(call: TrainedCall, tensor: Tensor, space: int) -> Tensor:
    """`[B·k, channels, *space]` for k images of each sample."""
    images = tensor.unsqueeze(0) if tensor.ndim == space + 1 else tensor
    if len(images) % call.samples:
        raise UnknownSamplesError(f"{len(images)} images for {call.samples} samples")
    return images


def _summed(call: TrainedCall, rows: Tensor) -> Tensor:
    """Sum over the k images of each sample, `[B, width]`."""
    return rows if len(rows) == call.samples else rows.unflatten(0, (call.samples, -1)).sum(1)


def _output_padding(layer: Any, inputs: Tensor, gradient: Tensor) -> tuple[int, ...]:
    """What was added to one side; a call may have asked for an output size instead."""
    found = []
    for axis, size in enumerate(gradient.shape[2:]):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        steps = (inputs.shape[2 + axis] - 1) * layer.stride[axis]
        found.append(size - (steps - 2 * layer.padding[axis] + reach))
    return tuple(found)


def _layer_norm(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    shape = tuple(layer.normalized_shape)
    return _scale_and_shift(call, F.layer_norm(call.input, shape, eps=layer.eps), len(shape))


def _rms_norm(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    shape = tuple(layer.normalized_shape)
    return _scale_and_shift(call, F.rms_norm(call.input, shape, eps=layer.eps), len(shape))


def _scale_and_shift(call: TrainedCall, normed: Tensor, width: int) -> dict[str, Factors]:
    gradient = call.by_sample(call.gradient, width)
    scale = gradient * call.by_sample(normed, width)
    return {
        "weight": Direct(_over_positions(scale, width)),
        "bias": Direct(_over_positions(gradient, width)),
    }


def _over_positions(tensor: Tensor, width: int) -> Tensor:
    return tensor.sum(tuple(range(1, tensor.ndim - width))) if tensor.ndim > 1 + width else tensor


def _group_norm(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    return _per_channel(call, F.group_norm(call.input, layer.num_groups, eps=layer.eps))


def _instance_norm(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    statistics = (layer.running_mean, layer.running_var)
    own = call.is_training or not layer.track_running_stats
    mean, variance = (None, None) if own else statistics
    normed = F.instance_norm(call.input, mean, variance, use_input_stats=own, eps=layer.eps)
    return _per_channel(call, normed)


def _batch_norm(call: TrainedCall) -> dict[str, Factors]:
    """Samples are mixed in training mode; then this is each sample's row of the batch's gradient.

    What the loss of the other samples owes to this sample by way of the mean and the variance
    counts as this sample's. Rows add up to the gradient of the batch.
    """
    layer: Any = call.module
    mean, variance = layer.running_mean, layer.running_var
    own = call.is_training or mean is None
    if own:
        mean = variance = None  # and so the running statistics stay as they are
    normed = F.batch_norm(call.input, mean, variance, training=own, eps=layer.eps)
    return _per_channel(call, normed)


def _per_channel(call: TrainedCall, normed: Tensor) -> dict[str, Factors]:
    images = _images(call, normed, normed.ndim - 2)
    gradient = call.gradient.reshape(*images.shape[:2], -1)
    scale = torch.linalg.vecdot(gradient, images.reshape(gradient.shape))
    return {
        "weight": Direct(_summed(call, scale)),
        "bias": Direct(_summed(call, gradient.sum(2))),
    }


def _prelu(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    below = call.by_sample(call.input.clamp(max=0) * call.gradient, others=call.input.ndim - 1)
    below = below.flatten(2).sum(2) if below.ndim > 2 else below
    return {"weight": Direct(below if layer.num_parameters > 1 else below.sum(1, keepdim=True))}


def _embedding(call: TrainedCall) -> dict[str, Factors]:
    layer: Any = call.module
    index = call.by_sample(call.input, others=0).reshape(call.samples, -1)
    gradient = call.by_sample(call.gradient, others=1).reshape(*index.shape, -1)
    return {"weight": _lookups(layer, index, gradient)}


def _lookups(layer: Any, index: Tensor, gradient: Tensor) -> Lookup:
    if layer.padding_idx is not None:
        gradient = gradient * (index != layer.padding_idx).unsqueeze(-1)
    if layer.scale_grad_by_freq:
        frequency = torch.bincount(index.flatten(), minlength=layer.num_embeddings)
        gradient = gradient / frequency[index].unsqueeze(-1)
    return Lookup(index, gradient, layer.num_embeddings)


def _embedding_bag(call: TrainedCall) -> dict[str, Factors]:
    """A bag is the sum of its lookups times their shares in it, so it is lookups too."""
    layer: Any = call.module
    named = dict(zip(("input", "offsets", "per_sample_weights"), call.args, strict=False))
    named |= call.kwargs
    index, share = named["input"], named.get("per_sample_weights")
    share = torch.ones_like(index, dtype=call.gradient.dtype) if share is None else share
    if index.ndim == 1:
        index, share = _bags(index, share, named["offsets"], layer.include_last_offset)
    if layer.padding_idx is not None:
        share = share * (index != layer.padding_idx)
    gradient = call.gradient.unsqueeze(1)
    if layer.mode == "max":
        rows = layer.weight.detach()[index].masked_fill(share.unsqueeze(2) == 0, -torch.inf)
        place = torch.arange(index.shape[1], device=index.device)
        gradient = gradient * (rows.argmax(1, keepdim=True) == place.view(1, -1, 1))
    elif layer.mode == "mean":
        share = share / (share != 0).sum(1, keepdim=True).clamp(min=1)
    lookups = call.by_sample(index, others=1).reshape(call.samples, -1)
    gradient = (gradient * share.unsqueeze(2)).reshape(*lookups.shape, -1)
    return {"weight": _lookups(layer, lookups, gradient)}


def _bags(index: Tensor, share: Tensor, offsets: Tensor, has_end: bool) -> tuple[Tensor, Tensor]:
    """Bags of one length, `[bags, n]`, filled up with lookups that have no share."""
    starts = offsets[:-1] if has_end else offsets
    place = torch.arange(len(index), device=index.device)
    bag = torch.bucketize(place, starts, right=True) - 1
    within = place - starts[bag]
    shape = (len(starts), int(within.max()) + 1 if len(within) else 1)
    places = (bag, within)
    return (
        index.new_zeros(shape).index_put_(places, index),
        share.new_zeros(shape).index_put_(places, share),
    )


FORMULAS: dict[type[nn.Module], Formula] = {
    nn.Linear: _linear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose1d: _convolution,
    nn.ConvTranspose2d: _convolution,
    nn.ConvTranspose3d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.InstanceNorm3d: _instance_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.RMSNorm: _rms_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
    nn.MultiheadAttention: attention,
}
"""Layers of torch."""

FOREIGN: dict[str, Formula] = {"transformers.pytorch_utils.Conv1D": _transposed_linear}
"""Layers of other libraries, by name, so that they need not be imported."""
