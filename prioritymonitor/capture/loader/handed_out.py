"""What a train loader handed out: a batch of a pass, and the pieces a loop cuts it into."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Turn:
    """One pass over the loader."""

    def __init__(self) -> None:
        self.drawn: deque[Any] = deque()
        """Indices that were drawn and whose batch was not handed out yet."""
        self.handed_out = 0
        """Number of batches handed out."""


@dataclass(eq=False)
class HandedOut:
    """A batch that the loader gave to the training loop."""

    turn: Turn
    index: Tensor | None
    """Positions in the data set, int64 `[B]` on the CPU."""
    labels: Tensor | None
    """What looks like the labels of the batch: its second element, or its `labels` entry."""
    seen: int = 0
    """How many of its samples went through the model, for a loop that cuts a batch in pieces."""
    used: int = 0
    """How many of its samples were trained on already."""

    @property
    def size(self) -> int | None:
        """Number of samples; None if it can't be told."""
        known = self.index if self.index is not None else self.labels
        return len(known) if known is not None else None

    def is_evaluated_again(self, count: int, in_step: list[HandedOut] | None) -> bool:
        """True for a closure that evaluates the same samples once more, as LBFGS does.

        Args:
            count: How many samples are evaluated.
            in_step: The batches that were evaluated inside the optimizer step that runs; None
                outside of one.
        """
        if in_step is None or self.size is None or count > self.size:
            return False
        if self not in in_step:
            in_step.append(self)
            return False
        return self.used >= self.size

    def take(self, count: int, seen_before: int) -> tuple[Piece, ...]:
        """The samples of a pass that was trained on: one piece, or two of which labels tell.

        Pieces of a batch come in the order in which they went through the model, or in that of
        their backward passes if other passes, as for a metric, came in between.

        Args:
            count: How many samples.
            seen_before: How many samples had gone through the model before these.
        """
        pieces = {
            piece.start: piece
            for start in (self.used, seen_before)
            if (piece := self.piece(count, start)) is not None
        }
        self.used = min(self.used + count, self.size or 0)
        return tuple(pieces.values())

    def piece(self, count: int, start: int) -> Piece | None:
        """The `count` samples from `start` on, or all of them; None if there are not so many."""
        start = 0 if count == self.size else start
        stop = start + count
        if self.size is None or stop > self.size:
            return None
        return Piece(
            start,
            count == self.size,
            None if self.index is None else self.index[start:stop],
            None if self.labels is None or len(self.labels) < stop else self.labels[start:stop],
        )


@dataclass(frozen=True)
class Piece:
    """Consecutive samples of a batch."""

    start: int
    is_whole: bool
    """True for all samples of the batch."""
    index: Tensor | None
    labels: Tensor | None
