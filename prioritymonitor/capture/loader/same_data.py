"""Other loaders over the data set of the train loader.

`accelerate.prepare`, trainers and loops that make a loader for each epoch use another one than the
monitor was given. While anyone follows a data set, `DataLoader` itself tells of new iterators over
it; the loaders are left as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from ...errors import contained
from .. import private
from .data_loader import one_at_a_time, recorded
from .iterators import Listener, RecordingSampler, is_recording, release

ANY_DATA: Any = object()
"""In place of a data set: all of them."""


@dataclass(eq=False)
class _Follower:
    dataset: Any
    listener: Listener
    wants: Callable[[DataLoader[Any]], bool]
    loaders: weakref.WeakSet[DataLoader[Any]]
    """Those that it was told of."""
    samplers: weakref.WeakSet[RecordingSampler]
    """Those that tell it."""


_followers: list[_Follower] = []
"""Changed in single steps, without a lock: an exception of a signal handler that comes where a lock
is about to be given back leaves it taken, and this one would be for all threads of the process."""


def follow_data(dataset: Any, listener: Listener, wants: Callable[[DataLoader[Any]], bool]) -> None:
    """Tell a listener what loaders over a data set hand out, those of which it says so.

    Not of a loader whose own iterators are watched. Of a traversal that is under way it is told
    only if someone follows any data, with the latest batches first.
    """
    under_way = [
        sampler
        for other in [*_followers]
        if other.dataset is ANY_DATA
        for sampler in [*other.samplers]
        if sampler.dataset is dataset
    ]
    one = _Follower(dataset, listener, wants, weakref.WeakSet(), weakref.WeakSet())
    _followers.append(one)
    private.replace_iterator_maker(_make_iterator)
    for sampler in under_way:
        sampler.tell_also(listener)
        one.samplers.add(sampler)


def forget_data(listener: Listener) -> None:
    """Tell it no more, and leave torch as it was once nobody listens; once more does nothing."""
    for one in [one for one in _followers if one.listener is listener]:
        for sampler in [*one.samplers]:
            sampler.tell_no_more(listener)
        for loader in [*one.loaders]:
            _release(loader)
        _followers.remove(one)
    if not _followers:
        private.put_iterator_maker_back()
    if _followers:  # another thread has begun to follow meanwhile
        private.replace_iterator_maker(_make_iterator)


def _release(loader: DataLoader[Any]) -> None:
    """Leave the iterator alone that a loader keeps for its workers, if nobody else listens."""
    kept = private.kept_iterator(loader)
    if private.is_loader_iterator(kept) and is_recording(kept):
        sampler = private.index_sampler(kept)
        if not (isinstance(sampler, RecordingSampler) and sampler.listeners):
            release(kept)


def _make_iterator(loader: DataLoader[Any], original: Callable[[], Any]) -> Any:
    interested: list[_Follower] = []
    with contained(lambda _: None):  # nobody knows yet whether it is trained on
        interested += _interested_in(loader)
    if not interested:
        return original()
    with one_at_a_time(loader):
        iterator = recorded(loader, [one.listener for one in interested], original)
    with contained(lambda _: None):
        _note(interested, loader, iterator)
    return iterator


def _interested_in(loader: DataLoader[Any]) -> list[_Follower]:
    if private.GET_ITERATOR in vars(loader):
        return []
    dataset = getattr(loader, "dataset", None)
    found = [one for one in [*_followers] if one.dataset is dataset or one.dataset is ANY_DATA]
    return [one for one in found if one.wants(loader)]


def _note(interested: list[_Follower], loader: DataLoader[Any], iterator: Any) -> None:
    sampler = private.index_sampler(iterator)
    if not isinstance(sampler, RecordingSampler):
        return
    sampler.dataset = getattr(loader, "dataset", None)
    sampler.remembers = any(one.dataset is ANY_DATA for one in interested)
    for one in interested:
        one.loaders.add(loader)
        one.samplers.add(sampler)
