"""The first samples of a loader, always the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from .. import private
from .batches import labels_in, mapped

_MOST_SAMPLES = 2000

_MOST_BYTES = 2**28
"""Of batches that are kept."""


class UnusableError(Exception):
    """Why samples can't be used, and what to do."""


class LabelledBatch(NamedTuple):
    """A batch as it comes from the loader."""

    content: Any
    labels: Tensor
    wanted: int
    """How many of its samples are wanted, the first ones."""


class FirstSamples:
    """Iterates over batches up to the 2,000th sample.

    They are kept from the first time on: workers would start anew each time. Where they take more
    than 256 MiB they are drawn again each time; they are the same ones then if random numbers are.
    The loader's own iterator is left alone, and so is what accelerate puts around a loader, which
    has a part in when gradients are exchanged.

    Args:
        loader: Any iterable of batches.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._kept: list[LabelledBatch] | None = None

    def __iter__(self) -> Iterator[LabelledBatch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[LabelledBatch] = []
        left, room = _MOST_SAMPLES, _MOST_BYTES
        for batch in _unused(getattr(self.loader, "base_dataloader", self.loader)):
            one = _labelled(batch, left)
            room -= _bytes(one.content)
            kept = [*kept, one] if room >= 0 else []
            yield one
            left -= one.wanted
            if left == 0:
                break
        if left == _MOST_SAMPLES:
            raise UnusableError("it gave no samples; pass a loader that is not empty")
        self._kept = kept if room >= 0 else None


def _unused(loader: Any) -> Any:
    """A loader whose workers no one else waits for."""
    return private.with_own_iterator(loader) if isinstance(loader, DataLoader) else loader


def _labelled(batch: Any, most: int) -> LabelledBatch:
    # A loader may use the memory of a batch for the next one.
    content = mapped(batch, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
    labels = labels_in(content)
    if labels is None or labels.ndim == 0:
        raise UnusableError(
            f"no labels were found in a batch of type {type(batch).__name__}; its batches must be "
            '(inputs, labels), or dicts with a tensor "labels"'
        )
    return LabelledBatch(content, labels, min(len(labels), most))


def _bytes(content: Any) -> int:
    sizes: list[int] = []
    mapped(content, lambda leaf: sizes.append(leaf.nbytes) if isinstance(leaf, Tensor) else None)
    return sum(sizes)
