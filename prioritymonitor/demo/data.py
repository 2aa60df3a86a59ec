"""Image sets with some labels made wrong, and clean test labels for the report."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ..errors import ArgumentValueError
from ..samples.known_labels import corrupt_labels

_DIGITS_FOR_TRAINING = 1_300
_FASHION_FOR_TRAINING = 10_000
_IMAGES, _LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
_IMAGE_HEADER, _LABEL_HEADER = 16, 8
"""Bytes before the data in an idx file."""


@dataclass(frozen=True)
class Problem:
    """Training images with given labels, some of them wrong, and a clean test set."""

    name: str
    batch_size: int
    images: Tensor
    """float32 in [0, 1], `[n, pixels]`."""
    given_labels: Tensor
    """What the network is trained on, int64 `[n]`."""
    true_labels: Tensor
    """What only the report may look at, int64 `[n]`."""
    test_images: Tensor
    test_labels: Tensor

    @property
    def is_wrong(self) -> Tensor:
        """Which given labels are wrong, bool `[n]`."""
        return self.given_labels != self.true_labels


def digits(noise: float, seed: int) -> Problem:
    """The handwritten digits that come with scikit-learn: 1,300 to train on, 497 to test.

    Args:
        noise: Share of the training labels to make wrong, in [0, 1].
        seed: Decides the split and the wrong labels.
    """
    source = load_digits()
    images = torch.tensor(source.data / 16, dtype=torch.float32)
    labels = torch.tensor(source.target, dtype=torch.int64)
    train, test = train_test_split(
        range(len(labels)),
        train_size=_DIGITS_FOR_TRAINING,
        stratify=source.target,
        random_state=seed,
    )
    given = _with_wrong(labels[train], noise, seed)
    return Problem("digits", 32, images[train], given, labels[train], images[test], labels[test])


def fashion_mnist(folder: Path, noise: float, seed: int) -> Problem:
    """Fashion-MNIST: 10,000 random training images and the whole test set.

    Args:
        folder: Holds the four gzipped idx files under their usual names.
        noise: Share of the training labels to make wrong, in [0, 1].
        seed: Decides the 10,000 images and the wrong labels.

    Raises:
        ArgumentValueError: A file is missing or cannot be read.
    """
    images, labels = _read_pair(folder, "train")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(labels), generator=generator)[:_FASHION_FOR_TRAINING]
    images, labels = images[drawn], labels[drawn]
    given = _with_wrong(labels, noise, seed)
    return Problem("Fashion-MNIST", 64, images, given, labels, *_read_pair(folder, "t10k"))


def _with_wrong(labels: Tensor, noise: float, seed: int) -> Tensor:
    return corrupt_labels(labels, noise, generator=torch.Generator().manual_seed(seed))


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    labels = torch.tensor(_read(folder / f"{part}-{_LABELS}", _LABEL_HEADER), dtype=torch.int64)
    pixels = torch.tensor(_read(folder / f"{part}-{_IMAGES}", _IMAGE_HEADER), dtype=torch.float32)
    return pixels.reshape(len(labels), -1) / 255, labels


def _read(path: Path, header: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    if not path.is_file():
        raise ArgumentValueError(
            f"got {path.parent}, which holds no {path.name}; name the folder of the four gzipped "
            "files of Fashion-MNIST, as downloaded"
        )
    try:
        return np.frombuffer(gzip.open(path).read(), np.uint8)[header:]
    except (OSError, EOFError) as error:
        raise ArgumentValueError(f"got {path}, which is no complete gzip file: {error}") from error
