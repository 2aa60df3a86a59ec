"""The image sets of the benchmarks, read from a folder; nothing is ever downloaded."""

from __future__ import annotations

import argparse
import gzip
import os
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
        f"them (default: ${VARIABLE})",
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


def only_classes(images: Tensor, labels: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """The samples of two classes, which become 0 and 1."""
    chosen = (labels == first) | (labels == second)
    return images[chosen], (labels[chosen] == second).long()


def _read(folder: Path | None, name: str, file: str, header: int) -> Tensor:
    if folder is None:
        raise SystemExit(f"no data: name the folder that holds {name}/ by --data or ${VARIABLE}")
    path = Path(folder) / name / file
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing: --data or ${VARIABLE} must name a folder with {name}/{file}"
        )
    with gzip.open(path) as stream:
        return torch.from_numpy(np.frombuffer(stream.read(), np.uint8, offset=header).copy())
