"""Other ranks: the only module that talks to them.

They meet in the store through which the processes found each other: a collective of the user's
group would wait for ever for a rank that has no monitor, or take the bytes of one of the user's
own. Only those who came exchange data, over a group of their own on the host, and what they have
exchanged counts only if all of them got it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import PriorityMonitorError, described

PATIENCE = timedelta(seconds=60)
"""How long to wait for a rank that is late. In a data-parallel run none is late by more than a
step, unless it has gone."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05
"""Seconds from one look at the store to the next."""

_Result = TypeVar("_Result")


class OutOfTouch(PriorityMonitorError):
    """Other ranks can't be reached, or have gone on without this one."""


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
        # The monitors that a process makes are numbered, and the n-th of each belong together.
        number = store.add(f"prioritymonitor/monitors_of/{rank}", 1)
        self._name = f"prioritymonitor/{number}"
        self._asked = 0
        self._group: Any = None
        self._group_members: list[int] = []

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
            exchange: Calls `total` and `least`, in the same order on each rank.

        Raises:
            OutOfTouch: This rank came late, or another one was lost on the way; from here on they
                can't know the same.
        """
        try:
            members = self._meet(f"{self._name}/{name}/begin", self.members)
            self._connect(members)
            result = exchange()
            done = self._meet(f"{self._name}/{name}/end", members)
        except RuntimeError as error:  # the store is gone, or a rank in the middle of it
            raise OutOfTouch(f"another rank was lost ({described(error)})") from error
        if done != members:
            raise OutOfTouch(f"rank {_missing(members, done)} was lost")
        self.members = members
        return result

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on the host."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def least(self, tensor: Tensor) -> Tensor:
        """The least over the ranks, on the host."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def rows_of_all(self, own: Tensor) -> Tensor:
        """Rows of all ranks, one rank's after the other's, on the host.

        For a few rows in the middle of an epoch, where nobody is absent; each must ask as often as
        the others.

        Args:
            own: `[rows, ...]`, as many as this rank has.

        Raises:
            RuntimeError: Those of another rank don't come.
        """
        self._asked += 1
        own = own.detach().to("cpu", copy=True).contiguous()
        keys = [f"{self._name}/rows/{self._asked}/{rank}" for rank in self.members]
        self._store.set(keys[self.members.index(self.rank)], own.numpy().tobytes())
        self._store.wait(keys, self._patience)
        found = [torch.frombuffer(bytearray(self._store.get(key)), dtype=own.dtype) for key in keys]
        return torch.cat(found).view(-1, *own.shape[1:])

    def leave(self) -> None:
        """This rank has a monitor no more; nobody waits for it."""
        try:
            self._store.set(self._left(self.rank), "left")
            self._store.add(f"{self._name}/left", 1)
        except RuntimeError:  # the run is over, and nobody asks
            return
        finally:
            self._group = None

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        own = tensor.detach().to("cpu", copy=True).contiguous()
        if self._group is not None:
            options = dist.AllreduceOptions()
            options.reduceOp = operation
            self._group.allreduce([own], options).wait()
        return own

    def _connect(self, members: list[int]) -> None:
        """Have a group of those who came, made by them alone."""
        if members == self._group_members:
            return
        self._group, self._group_members = None, members
        if len(members) > 1:
            name = "-".join(map(str, _runs(members)))
            store = dist.distributed_c10d.PrefixStore(f"{self._name}/group/{name}", self._store)
            place, count = members.index(self.rank), len(members)
            self._group = dist.ProcessGroupGloo(store, place, count, timeout=self._patience)

    def _meet(self, name: str, expected: list[int]) -> list[int]:
        """Wait for the others, and agree on who came: the first to go on says it for all.

        Raises:
            OutOfTouch: They have gone on without this rank.
        """
        self._store.set(f"{name}/{self.rank}", "here")
        self._store.add(f"{name}/count", 1)
        until, pause = time.monotonic() + self._patience.total_seconds(), _FIRST_PAUSE
        while self._is_incomplete(name, expected) and time.monotonic() < until:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if self._count(name) == len(expected):
            came = expected
        else:
            came = [rank for rank in expected if self._store.check([f"{name}/{rank}"])]
        agreed = json.loads(self._store.compare_set(f"{name}/came", "", json.dumps(came)))
        if self.rank not in agreed:
            raise OutOfTouch(
                f"this rank was late by more than {self._patience.total_seconds():.0f} s, and the "
                "others have gone on"
            )
        return [*agreed]

    def _is_incomplete(self, name: str, expected: list[int]) -> bool:
        if self._count(name) >= len(expected):
            return False
        if self._store.check([f"{name}/came"]):
            return False  # someone has gone on already
        if not self._count(self._name, "left"):
            return True
        waited_for = [rank for rank in expected if not self._store.check([f"{name}/{rank}"])]
        return any(not self._store.check([self._left(rank)]) for rank in waited_for)

    def _count(self, name: str, what: str = "count") -> int:
        return int(self._store.add(f"{name}/{what}", 0))

    def _left(self, rank: int) -> str:
        return f"{self._name}/left/{rank}"


def _missing(expected: list[int], came: list[int]) -> str:
    return ", ".join(str(rank) for rank in expected if rank not in came)


def _runs(members: list[int]) -> list[str]:
    """Numbers written short: 0, 1, 2, 5 as 0+3, 5+1."""
    runs: list[list[int]] = []
    for member in members:
        if runs and member == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([member, 1])
    return [f"{first}+{count}" for first, count in runs]
