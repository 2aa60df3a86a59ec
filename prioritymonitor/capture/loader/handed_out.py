"""What a train loader handed out: a batch of a traversal, and the pieces a loop cuts it into."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

_LEAST_AGREEING = 0.9
"""Share of labels that must be the loader's: smoothing hides a few."""


class Traversal:
    """One way through a loader: from `iter(loader)` to where it runs out or is broken off.

    Args:
        most_ahead: How many batches may be drawn before the one of the first is handed out.
        batches: How many there are; None if that is not known.
    """

    def __init__(self, most_ahead: int = 0, batches: int | None = None) -> None:
        self.batches = batches
        self.drawn: deque[Any] = deque(maxlen=most_ahead + 1)
        """What the sampler gave for the latest batches, the latest last."""
        self.handed_out = 0
        """Number of batches handed out."""
        self.has_run_out = False
        """True once the loader has no more batches."""
        self.was_used = False
        """True once one of its batches was trained on."""
        self.is_elsewhere = False
        """True if another loader over the same data was traversed."""
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

    @property
    def has_handed_out_all(self) -> bool:
        """Whether no batch is to come, also where nobody has asked for one past the last."""
        return self.has_run_out or (self.batches is not None and self.handed_out >= self.batches)


@dataclass(eq=False)
class HandedOut:
    """A batch that the loader gave to the training loop, or to what runs ahead of it."""

    traversal: Traversal
    index: Tensor | None
    """Places in the data set, int64 `[B]` on the CPU; −1 for a sample that is not followed."""
    labels: Tensor | None
    """What looks like the labels of the batch: its second element, or its `labels` entry."""
    thread: int = field(default_factory=threading.get_ident)
    """Who got it."""
    number: int = 0
    """Its place in the traversal, from 1."""
    seen: int = 0
    """How many of its samples went through the model, for a loop that cuts a batch in pieces."""
    used: int = 0
    """How many of its samples were trained on already."""
    is_waiting: bool = True
    """Whether it is still to be trained on; False too if a later one was trained on first."""
    came_late: bool = False
    """True if the epoch of its traversal had ended when it was handed out."""

    @property
    def size(self) -> int | None:
        """Number of samples; None if it can't be told."""
        known = self.index if self.index is not None else self.labels
        return len(known) if known is not None else None

    @property
    def is_used_up(self) -> bool:
        """Whether all of it was trained on."""
        return self.used > 0 if self.size is None else self.used >= self.size

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
        self.used = min(self.used + count, count if self.size is None else self.size)
        self.is_waiting = self.is_waiting and not self.is_used_up
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

    def agreement(self, shown: Tensor) -> int:
        """How many of the labels that a pass has shown, on the host `[B]`, are those of its next
        samples; 0 where they can't be compared."""
        piece = self.piece(len(shown), self.used % (self.size or 1))
        given = piece.labels if piece is not None else None
        if given is None or given.ndim not in (1, 2):
            return 0
        if given.ndim == 2:
            given = given.argmax(1) if given.is_floating_point() else given[:, 0]
        return int((given.cpu() == shown).sum())

    def agrees(self, shown: Tensor) -> bool:
        """Whether the labels that a pass has shown are its own."""
        return self.agreement(shown) >= _LEAST_AGREEING * len(shown)


@dataclass(frozen=True)
class Piece:
    """Consecutive samples of a batch."""

    start: int
    is_whole: bool
    """True for all samples of the batch."""
    index: Tensor | None
    labels: Tensor | None
