"""What a convolution brings to its weight."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..factors import GRAM_WORTH, MOST_HELD

_SUM_WORTH = 8
"""How many multiplications an addition of strided numbers is worth."""


@dataclass(frozen=True)
class Convolution:
    """A convolution in any number of dimensions, transposed or not."""

    samples: int
    inputs: Tensor
    """`[B·k, channels, *space]`: k images of each sample, padded already unless by zeros."""
    gradient: Tensor
    """`[B·k, output channels, *space]`."""
    weight: Tensor
    """The weight, for its shape."""
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None
    """None for a convolution that is not transposed."""

    @property
    def dtype(self) -> torch.dtype:
        return self.gradient.dtype

    @property
    def shape(self) -> Sequence[int]:
        return self.weight.shape

    @cached_property
    def has_cheap_square(self) -> bool:
        is_plain = self.groups == 1 and self.output_padding is None
        if not is_plain or len(self.inputs) != self.samples:
            return False
        outputs, channels, *size = self.weight.shape
        positions, seen = self.gradient[0, 0].numel(), self._padded_size().numel()
        sums = _SUM_WORTH * positions**2 * torch.Size(size).numel()
        work = positions**2 * outputs + seen**2 * channels + sums
        return work <= GRAM_WORTH * self.weight.numel()

    def weighted(self, weight: Tensor) -> Tensor:
        images = weight.repeat_interleave(len(self.inputs) // self.samples)
        factor = images.view(-1, *itertools.repeat(1, self.gradient.ndim - 1))
        return self._backward(self.gradient * factor, self.inputs, 1)

    def square(self) -> Tensor:
        size = max(1, MOST_HELD // self._padded_size().numel() ** 2)
        parts = []
        for inputs, gradient in zip(
            self.inputs.split(size), self.gradient.flatten(2).split(size), strict=True
        ):
            products = gradient.mT @ gradient
            parts.append((products * self._products_of_patches(inputs)).sum((1, 2)))
        return torch.cat(parts)

    def rows(self, part: slice) -> Tensor:
        """One convolution with as many groups as samples, so that each sample has its own sum."""
        gradient = self._side_by_side(self.gradient, part)
        inputs = self._side_by_side(self.inputs, part)
        count = len(range(self.samples)[part])
        return self._backward(gradient, inputs, count).view(count, *self.shape)

    def _side_by_side(self, images: Tensor, part: slice) -> Tensor:
        """Samples as channels, `[k, b·channels, *space]`."""
        own: Tensor = images.unflatten(0, (self.samples, -1))[part]
        return own.transpose(0, 1).flatten(1, 2)

    def _backward(self, gradient: Tensor, inputs: Tensor, count: int) -> Tensor:
        weight = self.weight.expand(count, *self.shape).flatten(0, 1)
        _, found, _ = torch.ops.aten.convolution_backward(
            gradient,
            inputs,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding is not None,
            self.output_padding or [0] * len(self.stride),
            self.groups * count,
            [False, True, False],
        )
        return found  # type: ignore[no-any-return]

    def _padded_size(self) -> torch.Size:
        pairs = zip(self.inputs.shape[2:], self.padding, strict=True)
        return torch.Size(size + 2 * padding for size, padding in pairs)

    def _products_of_patches(self, inputs: Tensor) -> Tensor:
        """Products of what two output positions see, `[b, T, T]`.

        They are sums, over the places in the kernel, of products of two input positions; so no
        patch need be laid out.
        """
        padded = F.pad(inputs, [end for width in reversed(self.padding) for end in (width, width)])
        size, positions = padded.shape[2:], self.gradient.shape[2:]
        flat = padded.flatten(2)
        products = (flat.mT @ flat).view(-1, *size, *size)
        total: Tensor | None = None
        for place in itertools.product(*map(range, self.weight.shape[2:])):
            axes = zip(place, self.dilation, self.stride, positions, strict=True)
            window = [slice(p * d, p * d + s * (n - 1) + 1, s) for p, d, s, n in axes]
            part = products[(slice(None), *window, *window)]
            total = part.clone() if total is None else total.add_(part)
        assert total is not None
        return total.reshape(-1, positions.numel(), positions.numel())
