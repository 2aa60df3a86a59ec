"""A `DataLoader` followed in place.

The loader keeps its type and its samplers. Only the method that makes its iterators is shadowed:
each draws its indices through a recording sampler and tells when it hands out a batch.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

from ...errors import contained
from .. import private
from .iterators import (
    Listener,
    RecordingSampler,
    is_recording,
    lose_identity,
    record,
    release,
)

_NOTHING: Any = object()

_LOCKS: weakref.WeakKeyDictionary[DataLoader[Any], threading.RLock] = weakref.WeakKeyDictionary()


def one_at_a_time(loader: DataLoader[Any]) -> threading.RLock:
    """Held while an iterator of a loader is made; each loader has its own."""
    return _LOCKS.setdefault(loader, threading.RLock())


class _Shadow:
    """Stands in for a method of one loader, as an entry of its `__dict__`."""

    name: str

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.replaced = loader.__dict__.get(self.name, _NOTHING)
        """What the user had put there."""

    def original(self, *args: Any) -> Any:
        """Call what it stands in for."""
        if self.replaced is not _NOTHING:
            return self.replaced(*args)
        return getattr(type(self.loader), self.name)(self.loader, *args)

    def take_off(self) -> None:
        """Leave the entry as it was found, unless someone else's lies over it."""
        if self.loader.__dict__.get(self.name) is not self:
            return
        if self.replaced is _NOTHING:
            del self.loader.__dict__[self.name]
        else:
            self.loader.__dict__[self.name] = self.replaced


class _UnwatchedCopies(_Shadow):
    """Makes a copied or pickled loader another loader, with iterators and options of its own.

    A subclass with a `__copy__` of its own isn't reached.
    """

    name = "__reduce_ex__"

    def __call__(self, protocol: Any) -> Any:
        """Say how to make the copy, as the loader itself would."""
        return _without_shadows(self.original(protocol))


def _without_shadows(reduced: Any) -> Any:
    # Of types that pickling itself makes; what a subclass has made of its own stays as it is.
    if type(reduced) is tuple:
        return tuple(map(_without_shadows, reduced))
    if type(reduced) is not dict or not any(isinstance(v, _Shadow) for v in reduced.values()):
        return reduced
    own = {k: v.replaced if isinstance(v, _Shadow) else v for k, v in reduced.items()}
    return {k: v for k, v in own.items() if v is not _NOTHING}


class WatchedIterators(_Shadow):
    """Makes the iterators of a loader, which tell the listeners what they do.

    One serves all listeners of a loader; without any it is taken off.
    """

    name = private.GET_ITERATOR

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> WatchedIterators:
        """Those of the loader; without effect on one that nobody listens to yet."""
        shadow = loader.__dict__.get(cls.name)
        return shadow if isinstance(shadow, cls) else cls(loader)

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self._copies = _UnwatchedCopies(loader)
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """Tell one more listener from now on."""
        self._listeners.append(listener)
        self.loader.__dict__.update({self.name: self, self._copies.name: self._copies})
        kept = private.kept_iterator(self.loader)
        if private.is_loader_iterator(kept) and not is_recording(kept):
            own = private.index_sampler(kept)
            sampler = recording_sampler(self.loader, own, self._listeners)
            private.set_index_sampler(kept, sampler)
            follow(kept, self._listeners)

    def remove(self, listener: Listener) -> None:
        """Tell it no more; without listeners, leave the loader as it was found.

        It may break off anywhere: once more, and what is left is done.
        """
        self._listeners[:] = [other for other in self._listeners if other is not listener]
        if self._listeners:
            return
        self._copies.take_off()
        self.take_off()
        release(private.kept_iterator(self.loader))
        for name in ("sampler", "batch_sampler"):  # if `__call__` broke off
            _put_back(self.loader, name)

    def __call__(self) -> Any:
        """Make an iterator, as the loader itself would."""
        if not self._listeners:
            return self.original()
        with one_at_a_time(self.loader):
            return recorded(self.loader, self._listeners, self.original)

    def __reduce__(self) -> tuple[Any, ...]:
        # Only where a subclass copies its own `__dict__`.
        return functools.partial, (getattr(type(self.loader), self.name), self.loader)


def recorded(loader: DataLoader[Any], listeners: list[Listener], make: Callable[[], Any]) -> Any:
    """An iterator of a loader, as `make` gives it, which tells the listeners what it does.

    Not by two threads at once: they would take each other's sampler for the loader's own.
    """
    iterator = _drawing_from_a_recording_sampler(loader, listeners, make)
    with contained(functools.partial(lose_identity, listeners)):
        follow(iterator, listeners)
    return iterator


def _drawing_from_a_recording_sampler(
    loader: DataLoader[Any], listeners: list[Listener], make: Callable[[], Any]
) -> Any:
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    if name not in loader.__dict__:  # a property of a subclass
        return make()
    # The iterator reads the sampler once, while it is made; the loader has its own back after.
    try:
        loader.__dict__[name] = recording_sampler(loader, loader.__dict__[name], listeners)
        return make()
    finally:
        _put_back(loader, name)


def recording_sampler(
    loader: DataLoader[Any], sampler: Any, listeners: list[Listener]
) -> RecordingSampler:
    """Draws from a sampler of the loader and remembers what it drew."""
    most_ahead = loader.num_workers * (loader.prefetch_factor or 0)
    return RecordingSampler(sampler, listeners, most_ahead, length_of(loader))


def follow(iterator: Any, listeners: list[Listener]) -> None:
    """Have an iterator that draws from a recording sampler tell what it hands out."""
    sampler = private.index_sampler(iterator)
    is_ours = isinstance(sampler, RecordingSampler) and sampler.listeners is listeners
    if not (is_ours and sampler.can_tell(iterator) and record(iterator)):
        for listener in list(listeners):
            listener.lose_identity(
                f"its iterator is of type {type(iterator).__name__}, which can't be followed"
            )


def length_of(sized: Any, length: Callable[[Any], int] = private.length) -> int | None:
    """Its length; None for a stream, or a sampler without end."""
    try:
        return length(sized)
    except (TypeError, NotImplementedError, AttributeError):
        return None


def _put_back(loader: DataLoader[Any], name: str) -> None:
    sampler = loader.__dict__.get(name)
    if isinstance(sampler, RecordingSampler):
        loader.__dict__[name] = sampler.sampler
