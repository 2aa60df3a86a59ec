"""Small local data with wrong labels, as files of the kinds that public scripts read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import random_split

from benchmarks.data.images import load_images
from benchmarks.data.pretrained import save_small_minilm
from benchmarks.data.texts import load_texts
from prioritymonitor import corrupt_labels

NOISE = 0.3
_IMAGES, _TEST_IMAGES = 1_500, 300
_TEXTS, _TEST_TEXTS = 640, 100
_WORDS, _CHARACTERS = 20, 120
"""Of a text, what is kept."""
_ENCODER_LAYERS = 2
_SPLIT = (1_200, 300)
"""For scripts that hold a part of the images back by `random_split`."""


@dataclass(frozen=True)
class Labels:
    """What the training samples of a script are labelled, in the order of its data set."""

    given: Tensor
    """int64 `[n]`, 30 % of them wrong, each wrong class as likely."""
    true: Tensor


def write_files(folder: Path, source: Path | None) -> dict[str, Labels]:
    """Write all files and say how their training samples are labelled.

    Args:
        folder: Where to; `mnist/` is what torchvision takes as the root of MNIST, `texts/` has
            pairs of sentences as JSON lines and sentences as CSV, `encoder/` a model for
            transformers.
        source: From the option `--data`.
    """
    images = _write_mnist(folder / "mnist" / "MNIST" / "raw", source)
    texts = _write_texts(folder, source)
    # As `random_split(dataset, [...], torch.Generator().manual_seed(42))` in a script.
    generator = torch.Generator().manual_seed(42)
    part, _ = random_split(range(_IMAGES), _SPLIT, generator=generator)  # type: ignore[arg-type]
    places = torch.tensor(part.indices)
    return {
        "images": images,
        "part of the images": Labels(images.given[places], images.true[places]),
        "texts": texts,
    }


def _with_noise(true: Tensor) -> Labels:
    return Labels(corrupt_labels(true, NOISE, generator=torch.Generator().manual_seed(0)), true)


def _write_mnist(folder: Path, source: Path | None) -> Labels:
    folder.mkdir(parents=True)
    labels = {}
    for part, prefix, count in (("train", "train", _IMAGES), ("test", "t10k", _TEST_IMAGES)):
        images, true = load_images(source, "mnist", part)
        labels[part] = _with_noise(true[:count])
        # The test labels stay clean.
        kept = labels[part].given if part == "train" else labels[part].true
        pixels = (255 * images[:count]).round().byte().numpy().reshape(count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(_idx(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(_idx(kept.byte().numpy()))
    return labels["train"]


def _idx(array: np.ndarray) -> bytes:
    """The format that MNIST was published in, of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def _write_texts(folder: Path, source: Path | None) -> Labels:
    """The texts, and an encoder for them."""
    (folder / "texts").mkdir(parents=True)
    found = load_texts(source, "youtube")
    labels = _with_noise(found.true[:_TEXTS])
    train, test = map(_shortened, (found.texts[:_TEXTS], found.test_texts[:_TEST_TEXTS]))
    parts = {"train": (train, labels.given), "validation": (test, found.test_labels[:_TEST_TEXTS])}
    for name, (texts, given) in parts.items():
        rows = [*zip(texts, given.tolist(), strict=True)]
        _write_pairs(folder / "texts" / f"{name}-pairs.json", rows)
        lines = [{"sentence": text, "label": label} for text, label in rows]
        _write_lines(folder / "texts" / f"{name}.json", lines)
    halves = [half for text in train + test for half in _halves(text)]
    save_small_minilm(folder / "encoder", _ENCODER_LAYERS, train + test + halves)
    return labels


def _shortened(texts: list[str]) -> list[str]:
    return [" ".join(text.split()[:_WORDS])[:_CHARACTERS] for text in texts]


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    half = (len(words) + 1) // 2
    return " ".join(words[:half]), " ".join(words[half:])


def _write_pairs(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    """Each text cut in two, with the columns of the task MRPC."""
    names = ("sentence1", "sentence2", "label", "idx")
    _write_lines(
        path,
        [
            dict(zip(names, (*_halves(text), label, number), strict=True))
            for number, (text, label) in enumerate(rows)
        ],
    )


def _write_lines(path: Path, rows: Sequence[dict[str, str | int]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
