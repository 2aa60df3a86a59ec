"""Every undocumented name of torch that is used here, each behind a function.

Nothing else reads one of them. Where a torch lacks a name, the function says so by what it returns,
and what needed the name does without.
"""

from __future__ import annotations

from typing import Any

import torch.utils.data.dataloader
from torch.utils.data import DataLoader

# Data loading

GET_ITERATOR = "_get_iterator"
"""The method by which a `DataLoader` makes an iterator, at each `iter(loader)` or, with persistent
workers, once. There since torch 1.7. Without it no loader can be followed."""


def makes_iterators(loader: DataLoader[Any]) -> bool:
    """Whether the loader makes its iterators by the method `GET_ITERATOR`."""
    return callable(getattr(type(loader), GET_ITERATOR, None))


def is_loader_iterator(iterator: Any) -> bool:
    """Whether torch made it for a `DataLoader`.

    Reads `dataloader._BaseDataLoaderIter`, there since torch 1.7 or earlier; without it False.
    """
    base = getattr(torch.utils.data.dataloader, "_BaseDataLoaderIter", ())
    return isinstance(iterator, base)


def kept_iterator(loader: DataLoader[Any]) -> Any:
    """The iterator that a loader with persistent workers keeps; None before the first.

    Reads `DataLoader._iterator`, there since torch 1.7; without it None.
    """
    return getattr(loader, "_iterator", None)


def index_sampler(iterator: Any) -> Any:
    """What an iterator of a loader draws from, a sampler or batch sampler.

    Reads `_BaseDataLoaderIter._index_sampler`, there since torch 1.7 or earlier; without it None.
    """
    return getattr(iterator, "_index_sampler", None)


def set_index_sampler(iterator: Any, sampler: Any) -> None:
    """Let the iterator draw from something else, from its next reset on."""
    iterator._index_sampler = sampler


def batches_ahead(iterator: Any) -> int | None:
    """How many batches were asked of the workers after the one that was handed out last.

    Reads `_MultiProcessingDataLoaderIter._send_idx` and `_rcvd_idx`, there since torch 1.7 or
    earlier; without them None.

    Args:
        iterator: One with workers that keep the order.
    """
    sent, received = (getattr(iterator, name, None) for name in ("_send_idx", "_rcvd_idx"))
    return None if sent is None or received is None else sent - received


def length(loader: DataLoader[Any]) -> int:
    """`len(loader)`, without leaving a trace of the question.

    Of an `IterableDataset`, torch notes the answer in `DataLoader._IterableDataset_len_called`,
    there since torch 1.7 or earlier, and warns if more samples come; without the name it notes
    nothing.
    """
    name = "_IterableDataset_len_called"
    before = vars(loader).get(name)
    try:
        return len(loader)
    finally:
        if name in vars(loader):
            vars(loader)[name] = before
