"""Iterators of a `DataLoader` that tell what they draw, and which batch they hand out.

Batches come out in the order in which their indices were drawn (`in_order=True`), also with
workers. So how many were drawn after a batch tells which were drawn for it, also where others came
to nothing: a sample that can't be read, a time-out, an interruption.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ...errors import contained
from .. import private
from .handed_out import Traversal

_MOST_REMEMBERED = 8
"""Batches for a listener that comes late."""


class Listener(Protocol):
    """What is told about a loader."""

    @property
    def batch_begins(self) -> Callable[[Traversal, int, Any, Any], Any]:
        """Called with a batch that is handed out: its traversal, its number in it from 1 on, what
        was drawn, the batch.

        What was drawn is as the sampler gave it; None if it is not known.
        """

    @property
    def traversal_ends(self) -> Callable[[Traversal], Any]:
        """Called where the loader runs out."""

    def lose_identity(self, reason: str) -> None:
        """Called where the loader can't be followed."""


class RecordingSampler:
    """Draws from the loader's own sampler or batch sampler and remembers what it drew.

    Args:
        sampler: The loader's own.
        listeners: Who is told.
        most_ahead: How many batches may be drawn before the one of the first is handed out.
        batches: How many a traversal has; None if that is not known.
    """

    def __init__(
        self, sampler: Any, listeners: list[Listener], most_ahead: int, batches: int | None
    ) -> None:
        self.sampler = sampler
        self.listeners = listeners
        self._most_ahead = most_ahead
        self._batches = batches
        self._traversal: Traversal | None = None
        self.dataset: Any = None
        """Of the loader, where others over it are followed too."""
        self.remembers = False
        """Whether the latest batches are kept for a listener that comes late."""
        self._latest: deque[tuple[Traversal, int, Any, Any]] = deque(maxlen=_MOST_REMEMBERED)

    def __iter__(self) -> Iterator[Any]:
        # The user's sampler is asked now, not at the first draw: the order of random draws must
        # be that of a loader that nobody watches.
        own = iter(self.sampler)
        self._traversal = Traversal(self._most_ahead, self._batches)
        return _Draws(own, self._traversal)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def can_tell(self, iterator: Any) -> bool:
        """Whether it can tell what was drawn for the batches of an iterator."""
        return private.is_loader_iterator(iterator) and self._ahead(iterator) is not None

    def _ahead(self, iterator: Any) -> int | None:
        return private.batches_ahead(iterator) if self._most_ahead else 0

    def handed_out(self, iterator: Any, batch: Any) -> None:
        """The iterator is about to hand out a batch."""
        traversal = self._traversal
        if traversal is None:  # begun before anyone listened
            return
        with contained(functools.partial(lose_identity, self.listeners)):
            drawn = traversal.drawn_for_batch(self._ahead(iterator))
            traversal.handed_out += 1
            told = traversal, traversal.handed_out, drawn, batch
            if self.remembers:
                self._latest.append(told)
            for listener in list(self.listeners):
                listener.batch_begins(*told)

    def tell_also(self, listener: Listener) -> None:
        """Tell one more listener, of the latest batches first."""
        self.listeners.append(listener)
        for latest in self._latest:
            listener.batch_begins(*latest)

    def tell_no_more(self, listener: Listener) -> None:
        """Tell it no more; once more does nothing."""
        self.listeners[:] = [other for other in self.listeners if other is not listener]
        self.remembers = False
        self._latest.clear()

    def ran_out(self) -> None:
        """The iterator has no more batches."""
        with contained(functools.partial(lose_identity, self.listeners)):
            for listener in list(self.listeners):
                if self._traversal is not None:
                    listener.traversal_ends(self._traversal)


def lose_identity(listeners: list[Listener], error: Exception) -> None:
    """Tell that a failure of ours keeps the loader from being followed."""
    for listener in list(listeners):
        listener.lose_identity(f"following its batches failed ({type(error).__name__}: {error})")


class _Draws:
    """The indices of one traversal. No generator: threads may share it if they may its original."""

    def __init__(self, indices: Iterator[Any], traversal: Traversal) -> None:
        self._indices = indices
        self._traversal = traversal

    def __iter__(self) -> _Draws:
        return self

    def __next__(self) -> Any:
        index = next(self._indices)
        self._traversal.drawn.append(index)
        return index


@functools.cache
def _recording(iterator_class: Any) -> Any:
    """The class of iterators that also tell their `RecordingSampler` what they hand out."""

    def __next__(self: Any) -> Any:
        sampler = private.index_sampler(self)
        try:
            batch = iterator_class.__next__(self)
        except StopIteration:
            sampler.ran_out()
            raise
        sampler.handed_out(self, batch)
        return batch

    members = {"__next__": __next__, "unrecorded": iterator_class}
    return type(iterator_class.__name__, (iterator_class,), members)


def is_recording(iterator: Any) -> bool:
    """Whether the iterator tells what it hands out."""
    return "unrecorded" in vars(type(iterator))


def record(iterator: Any) -> bool:
    """Have the iterator tell what it hands out; False if its class allows no subclass."""
    if not is_recording(iterator):
        try:
            iterator.__class__ = _recording(type(iterator))  # type: ignore[arg-type]
        except TypeError:
            return False
    return True


def release(iterator: Any) -> None:
    """Leave the iterator as it was found; once more does nothing."""
    # The class first: a recording iterator needs its recording sampler.
    if is_recording(iterator):
        iterator.__class__ = type(iterator).unrecorded
    sampler = private.index_sampler(iterator)
    if isinstance(sampler, RecordingSampler):
        private.set_index_sampler(iterator, sampler.sampler)
