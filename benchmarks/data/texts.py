"""Short texts labelled by rules over keywords, read from a folder."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor

from benchmarks.data.images import existing

_MOST_WORDS = 2000


@dataclass(frozen=True)
class Texts:
    """Texts with the labels that the rules gave and the true ones."""

    texts: list[str]
    given: Tensor
    """int64 `[n]`."""
    true: Tensor
    test_texts: list[str]
    test_labels: Tensor


def load_texts(folder: Path | None, name: str) -> Texts:
    """A set of texts.

    Args:
        folder: From the option `--data`.
        name: `"youtube"` or `"semeval"`.

    Raises:
        SystemExit: The file is missing.
    """
    with gzip.open(existing(folder, f"weak-text/{name}.json.gz"), "rt") as stream:
        found = json.load(stream)
    train, test = found["train"], found["test"]
    return Texts(
        [one["text"] for one in train],
        *(torch.tensor([one[key] for one in train]) for key in ("given", "true")),
        [one["text"] for one in test],
        torch.tensor([one["true"] for one in test]),
    )


def bags_of_words(texts: list[str], test_texts: list[str]) -> tuple[Tensor, Tensor]:
    """Which of the 2,000 most frequent words are in each text, float32 `[n, words]`."""
    words = CountVectorizer(binary=True, max_features=_MOST_WORDS, min_df=2).fit(texts)
    bags = (words.transform(some).toarray() for some in (texts, test_texts))
    first, second = (torch.from_numpy(bag).float() for bag in bags)
    return first, second
