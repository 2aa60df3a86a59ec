"""Sample identity: which samples of the data set a batch holds, read off a `DataLoader` in place.

The loader keeps its type and its samplers. Only its `_get_iterator` is shadowed, so that each
iterator draws its indices through a recording sampler and tells when it hands out a batch. Batches
come out in the order in which indices were drawn (`in_order=True`), also with workers, so a queue
pairs them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..hooks import Guard, Hook
from .handed_out import HandedOut, Turn

_LABEL_KEYS = ("labels", "label", "targets", "target", "y")


class LoaderRecorder:
    """Records a `DataLoader` in place until `close()`, and tells when an epoch has ended.

    An epoch is a pass in which the model was trained. It ends where the loader runs out, or where
    training goes on with another pass because the loop broke this one off.

    Args:
        loader: The train loader.
        on_epoch_end: Called at the end of each epoch.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        on_epoch_end: Callable[[], None],
        guard: Guard,
    ) -> None:
        self.loader = loader
        self.current: HandedOut | None = None
        self.no_identity = _no_identity(loader)
        """Why batches can't be traced to samples; None if they can."""
        self.is_open = False
        """True while an epoch is under way."""
        self.batch_begins = Hook(self._batch_begins, guard)
        self.turn_ends = Hook(self._turn_ends, guard)
        self.settle = Hook(self._settle, guard)
        self._on_epoch_end = on_epoch_end
        self._turn: Turn | None = None
        self._ended: Turn | None = None
        self._stepped_with: HandedOut | None = None
        shadow = loader.__dict__.get("_get_iterator")
        if not isinstance(shadow, _RecordedIterators):
            shadow = loader.__dict__["_get_iterator"] = _RecordedIterators(loader)
        shadow.recorders.append(self)

    @property
    def dataset_size(self) -> int | None:
        """Number of samples that an index may name; None where samples have no identity."""
        return None if self.no_identity else len(self.loader.dataset)  # type: ignore[arg-type]

    def trained_on(self, batch: HandedOut) -> None:
        """A batch is about to be trained on."""
        if batch.turn is self._ended:
            return  # once more on a batch of an epoch that has ended
        if self.is_open and self._turn is not None and batch.turn is not self._turn:
            self._end()
        self.is_open, self._turn = True, batch.turn

    def stepped(self) -> None:
        """An optimizer step was made."""
        self._stepped_with = self.current

    def resume(self, is_open: bool) -> None:
        """Go on with an epoch that an interrupted run had begun."""
        self.is_open, self._turn = is_open, None

    def _settle(self) -> None:
        """End the epoch now if an optimizer step followed its last batch.

        A trainer that counts batches never asks the loader for the one past the last, so the end
        of the pass would go unnoticed until the next begins.
        """
        last = self.current
        if last is None or last is not self._stepped_with or last.turn is not self._turn:
            return
        is_used_up = last.size is None or last.used >= last.size
        if is_used_up and last.turn.handed_out >= _length(self.loader):
            self._turn_ends(last.turn)

    def _batch_begins(self, turn: Turn, drawn: Any, batch: Any) -> None:
        index = None
        if self.no_identity is None:
            try:
                positions = np.asarray(drawn).reshape(-1)  # much faster than torch for a list
                # A batch by Poisson sampling may be empty, and says nothing then.
                if positions.size and positions.dtype.kind not in "iu":
                    raise TypeError(f"got {positions.dtype}")
                index = torch.from_numpy(positions.astype(np.int64, copy=True))
            except (TypeError, ValueError, RuntimeError):
                self.no_identity = "its sampler does not give integer positions"
        self.current = HandedOut(turn, index, _labels(batch))

    def _turn_ends(self, turn: Turn) -> None:
        if self.is_open and turn is self._turn:
            self._end()
        if self.current is not None and self.current.turn is turn:
            self.current = None

    def _end(self) -> None:
        self.is_open, self._ended = False, self._turn
        self._on_epoch_end()

    def close(self) -> None:
        """Leave the loader as it was found, and let go of it.

        Its workers end promptly only if the loader is freed by its last reference, not by the
        garbage collector, which would find it in our circles.
        """
        loader, self.current = self.loader, None
        del self.loader
        shadow = loader.__dict__["_get_iterator"]
        shadow.recorders.remove(self)
        if shadow.recorders:  # another monitor still watches this loader
            return
        del loader.__dict__["_get_iterator"]
        iterator = loader._iterator  # kept by a loader with persistent workers
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

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied or pickled loader is another loader: it makes its own, unwatched iterators.
        return functools.partial, (type(self.loader)._get_iterator, self.loader)


class _RecordingSampler:
    """Draws from the loader's own index sampler and remembers what it drew."""

    def __init__(self, sampler: Any, recorders: list[LoaderRecorder]) -> None:
        self.sampler = sampler
        self._recorders = recorders
        self._turn = Turn()

    def __iter__(self) -> Iterator[Any]:
        # The user's sampler is asked now, not at the first draw: the order of random draws must
        # be that of a loader that nobody watches.
        inner = iter(self.sampler)
        self._turn = turn = Turn()

        def draw() -> Iterator[Any]:
            for index in inner:
                turn.drawn.append(index)
                yield index

        return draw()

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def handed_out(self, batch: Any) -> None:
        drawn = self.take()
        self._turn.handed_out += 1
        for recorder in self._recorders:
            recorder.batch_begins(self._turn, drawn, batch)

    def take(self) -> Any:
        return self._turn.drawn.popleft() if self._turn.drawn else None

    def finished(self) -> None:
        for recorder in list(self._recorders):
            recorder.turn_ends(self._turn)


@functools.cache
def _recording(iterator_class: type) -> type:
    """The iterator class that also tells its `_RecordingSampler` what it hands out."""

    def _next_data(self: Any) -> Any:
        try:
            batch = iterator_class._next_data(self)  # type: ignore[attr-defined]
        except StopIteration:
            self._index_sampler.finished()
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


def _length(loader: DataLoader[Any]) -> float:
    try:
        return len(loader)
    except TypeError:  # a stream
        return float("inf")


def _labels(batch: Any) -> Tensor | None:
    found: Any = None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    elif hasattr(batch, "keys"):
        found = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
    return found if isinstance(found, Tensor) else None
