"""What a train loader handed out: a batch of a traversal, and the pieces a loop cuts it into."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Traversal:
    """One way through the loader: from `iter(loader)` to where it runs out or is broken off.

    Args:
        most_ahead: How many batches may be drawn before the one of the first is handed out.
    """

    def __init__(self, most_ahead: int = 0) -> None:
        self.drawn: deque[Any] = deque(maxlen=most_ahead + 1)
        """What the sampler gave for the latest batches, the latest last."""
        self.handed_out = 0
        """Number of batches handed out."""
        self.is_over = False
        """True once the epoch that it made has ended."""
        self.gave_way = False
        """True if training went back to an earlier traversal meanwhile."""

    def drawn_for_batch(self, ahead: int | None) -> Any:
        """What the sampler gave for a batch; None if it is not known.

        Args:
            ahead: How many batches were drawn after it; None if that is not known.
        """
        if ahead is None or ahead >= len(self.drawn):
            return None
        return self.drawn[-1 - ahead]


@dataclass(eq=False)
class HandedOut:
    """A batch that the loader gave to the training loop."""

    traversal: Traversal
    index: Tensor | None
    """Places in the data set, int64 `[B]` on the CPU; −1 for a sample that is not followed."""
    labels: Tensor | None
    """What looks like the labels of the batch: its second element, or its `labels` entry."""
    seen: int = 0
    """How many of its samples went through the model, for a loop that cuts a batch in pieces."""
    used: int = 0
    """How many of its samples were trained on already."""
    came_late: bool = False
    """True if the epoch of its traversal had ended when it was handed out."""

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
