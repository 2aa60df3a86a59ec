"""Which of the batches that were handed out a pass is of, also where a loader runs ahead of it.

In a plain loop it is the latest. What prefetches, or draws all micro-batches of a step at once, has
more of them waiting; then it is the oldest, and labels tell which of the two it is. On an
accelerator they are compared on the host in the first passes only: later ones carry the likeliest
batches along, and are compared where they are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from torch import Tensor

from .handed_out import HandedOut, Traversal

_MOST_WAITING = 512

_MOST_DONE = 2
"""Batches that are remembered after they were used, or passed over."""

_MOST_CARRIED = 4
"""Batches that a pass carries along."""

_PASSES_TO_LEARN = 8

_ROWS_TO_LEARN = 64

_NO_CHANCE = 8
"""So many labels agree by chance next to never."""

_MOST_EVIDENCE = 256


class WaitingBatches:
    """Batches of the train loader in the order in which they were handed out."""

    def __init__(self) -> None:
        self._batches: deque[HandedOut] = deque()
        self._last_used: HandedOut | None = None
        self._certain: HandedOut | None = None
        """The one whose labels were seen to be those of a pass, if the latest ones were."""
        self._evidence = 0
        """By how many labels more the oldest waiting batch agreed with passes than the latest."""
        self._passes_to_learn, self._rows_to_learn = _PASSES_TO_LEARN, _ROWS_TO_LEARN

    @property
    def run_ahead(self) -> bool:
        """Whether batches are drawn before those of earlier ones are used."""
        return self._evidence > 0

    def add(self, batch: HandedOut) -> None:
        """A batch was handed out."""
        if batch.number == 1 and not self.run_ahead:
            self._remove(lambda one: one.traversal.has_run_out and one.thread == batch.thread)
        self._batches.append(batch)
        if len(self._batches) <= _MOST_DONE + 1:
            return
        done = [one for one in self._batches if not one.is_waiting]
        for one in done[: len(done) - _MOST_DONE]:
            self._batches.remove(one)
        if len(self._batches) > _MOST_WAITING:
            self._batches.popleft()

    def drop(self, traversal: Traversal) -> None:
        """What is left of a traversal will not be trained on."""
        self._remove(lambda one: one.traversal is traversal)

    def _remove(self, is_unwanted: Callable[[HandedOut], bool]) -> None:
        self._batches = deque(one for one in self._batches if not is_unwanted(one))

    def has_waiting(self, traversal: Traversal) -> bool:
        """Whether batches of a traversal may still be trained on after the loader has run out."""
        may_come = self.run_ahead or not traversal.was_used
        return may_come and any(
            one.is_waiting and one.traversal is traversal for one in self._batches
        )

    def candidates(self) -> tuple[HandedOut, ...]:
        """The batches that a pass in this thread may be of, the likeliest first."""
        if not self._batches:
            return ()
        thread, latest = threading.get_ident(), self._batches[-1]
        others_wait = any(one.is_waiting for one in self._batches if one is not latest)
        if self._evidence == 0 and latest.thread == thread and not others_wait:
            return (latest,)
        known = [one for one in self._batches if one.thread == thread] or list(self._batches)
        waiting, likeliest = self._waiting(known), known[-1]
        if self.run_ahead and waiting:
            unseen = [one for one in waiting if one.seen < (one.size or 1)]
            likeliest = (unseen or waiting)[0]
        done = [one for one in reversed(known) if not one.is_waiting]
        return tuple(dict.fromkeys((likeliest, *waiting, *done)))

    def _waiting(self, known: list[HandedOut]) -> list[HandedOut]:
        """Those still to be trained on, the ones of the traversal that training is in first."""
        last = self._last_used
        waiting = [one for one in known if one.is_waiting]
        if last is None or len(waiting) < 2:
            return waiting
        return sorted(waiting, key=lambda one: one.traversal is not last.traversal)

    def choose(
        self,
        candidates: tuple[HandedOut, ...],
        shown: Callable[[], Tensor | None],
        *,
        is_on_host: bool,
    ) -> HandedOut | None:
        """The batch that a pass is of; None where it is of none.

        Args:
            candidates: As they were when the pass began.
            shown: Gives the labels that the pass has shown, `[B]`; None if it has shown none. It
                may wait for the device.
            is_on_host: Whether it waits for nothing.
        """
        likeliest = candidates[0]
        is_sure = self.run_ahead or not _is_doubtful(likeliest)
        if is_sure and len(candidates) == 1:
            return likeliest
        waiting = [one for one in candidates if one.is_waiting]
        is_ambiguous = len(waiting) > 1
        if is_sure and not is_ambiguous and (self._evidence == 0 or not self._is_learning):
            return likeliest
        if is_sure and not (is_on_host or self._is_learning):
            return likeliest
        labels = shown()
        if labels is None:
            return likeliest if is_sure else None
        labels = labels.cpu()
        self._passes_to_learn -= 1
        self._rows_to_learn -= len(labels)
        agreeing = next((one for one in candidates if one.agrees(labels)), None)
        self._certain = agreeing
        if is_ambiguous and agreeing is not None:
            self._learn(waiting, labels)
        elif not is_sure and agreeing is not None and len(labels) >= _NO_CHANCE:
            self._evidence += 1  # drawn by another thread, or all of an epoch before its first pass
        return agreeing if agreeing is not None or not is_sure else likeliest

    @property
    def _is_learning(self) -> bool:
        return self._passes_to_learn > 0 or self._rows_to_learn > 0

    def _learn(self, waiting: list[HandedOut], labels: Tensor) -> None:
        """Whether passes are of the oldest batch that waits, or of the latest."""
        by_age = sorted(waiting, key=self._batches_order)
        evidence = by_age[0].agreement(labels) - by_age[-1].agreement(labels)
        # One of those in between: whoever passed over the ones before it runs ahead all the same.
        if any(one.agrees(labels) for one in by_age[1:-1]) and not by_age[-1].agrees(labels):
            evidence = max(evidence, 1)
        self._evidence = max(-_MOST_EVIDENCE, min(self._evidence + evidence, _MOST_EVIDENCE))

    def _batches_order(self, batch: HandedOut) -> int:
        return self._batches.index(batch) if batch in self._batches else -1

    def carried(
        self, candidates: tuple[HandedOut, ...], chosen: HandedOut
    ) -> tuple[HandedOut, ...]:
        """Other batches that a pass may be of after all, of the same size."""
        if len(candidates) == 1 or chosen is self._certain:
            return ()
        others = [one for one in candidates if one is not chosen and one.size == chosen.size]
        is_certain = not self.run_ahead and sum(one.is_waiting for one in candidates) < 2
        return () if is_certain else tuple(others[: _MOST_CARRIED - 1])

    def use(self, batch: HandedOut) -> None:
        """A batch is trained on; earlier ones that still wait in its traversal were passed over."""
        self._last_used = batch
        batch.traversal.was_used = True
        for one in self._batches:
            if one is batch:
                break
            if one.thread == batch.thread:
                one.is_waiting = False


def _is_doubtful(batch: HandedOut) -> bool:
    """Whether it may well be that nobody trains on it: only labels tell."""
    is_left_over = batch.traversal.has_run_out and not batch.traversal.was_used
    return is_left_over or batch.thread != threading.get_ident()
