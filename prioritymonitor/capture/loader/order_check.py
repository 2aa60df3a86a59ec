"""Whether batches come in the order in which their samples were drawn: a collator may shuffle."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .own_labels import own_labels

_MOST_BATCHES = 16
"""Batches that are looked at."""

_ENOUGH = 2
"""Batches in another order, and none in order, after which it is sure."""


class OrderCheck:
    """Compares the labels of the first batches with those that the data set tells of itself.

    A data set may tell other labels than it gives, as one does that adds noise to them. So it is
    only concluded where a batch has exactly the data set's labels, in another order.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._own: Tensor | None = None
        self._left = _MOST_BATCHES
        self._shuffled = 0

    def is_shuffled(self, index: Tensor | None, labels: Tensor | None) -> bool:
        """Whether it is sure by now, with one more batch.

        Args:
            index: Places of its samples in the data set, `[B]`; None where they are not known.
            labels: As the loader gave them.
        """
        if self._left <= 0 or index is None or labels is None or labels.shape != index.shape:
            return False
        if self._own is None:
            self._own = own_labels(self._dataset)
        if self._own is None:
            self._left = 0
            return False
        self._left -= 1
        own, labels = self._own[index], labels.cpu()
        if bool((own == labels).all()):
            if len(own.unique()) > 1:
                self._left = 0  # in order
        elif bool((own.sort().values == labels.sort().values).all()):
            self._shuffled += 1
        if self._left == 0:
            self._own = None
        return self._shuffled >= _ENOUGH
