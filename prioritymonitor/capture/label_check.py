"""Whether the labels that the loss sees are those that the train loader gave, counted by epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from .traced import COUNTS, Traced

_MOST_OTHERS = 0.01
"""Share of samples in batches of other labels from which on their identity is doubted."""

_MOST_CLASSES = 1024
"""Up to so many classes it is counted which label was made of which."""

_MOST_BY_CHANCE = 0.9
"""A map that gives more of the samples one label tells nothing."""


class LabelCheck:
    """Counts on the device, and reads once per epoch."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._pairs: Tensor | None = None
        self._agreeing = 0
        self._has_told = False

    def add(self, traced: Traced, classes: int) -> None:
        """Take passes into account."""
        self._agreeing += traced.agreeing
        compared = traced.compared
        if compared is None:
            return
        if self._counts is None:
            self._counts = torch.zeros_like(compared.counts)
        self._counts += compared.counts
        if classes > _MOST_CLASSES:
            return
        if self._pairs is None:
            shape = (_MOST_CLASSES, classes)
            self._pairs = torch.zeros(shape, dtype=torch.int32, device=compared.given.device)
        given, shown = compared.given.flatten(), compared.shown.flatten()
        is_one = ((given >= 0) & (given < _MOST_CLASSES)).int()
        place = given.clamp(0, _MOST_CLASSES - 1) * classes + shown
        self._pairs.view(-1).index_add_(0, place, is_one)

    def end_epoch(self) -> tuple[str | None, str | None]:
        """Close an epoch.

        Returns:
            Why samples have no identity, None if they have; and what else is to be told.
        """
        counts, pairs, agreeing = self._counts, self._pairs, self._agreeing
        self._counts, self._pairs, self._agreeing = None, None, 0
        if counts is None:
            return None, None
        of = dict(zip(COUNTS, counts.tolist(), strict=True))
        of["compared"] += agreeing
        most = _MOST_OTHERS * (of["compared"] + of["nameless"])
        if of["nameless"] > most:
            return (
                "the labels of its batches are mixed, and which is a sample's own is not known; "
                "mix them in the loop, or give the data set an attribute targets, with the label "
                "of each sample"
            ), None
        # Mixed labels whose own part is next to nothing look like labels in another order.
        wrong = of["unordered"] + (0 if of["mixed"] else of["permuted"])
        if wrong > most and not (of["permuted"] <= most and _is_map(pairs)):
            return (
                f"{wrong} of {of['compared']} showed other labels than train_loader gave; "
                "something between train_loader and the model changes their order or their labels"
            ), None
        if wrong > most or of["relabelled"] <= most or self._has_told:
            return None, None
        self._has_told = True
        share = of["relabelled"] / of["compared"]
        return None, (
            f"{share:.0%} of the samples showed other labels than train_loader gave; they are "
            "judged by the labels that the loss gets"
        )


def _is_map(pairs: Tensor | None) -> bool:
    """Whether the labels that are shown are made of the given ones, class by class."""
    if pairs is None:
        return False
    total = int(pairs.sum())
    is_told = total > 0 and int(pairs.amax(1).sum()) >= (1 - _MOST_OTHERS) * total
    return is_told and int(pairs.sum(0).max()) <= _MOST_BY_CHANCE * total
