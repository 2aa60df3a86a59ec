"""Other loaders over the data set of the train loader.

`accelerate.prepare`, trainers and loops that make a loader for each epoch use another one than the
monitor was given. While anyone follows a data set, `DataLoader` itself tells of new iterators over
it; the loaders are left as they are.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader

from ...errors import contained
from .. import private
from .data_loader import recorded
from .iterators import Listener, is_recording, release

_one_at_a_time = threading.RLock()


class _Follower(NamedTuple):
    dataset: Any
    listener: Listener
    wants: Callable[[DataLoader[Any]], bool]
    loaders: weakref.WeakSet[DataLoader[Any]]
    """Those that it was told of."""


_followers: tuple[_Follower, ...] = ()


def follow_data(dataset: Any, listener: Listener, wants: Callable[[DataLoader[Any]], bool]) -> None:
    """Tell a listener what loaders over a data set hand out, those of which it says so.

    Not of a loader whose own iterators are watched.
    """
    global _followers
    with _one_at_a_time:
        _followers = (*_followers, _Follower(dataset, listener, wants, weakref.WeakSet()))
        private.replace_iterator_maker(_make_iterator)


def forget_data(listener: Listener) -> None:
    """Tell it no more, and leave torch as it was once nobody listens; once more does nothing."""
    global _followers
    with _one_at_a_time:
        for one in _followers:
            if one.listener is listener:
                for loader in one.loaders:
                    _release(loader)
        _followers = tuple(one for one in _followers if one.listener is not listener)
        if not _followers:
            private.put_iterator_maker_back()


def _release(loader: DataLoader[Any]) -> None:
    """Leave the iterator alone that a loader keeps for its workers."""
    kept = private.kept_iterator(loader)
    if private.is_loader_iterator(kept) and is_recording(kept):
        release(kept)


def _make_iterator(loader: DataLoader[Any], original: Callable[[], Any]) -> Any:
    listeners: list[Listener] = []
    with contained(lambda _: None):  # nobody knows yet whether it is trained on
        listeners += _interested_in(loader)
    if not listeners:
        return original()
    with _one_at_a_time:
        return recorded(loader, listeners, original)


def _interested_in(loader: DataLoader[Any]) -> list[Listener]:
    if private.GET_ITERATOR in vars(loader):
        return []
    dataset = getattr(loader, "dataset", None)
    found = [one for one in _followers if one.dataset is dataset and one.wants(loader)]
    for one in found:
        one.loaders.add(loader)
    return [one.listener for one in found]
