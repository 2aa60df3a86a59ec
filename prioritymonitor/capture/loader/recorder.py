"""Sample identity: which samples of the data set a batch holds, and where epochs end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from .. import private
from ..hooks import Guard, Hook
from .batches import labels_in
from .data_loader import WatchedIterators, length_of
from .handed_out import HandedOut, Traversal
from .order_check import OrderCheck
from .same_data import follow_data, forget_data
from .waiting import WaitingBatches


class Others(Protocol):
    """Processes that train on parts of the same epochs."""

    def epoch_begins(self, batches: int | None) -> None:
        """Training on a traversal of so many batches begins here."""

    def had_no_batch(self) -> None:
        """A traversal was over at once."""

    def may_end_now(self) -> bool:
        """Whether its end may be where its last batch was used.

        If not, it is where training goes on with another traversal, or where it is said.
        """


class Nobody:
    """Where a process is alone."""

    def epoch_begins(self, batches: int | None) -> None:
        """Nobody wants to know."""

    def had_no_batch(self) -> None:
        """Nobody waits."""

    def may_end_now(self) -> bool:
        """Nobody has to come along."""
        return True


class LoaderRecorder:
    """Records a `DataLoader` in place until `close()`, and tells when an epoch has ended.

    An epoch is a traversal in which the model was trained. It ends where the loader has run out and
    its batches are used, or where training goes on with another traversal because the loop broke
    this one off. Until the loader itself is trained on, others over the same data set are recorded
    too: a trainer may have made one of its own from it.

    Args:
        loader: The train loader; it is left as it was if the recorder can't be made.
        on_epoch_end: Called at the end of each epoch.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        on_epoch_end: Callable[[], None],
        guard: Guard,
    ) -> None:
        self.loader: DataLoader[Any] | None = None
        """The loader; None after `close()`."""
        self.no_identity = _no_identity(loader)
        """Why batches can't be traced to samples; None if they can."""
        self.not_followed: str | None = None
        """Why some samples are not followed; None if all that were seen are."""
        self.is_open = False
        """True while an epoch is under way."""
        self.batch_begins = Hook(self._batch_begins, guard)
        self.traversal_ends = Hook(self._traversal_ends, guard)
        self.settle = Hook(self._settle, guard)
        self.waiting = WaitingBatches()
        self._order = OrderCheck(loader.dataset)
        self.others: Others = Nobody()
        """Who else has to end the epochs."""
        self._on_epoch_end = on_epoch_end
        self._size = length_of(loader.dataset, len) or 0
        self._traversal: Traversal | None = None
        self._complete: Traversal | None = None
        """The one whose batches were all used."""
        self._last_used: HandedOut | None = None
        self._stepped_with: HandedOut | None = None
        self._training_thread: int | None = None
        self._iterators: WatchedIterators | None = None
        self._elsewhere = _OtherLoader(self)
        self._is_itself_used = False
        try:
            self.loader, self._iterators = loader, WatchedIterators.of(loader)
            self._iterators.add(self)
            if self.no_identity is None:
                follow_data(loader.dataset, self._elsewhere, self._may_be_used)
        except BaseException:
            self.close()
            raise

    @property
    def dataset(self) -> Any:
        """The data set; None after `close()`."""
        return None if self.loader is None else self.loader.dataset

    @property
    def dataset_size(self) -> int | None:
        """Number of samples at the start, the most that are followed; None without identity."""
        return None if self.no_identity else self._size

    @property
    def batches(self) -> int | None:
        """Number of batches of an epoch; None if the loader has no length, or after `close()`."""
        return None if self.loader is None else length_of(self.loader)

    def trained_on(self, batch: HandedOut) -> None:
        """A batch is about to be trained on."""
        self.waiting.use(batch)
        self._last_used, self._training_thread = batch, threading.get_ident()
        self._is_itself_used |= not batch.traversal.is_elsewhere
        if batch.traversal.is_over:
            if batch.came_late and self._traversal is not None:
                self._traversal.gave_way = self._traversal is not batch.traversal
            return  # or once more on a batch of an epoch that has ended
        if batch.traversal.gave_way:
            self.lose_identity("two loops over it train in turns, and epochs can't be told")
        if self._traversal is not None and batch.traversal is not self._traversal:
            self._end(self._traversal)
        if not self.is_open or batch.traversal is not self._traversal:
            self.others.epoch_begins(batch.traversal.batches)
        self.is_open, self._traversal = True, batch.traversal

    def end_epoch(self) -> None:
        """End the epoch that is under way; what comes after it in the same traversal is another."""
        if self.is_open:
            self.is_open, self._traversal = False, None
            self._on_epoch_end()

    def stepped(self) -> None:
        """An optimizer step was made."""
        self._stepped_with = self._last_used

    @property
    def is_complete(self) -> bool:
        """Whether all batches of the epoch under way were used, and only others hold up its end."""
        return self.is_open and self._complete is not None and self._complete is self._traversal

    def resume(self, is_open: bool, is_complete: bool = False) -> None:
        """Go on with an epoch that an interrupted run had begun."""
        self.is_open, self._traversal = is_open, None
        if is_complete:  # the next batch is of another epoch
            self._traversal = self._complete = Traversal()

    def lose_identity(self, reason: str) -> None:
        """From here on, batches can't be traced to samples; the first reason stays."""
        self.no_identity = self.no_identity or reason

    def close(self) -> None:
        """Leave the loader as it was found, and let go of it.

        It may break off anywhere: once more, and what is left is done. The loader's workers end
        promptly only if it is freed by its last reference, not by the garbage collector, which
        would find it in our circles.
        """
        forget_data(self._elsewhere)
        if self._iterators is not None:
            self._iterators.remove(self)
        self.loader, self._iterators = None, None
        self.waiting, self._last_used, self._stepped_with = WaitingBatches(), None, None

    def _settle(self, is_last: bool = False) -> None:
        """End the epoch now if an optimizer step followed its last batch.

        A trainer that counts batches never asks the loader for the one past the last, so the end
        of the traversal would go unnoticed until the next begins; and what runs ahead asks for it
        too early.

        Args:
            is_last: Whether there may be no next epoch, where one would end that is complete.
        """
        if is_last and self._complete is not None and self._complete is self._traversal:
            self._end(self._complete)
        last = self._last_used
        if last is None or last is not self._stepped_with or not last.is_used_up:
            return
        if last.traversal.has_handed_out_all and last.number == last.traversal.handed_out:
            self._finish(last.traversal)

    def _batch_begins(self, traversal: Traversal, number: int, drawn: Any, batch: Any) -> None:
        index, labels, is_late = self._index(drawn), labels_in(batch), traversal.is_over
        self.waiting.add(HandedOut(traversal, index, labels, number=number, came_late=is_late))
        if self._order.is_shuffled(index, labels):
            self.lose_identity(
                "its batches have the labels of the samples that were drawn, in another order: its "
                "collate_fn shuffles; do that in the sampler"
            )

    def _may_be_used(self, loader: DataLoader[Any]) -> bool:
        """Whether another loader over the same data may be the one that is trained on."""
        return not self._is_itself_used and _no_identity(loader) is None

    def _index(self, drawn: Any) -> Tensor | None:
        if self.no_identity is not None or drawn is None:
            return None
        try:
            given = np.asarray(drawn)  # much faster than torch for a list
            is_flat = given.ndim < 2 or given.size == len(given)
            # A batch by Poisson sampling may be empty, and says nothing then.
            if given.size and (given.dtype.kind not in "iu" or not is_flat):
                raise TypeError(f"got {given.dtype} of shape {given.shape}")
        except (TypeError, ValueError, RuntimeError):
            self.lose_identity("its sampler does not give integer indices")
            return None
        index = given.reshape(-1).astype(np.int64, copy=True)
        # As unsigned numbers, negative ones are beyond any size: one look at the batch is enough.
        if index.size and index.view(np.uint64).max() >= self._size:
            index[(index < 0) | (index >= self._size)] = -1
            self.not_followed = (
                f"its sampler gives indices outside of the {self._size} samples that its data set "
                "had at the start"
            )
        return torch.from_numpy(index)  # on the CPU whatever the default device

    def _traversal_ends(self, traversal: Traversal) -> None:
        traversal.has_run_out = True
        if not traversal.handed_out and not traversal.is_elsewhere:
            self.others.had_no_batch()
        # A thread that draws ahead may come to the end before the step with the last batch.
        draws_ahead = threading.get_ident() != self._training_thread
        awaits_step = draws_ahead and self._last_used is not self._stepped_with
        if not (awaits_step or self.waiting.has_waiting(traversal)):
            self._finish(traversal)

    def _finish(self, traversal: Traversal) -> None:
        self.waiting.drop(traversal)
        if traversal is not self._traversal or traversal is self._complete:
            return
        self._complete = traversal
        if self.others.may_end_now():
            self._end(traversal)

    def _end(self, traversal: Traversal) -> None:
        traversal.is_over = True
        if self.is_open:
            self.is_open = False
            self._on_epoch_end()


class _OtherLoader:
    """Listens to other loaders over the same data, as long as nobody trains on the train loader."""

    def __init__(self, recorder: LoaderRecorder) -> None:
        self.traversal_ends = recorder.traversal_ends
        self._recorder = recorder

    def batch_begins(self, traversal: Traversal, number: int, drawn: Any, batch: Any) -> None:
        """Tell of a batch."""
        traversal.is_elsewhere = True
        self._recorder.batch_begins(traversal, number, drawn, batch)

    def lose_identity(self, reason: str) -> None:
        """It is not known whether anyone trains on it: what no batch was seen of is said later."""


def _no_identity(loader: DataLoader[Any]) -> str | None:
    if isinstance(loader.dataset, IterableDataset):
        return "its data set is an IterableDataset"
    if length_of(loader.dataset, len) is None:
        return "its data set has no length"
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        return "it was made with in_order=False"
    if not private.makes_iterators(loader):
        return f"torch {torch.__version__} makes its iterators in a way that can't be followed"
    return None
