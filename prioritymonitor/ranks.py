"""Other ranks: the only module that talks to them.

They meet in the store of the process group: a collective of the user's group would wait for ever
for a rank that has no monitor, or take the bytes of one of the user's own. Only those who came
exchange data, over a group of their own on the host, and what they have exchanged counts only if
all of them got it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .connections import group_of
from .errors import PriorityMonitorError, described
from .meetings import Meetings, OutOfTouch

PATIENCE = timedelta(seconds=60)
"""How long to wait for a rank that is late. In a data-parallel run none is late by more than a
step, unless it has gone."""

_Result = TypeVar("_Result")


def is_alone() -> bool:
    """True for a process that trains by itself."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2


def is_first() -> bool:
    """Whether this process is the one of all ranks that writes and logs."""
    return is_alone() or dist.get_rank() == 0


class Ranks:
    """The ranks that have a monitor, and measure together.

    Args:
        store: The store of the process group.
        rank: Number of this process, from 0.
        count: How many there are.
        patience: How long to wait for one that is late.
    """

    def __init__(
        self, store: Any, rank: int, count: int, patience: timedelta | None = None
    ) -> None:
        self.rank = rank
        self.members = [*range(count)]
        """Those who came to the last meeting."""
        self._store = store
        self._patience = patience if patience is not None else PATIENCE
        self._meetings = Meetings(store, rank, self._patience)
        self._asked = self._epochs = 0
        self._group: Any = None
        self._group_members: list[int] = []
        self._out_of_touch: OutOfTouch | None = None

    @classmethod
    def of_process(cls) -> Ranks | None:
        """Those of this process in its default group; None for a process alone."""
        if is_alone():
            return None
        # Not public, but there since torch 1.8, and what others who need the store take.
        store = dist.distributed_c10d._get_default_store()
        return cls(store, dist.get_rank(), dist.get_world_size())

    def together(self, name: str, exchange: Callable[[], _Result]) -> _Result:
        """Exchange something with all who come; it holds for all of them, or for none.

        Args:
            name: Of the occasion, the same on each rank, and another each time.
            exchange: Calls `total`, `least` and `first_rows`, in the same order on each rank.

        Raises:
            OutOfTouch: This rank came late, or another one is missing whose monitor is in use; from
                here on they can't know the same.
        """
        if self._out_of_touch is not None:
            raise self._out_of_touch
        try:
            began = time.monotonic()
            self._come_together(f"{name}/begin")
            try:
                result = exchange()
            except RuntimeError:
                self._meetings.wait_for_departure(began)
                raise
            self._meetings.meet(f"{name}/end", self.members)
        except RuntimeError as error:  # the store is gone, or a rank in the middle of it
            self._out_of_touch = OutOfTouch(f"another rank was lost ({described(error)})", True)
            raise self._out_of_touch from error
        except OutOfTouch as error:
            self._out_of_touch = error
            raise
        return result

    def in_step(self, exchange: Callable[[], _Result]) -> _Result:
        """Exchange something that no judgement hangs on, in the middle of an epoch.

        Args:
            exchange: As for `together`. Each rank must ask as often as the others.

        Raises:
            OutOfTouch: A rank doesn't ask; no rank is given anything.
            RuntimeError: The connection is lost.
        """
        self._asked += 1
        self._come_together(f"step/{self._asked}")
        return exchange()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on the host."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def least(self, tensor: Tensor) -> Tensor:
        """The least over the ranks, on the host."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def first_rows(self, own: Tensor, most: int) -> Tensor:
        """The first rows of all ranks, one rank's after the other's, on the host.

        Args:
            own: `[rows, size]`, as many as this rank has.
            most: So many rows at most.

        Raises:
            PriorityMonitorError: Rows of ranks differ in size.
        """
        place = self.members.index(self.rank)
        shapes = torch.zeros(len(self.members), 2, dtype=torch.int64, device="cpu")
        shapes[place] = torch.tensor(own.shape)
        counts, sizes = self.total(shapes).unbind(1)
        if bool((sizes != sizes[0]).any()):
            raise PriorityMonitorError(f"what ranks look at differs in size: {sizes.tolist()}")
        rows = own.new_zeros(min(int(counts.sum()), most), own.shape[1], device="cpu")
        begin = int(counts[:place].sum())
        rows[begin : begin + len(own)] = own[: max(most - begin, 0)].cpu()
        return self.total(rows)

    def epoch_begins(self, batches: int | None) -> None:
        """Tell the others how many batches this rank has in the epoch that begins."""
        self._epochs += 1
        is_first = self.rank == self.members[0]
        self._meetings.add(f"{self._epoch_key}/{batches}", for_all=is_first)
        self._meetings.add(self._epoch_key, for_all=is_first)

    def have_as_many(self, batches: int | None) -> bool:
        """Whether no rank is known to have another number of batches in this epoch.

        Those that had fewer would come too early to a meeting at its end, and the others could not
        come: they may need them in a collective of the user's.
        """
        begun = self._meetings.count(self._epoch_key)
        return batches is not None and self._meetings.count(f"{self._epoch_key}/{batches}") >= begun

    def of_first(self, name: str, own: str) -> str:
        """What the first rank has of something, once it has told; nobody is waited for."""
        key = f"{self._meetings.name}/of_first/{name}"
        with contextlib.suppress(RuntimeError):  # the run is over
            if self.rank == 0:
                self._store.set(key, own)
            elif self._store.check([key]):
                return str(self._store.get(key).decode())
        return own

    def leave(self, why: str | None) -> None:
        """This rank measures no more, and nobody waits for it.

        Args:
            why: None if its monitor was closed.
        """
        try:
            self._meetings.leave(why)
        except RuntimeError:  # the run is over, and nobody asks
            return
        finally:
            self._group = None

    @property
    def _epoch_key(self) -> str:
        return f"begun/{self._epochs}"

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        own = tensor.detach().to("cpu", copy=True).contiguous()
        if self._group is not None:
            self._group.allreduce([own], operation).wait()
        return own

    def _come_together(self, name: str) -> None:
        """Meet, and have a group of those who came, made by them alone."""
        before, self.members = self.members, self._meetings.meet(name, self.members)
        members = self.members
        if members == before:
            self._meetings.tidy(name, self._epoch_key)  # none will look again at those before
        if members == self._group_members:
            return
        self._group, self._group_members = None, members
        if len(members) > 1:
            name = f"{self._meetings.name}/group"
            self._group = group_of(self._store, name, members, self.rank, self._patience)
