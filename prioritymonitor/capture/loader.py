"""Sample identity: which samples of the data set a batch holds, read off a `DataLoader` in place.

The loader keeps its type and its samplers. Only its `_get_iterator` is shadowed, so that each
iterator draws its indices through a recording sampler and tells when it hands out a batch. Batches
come out in the order in which indices were drawn (`in_order=True`), also with workers, so a queue
pairs them.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .hooks import Hook

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


@dataclass
class HandedOut:
    """A batch that the loader gave to the training loop."""

    index: Tensor | None
    """Positions in the data set, int64 `[B]` on the CPU."""
    labels: Tensor | None
    """What looks like the labels of the batch: its second element, or its `labels` entry."""
    used: int = 0
    """How many of its samples were trained on already, for a loop that cuts a batch in pieces."""

    def span(self, count: int) -> slice | None:
        """Which part of this batch the next `count` samples are; None if that can't be told."""
        known = self.index if self.index is not None else self.labels
        if known is None or count > len(known):
            return None
        start = 0 if count == len(known) else self.used
        return slice(start, start + count) if start + count <= len(known) else None


class LoaderRecorder:
    """Records a `DataLoader` in place until `close()`.

    Args:
        loader: The train loader.
        on_pass: Called with True when a pass over the loader begins and with False when it ran to
            its end.
        on_error: Gets any exception of ours; the training loop never sees it.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        on_pass: Callable[[bool], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.loader = loader
        self.current: HandedOut | None = None
        self.no_identity = _no_identity(loader)
        """Why batches can't be traced to samples; None if they can."""
        self.batch_begins = Hook(self._batch_begins, on_error)
        self.pass_turns = Hook(self._pass_turns, on_error)
        self._on_pass = on_pass
        self._handed_out = 0
        shadow = loader.__dict__.setdefault("_get_iterator", _RecordedIterators(loader))
        shadow.recorders.append(self)

    @property
    def dataset_size(self) -> int | None:
        """Number of samples that an index may name; None where samples have no identity."""
        return None if self.no_identity else len(self.loader.dataset)  # type: ignore[arg-type]

    @property
    def is_exhausted(self) -> bool:
        """True once the running pass has handed out its last batch."""
        try:
            return self._handed_out >= len(self.loader)
        except TypeError:  # a stream without length
            return False

    def _batch_begins(self, drawn: Any, batch: Any) -> None:
        index = None
        if self.no_identity is None:
            try:
                positions = np.asarray(drawn).reshape(-1)  # much faster than torch for a list
                if positions.dtype.kind not in "iu":
                    raise TypeError(f"got {positions.dtype}")
                index = torch.from_numpy(positions.astype(np.int64, copy=True))
            except (TypeError, ValueError, RuntimeError):
                self.no_identity = "its sampler does not give integer positions"
        self.current = HandedOut(index, _labels(batch))
        self._handed_out += 1

    def _pass_turns(self, begins: bool) -> None:
        self.current = None
        self._handed_out = 0
        self._on_pass(begins)

    def close(self) -> None:
        """Leave the loader as it was found."""
        shadow = self.loader.__dict__["_get_iterator"]
        shadow.recorders.remove(self)
        if shadow.recorders:  # another monitor still watches this loader
            return
        del self.loader.__dict__["_get_iterator"]
        iterator = self.loader._iterator  # kept by a loader with persistent workers
        if iterator is not None and isinstance(iterator._index_sampler, _RecordingSampler):
            iterator._index_sampler = iterator._index_sampler.sampler
            iterator.__class__ = type(iterator).__mro__[1]


class _RecordedIterators:
    """Shadows `loader._get_iterator`: makes iterators that tell the recorders what they do."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.recorders: list[LoaderRecorder] = []

    def __call__(self) -> Any:
        loader = self.loader
        # The iterator reads the sampler once, while it is made; the loader has its own back after.
        name = "batch_sampler" if loader._auto_collation else "sampler"
        own = loader.__dict__[name]
        loader.__dict__[name] = _RecordingSampler(own, self.recorders)
        try:
            iterator = type(loader)._get_iterator(loader)
        finally:
            loader.__dict__[name] = own
        iterator.__class__ = _recording(type(iterator))  # type: ignore[arg-type]
        return iterator

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copied loader is another loader: it makes its own, unwatched iterators.
        copied = memo.get(id(self.loader), self.loader)
        return functools.partial(type(copied)._get_iterator, copied)


class _RecordingSampler:
    """Draws from the loader's own index sampler and remembers what it drew."""

    def __init__(self, sampler: Any, recorders: list[LoaderRecorder]) -> None:
        self.sampler = sampler
        self._recorders = recorders
        self._drawn: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        # The user's sampler is asked now, not at the first draw: the order of random draws must
        # be that of a loader that nobody watches.
        inner = iter(self.sampler)
        drawn: deque[Any] = deque()
        self._drawn = drawn
        self.pass_turns(True)

        def draw() -> Iterator[Any]:
            for index in inner:
                drawn.append(index)
                yield index

        return draw()

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def handed_out(self, batch: Any) -> None:
        drawn = self.take()
        for recorder in self._recorders:
            recorder.batch_begins(drawn, batch)

    def take(self) -> Any:
        return self._drawn.popleft() if self._drawn else None

    def pass_turns(self, begins: bool) -> None:
        for recorder in list(self._recorders):
            recorder.pass_turns(begins)


@functools.cache
def _recording(iterator_class: type) -> type:
    """The iterator class that also tells its `_RecordingSampler` what it hands out."""

    def _next_data(self: Any) -> Any:
        try:
            batch = iterator_class._next_data(self)  # type: ignore[attr-defined]
        except StopIteration:
            self._index_sampler.pass_turns(False)
            raise
        except Exception:
            self._index_sampler.take()  # no batch came of these indices
            raise
        self._index_sampler.handed_out(batch)
        return batch

    return type(iterator_class.__name__, (iterator_class,), {"_next_data": _next_data})


def _no_identity(loader: DataLoader[Any]) -> str | None:
    if isinstance(loader.dataset, IterableDataset):
        return "its data set is an IterableDataset"
    if not isinstance(loader.dataset, Sized):
        return "its data set has no length"
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        return "it was made with in_order=False"
    return None


def _labels(batch: Any) -> Tensor | None:
    found: Any = None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    elif hasattr(batch, "keys"):
        found = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    return found if isinstance(found, Tensor) else None
