"""The networks of the runs; the last linear layer of each is the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models import mlp
from benchmarks.stopping.runs.settings import Setting

SHAPES = {"cifar10": (3, 32, 32), "digit-pairs": (1, 28, 56)}
"""Of images, where it is not (1, 28, 28)."""

LITE0_PIXELS = 64


def make_model(setting: Setting, width: int, classes: int) -> nn.Module:
    """The network of a setting, with fresh weights or pretrained ones.

    Args:
        setting: Names it.
        width: Of an input `[n, width]`.
        classes: How many there are.
    """
    shape = SHAPES.get(setting.data, (1, 28, 28))
    if setting.model == "lite0":
        from benchmarks.data.pretrained import efficientnet_lite0

        pixels = nn.Unflatten(1, (3, LITE0_PIXELS, LITE0_PIXELS))
        return nn.Sequential(pixels, efficientnet_lite0(classes))
    if setting.model == "minilm":
        from benchmarks.data.pretrained import minilm

        return minilm(classes)
    if setting.model == "deep":
        return mlp(width, *[32] * 8, classes)
    if setting.model == "columns":
        return Columns(width, classes)
    if setting.model == "ghost":
        return nn.Sequential(
            *(nn.Linear(width, 256), GhostBatchNorm(256), nn.ReLU()),
            *(nn.Linear(256, 128), GhostBatchNorm(128), nn.ReLU()),
            nn.Linear(128, classes),
        )
    drop = [nn.Dropout(0.3)] if setting.extra == "regularised" else []
    if setting.model == "mlp":
        return nn.Sequential(
            *(nn.Linear(width, 512), nn.ReLU(), *drop),
            *(nn.Linear(512, 256), nn.ReLU(), *drop),
            nn.Linear(256, classes),
        )
    if setting.data == "cifar10":
        return _three_convolutions(setting, classes)
    return nn.Sequential(
        nn.Unflatten(1, shape),
        *(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2 * shape[1] * shape[2], 64), nn.ReLU(), *drop),
        nn.Linear(64, classes),
    )


def _three_convolutions(setting: Setting, classes: int) -> nn.Sequential:
    """`"cnn"` keeps where a feature was, `"cnn-mean"` and `"cnn-plain"` don't."""
    has_norm = setting.model != "cnn-plain"
    layers: list[nn.Module] = [nn.Unflatten(1, SHAPES["cifar10"])]
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers.append(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=not has_norm))
        layers += [nn.BatchNorm2d(outputs)] if has_norm else []
        layers.append(nn.ReLU())
    if setting.model == "cnn":
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, classes))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))


def head_of(model: nn.Module) -> nn.Linear:
    """The last linear layer."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


class Columns(nn.Module):
    """Attention over the columns of a table."""

    def __init__(self, columns: int, classes: int, size: int = 32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(columns, size) / size**0.5)
        self.place = nn.Parameter(torch.randn(columns, size) / size**0.5)
        layer = nn.TransformerEncoderLayer(size, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(size, classes)

    def forward(self, table: Tensor) -> Tensor:
        columns = table.unsqueeze(2) * self.scale + self.place
        return self.head(self.layers(columns).mean(1))


class GhostBatchNorm(nn.BatchNorm1d):
    """BatchNorm whose statistics are those of 32 samples (Hoffer et al., NeurIPS 2017)."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        return torch.cat([super(GhostBatchNorm, self).forward(some) for some in _of_32(features)])


def _of_32(features: Tensor) -> tuple[Tensor, ...]:
    return features.tensor_split(max(len(features) // 32, 1))
