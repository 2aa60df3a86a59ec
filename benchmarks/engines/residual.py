"""ResNet-18 with the layers of torchvision's, but for a stem made for 32×32 images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Normalisation = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


class ResNet18(nn.Module):
    """A 3×3 stem without pooling, four stages of two blocks, average pooling and a linear head.

    Args:
        classes: Number of classes.
        norm: Makes the normalisation of so many channels.
        inplace: ReLU and the sums with the shortcuts overwrite their input, as in torchvision.
    """

    def __init__(
        self, classes: int = 10, norm: Normalisation = nn.BatchNorm2d, inplace: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = norm(64)
        self.relu = nn.ReLU(inplace)
        self.layer1 = _stage(64, 64, 1, norm, inplace)
        self.layer2 = _stage(64, 128, 2, norm, inplace)
        self.layer3 = _stage(128, 256, 2, norm, inplace)
        self.layer4 = _stage(256, 512, 2, norm, inplace)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(
    inputs: int, outputs: int, stride: int, norm: Normalisation, inplace: bool
) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(inputs, outputs, stride, norm, inplace),
        BasicBlock(outputs, outputs, 1, norm, inplace),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, a 1×1 convolution where the shape changes."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, norm: Normalisation, inplace: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = norm(outputs)
        self.relu = nn.ReLU(inplace)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        if self.relu.inplace:
            out += identity
        else:
            out = out + identity
        return self.relu(out)
