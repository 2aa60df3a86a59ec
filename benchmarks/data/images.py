"""The image sets of the benchmarks, read from a folder; nothing is ever downloaded."""

from __future__ import annotations

import argparse
import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

VARIABLE = "PRIORITYMONITOR_DATA"
_PARTS = {"train": "train", "test": "t10k"}


def add_data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get(VARIABLE),
        help="folder with fashion-mnist/ and mnist/, gzipped idx files as their authors publish "
        "them, cifar10n/cifar10n-dev.npz and weak-text/*.json.gz, as far as they are used "
        f"(default: ${VARIABLE})",
    )


def load_images(folder: Path | None, name: str, part: str) -> tuple[Tensor, Tensor]:
    """Images, flattened and scaled to [0, 1], float32 `[n, 784]`, and their labels, int64 `[n]`.

    Args:
        folder: From the option `--data`.
        name: `"mnist"` or `"fashion-mnist"`.
        part: `"train"` or `"test"`.

    Raises:
        SystemExit: A file is missing.
    """
    pixels = _read(folder, name, f"{_PARTS[part]}-images-idx3-ubyte.gz", header=16)
    labels = _read(folder, name, f"{_PARTS[part]}-labels-idx1-ubyte.gz", header=8)
    return pixels.reshape(len(labels), -1).float() / 255, labels.long()


def digits() -> tuple[Tensor, Tensor]:
    """The digits of scikit-learn, in [0, 1], float32 `[1797, 64]`, and their labels, `[1797]`."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels).long()


@dataclass(frozen=True)
class HumanLabels:
    """Images of CIFAR-10 with the labels that people gave them (Wei et al., ICLR 2022)."""

    images: Tensor
    """uint8 `[n, 32, 32, 3]`."""
    labels: dict[str, Tensor]
    """Name of the set of labels, `"clean"` for the true ones -> int64 `[n]`."""
    test_images: Tensor
    test_labels: Tensor


def human_labels(folder: Path | None) -> HumanLabels:
    """The slice of CIFAR-10N.

    Raises:
        SystemExit: The file is missing.
    """
    found = np.load(existing(folder, "cifar10n/cifar10n-dev.npz"))
    labels = {name: torch.from_numpy(found[name]).long() for name in ("clean", "worse", "random2")}
    images, test_images = (torch.from_numpy(found[name]) for name in ("images", "test_images"))
    return HumanLabels(images, labels, test_images, torch.from_numpy(found["test_labels"]).long())


def pairs_of_digits(images: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Two digits side by side, a hundred classes: float32 `[count, 28 · 56]`, int64 `[count]`."""
    left, right = torch.arange(count), torch.arange(count, 2 * count)
    both = torch.cat((images[left].view(-1, 28, 28), images[right].view(-1, 28, 28)), 2)
    return both.flatten(1), 10 * labels[left] + labels[right]


def only_classes(images: Tensor, labels: Tensor, *classes: int) -> tuple[Tensor, Tensor]:
    """The samples of some classes, which become 0, 1 and so on."""
    is_one = labels.unsqueeze(1) == torch.tensor(classes)
    chosen = is_one.any(1)
    return images[chosen], is_one[chosen].int().argmax(1)


def existing(folder: Path | None, file: str) -> Path:
    """Where a file of the data is.

    Raises:
        SystemExit: It is nowhere.
    """
    if folder is None:
        raise SystemExit(f"no data: name the folder that holds {file} by --data or ${VARIABLE}")
    path = Path(folder) / file
    if not path.is_file():
        raise SystemExit(f"{path} is missing: --data or ${VARIABLE} must name a folder with {file}")
    return path


def _read(folder: Path | None, name: str, file: str, header: int) -> Tensor:
    with gzip.open(existing(folder, f"{name}/{file}")) as stream:
        return torch.from_numpy(np.frombuffer(stream.read(), np.uint8, offset=header).copy())
