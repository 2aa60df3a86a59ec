"""What every method of `compare.py` must compute, and plain autograd's answer to it.

A noisy label is one that `is_noisy` says is noisy, so that every method can know it from the batch
alone. Gradients are those of the samples' own losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.engines.architectures import loss_of


def is_noisy(labels: Tensor) -> Tensor:
    """Nearly half of the labels."""
    return labels % 3 == 0


@dataclass(frozen=True)
class Groups:
    """Clean and noisy part of the per-sample gradients of all parameters."""

    sums: list[Tensor]
    """Clean and noisy sum of each parameter, `[2, P]`, in the order of `model.parameters()`."""
    products: Tensor
    """Products of the sums over all parameters, `[2, 2]`."""
    square: Tensor
    """`||g_i||²` of each sample over all parameters, `[B]`."""


def group(gradients: Iterable[Tensor], noisy: Tensor, scale: float = 1.0) -> Groups:
    """Add up per-sample gradients.

    Args:
        gradients: Those of each parameter, `[B, ...]`.
        noisy: Which samples are noisy, `[B]`.
        scale: What the gradients are multiplied by, so that they are those of the samples' losses.
    """
    sums: list[Tensor] = []
    products = torch.zeros(2, 2, device=noisy.device)
    square = torch.zeros(len(noisy), device=noisy.device)
    for gradient in gradients:
        rows = gradient.flatten(1)
        weight = torch.stack([~noisy, noisy]).to(rows.dtype)
        sums.append(scale * (weight @ rows))
        products = products + sums[-1] @ sums[-1].T
        square = square + (scale * torch.linalg.vector_norm(rows, dim=1)).square()
    return Groups(sums, products, square)


def tags(groups: Groups, noisy: Tensor) -> dict[str, float]:
    """The monitor's tags of these groups, by their definitions."""
    count = len(noisy)
    own = torch.stack([groups.square[~noisy].sum(), groups.square[noisy].sum()]).diag()
    versions = {
        "": groups.products / count**2,
        "_population": (groups.products - own) / (count * (count - 1)),
    }
    named = {}
    for suffix, products in versions.items():
        (clean, cross), (_, wrong) = products.tolist()
        named[f"dominance_ratio{suffix}"] = _root(clean) / _root(wrong)
        named[f"group_cosine{suffix}"] = cross / (_root(clean) * _root(wrong))
        whole = clean + 2 * cross + wrong
        named[f"noise_share{suffix}"] = (wrong + cross) / whole if whole > 0 else math.nan
    return named


def _root(value: float) -> float:
    return math.sqrt(value) if value > 0 else math.nan


# Plain autograd


def oracle(model: nn.Module, x: Tensor, y: Tensor) -> Groups:
    """The groups from one backward pass, or one product with a Jacobian, per sample."""
    mixes_samples = any(isinstance(module, _BatchNorm) for module in model.modules())
    gradients = _rows_of_batch_gradient if mixes_samples else _gradients_one_by_one
    return group(gradients(model, x, y), is_noisy(y))


def _gradients_one_by_one(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss_of(model, x[[i]], y[[i]]), parameters) for i in range(len(x))]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _rows_of_batch_gradient(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """What the row of each sample adds to the gradient of each parameter.

    With batch normalisation the loss of a sample depends on all others, so that it has no gradient
    of its own. The row is that of the layer's input and of the gradient of its output.
    """
    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    inputs: dict[nn.Module, Tensor] = {}
    arrived: dict[nn.Module, Tensor] = {}

    def passed(layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        inputs[layer] = args[0].detach().clone()
        output.register_hook(lambda gradient: arrived.update({layer: gradient}))

    handles = [layer.register_forward_hook(passed) for layer in layers]
    cross_entropy(model(x), y, reduction="sum").backward()
    for handle in handles:
        handle.remove()
    rows = {}
    for layer in layers:
        for parameter, row in _rows_of_layer(layer, inputs[layer], arrived[layer]).items():
            rows[parameter] = row
    return [rows[parameter] for parameter in model.parameters()]


def _rows_of_layer(layer: nn.Module, x: Tensor, arrived: Tensor) -> dict[nn.Parameter, Tensor]:
    parameters = list(layer.parameters(recurse=False))
    if isinstance(layer, _BatchNorm):
        normed = batch_norm(x, None, None, training=True, eps=layer.eps)
        return {
            layer.weight: (normed * arrived).flatten(2).sum(2),
            layer.bias: arrived.flatten(2).sum(2),
        }
    rows = [torch.autograd.grad(layer(x[[i]]), parameters, arrived[[i]]) for i in range(len(x))]
    columns = map(torch.stack, zip(*rows, strict=True))
    return dict(zip(parameters, columns, strict=True))
