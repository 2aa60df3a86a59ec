"""The networks and optimizers of the benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import nn
from torch.optim import SGD, Adam, Optimizer


def mlp(*widths: int) -> nn.Sequential:
    """A network of linear layers with ReLU between them; `mlp(784, 10)` is softmax regression."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_cnn(batch_norm: bool = True, channels: int = 3) -> nn.Sequential:
    """Three convolutions, for images of some 32×32 pixels and ten classes."""
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise((channels, 32, 64, 128)):
        blocks.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            blocks.append(nn.BatchNorm2d(outputs))
        blocks += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def make_optimizer(name: str, parameters: Iterable[nn.Parameter]) -> Optimizer:
    if name == "adam":
        return Adam(parameters, lr=1e-3)
    return SGD(parameters, lr=0.05, momentum=0.9)
