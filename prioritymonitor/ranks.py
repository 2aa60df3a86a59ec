"""Other ranks: the only module that talks to them.

They meet in the store through which the processes found each other: a collective of the user's
group would wait for ever for a rank that has no monitor, or take the bytes of one of the user's
own. Only those who came exchange data, over a group of their own on the host, and what they have
exchanged counts only if all of them got it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .connections import group_of
from .errors import PriorityMonitorError, described

PATIENCE = timedelta(seconds=60)
"""How long to wait for a rank that is late. In a data-parallel run none is late by more than a
step, unless it has gone."""

_FIRST_PAUSE, _LONGEST_PAUSE, _LOOKS = 0.0005, 0.05, 2_000
"""Seconds from one look at the store to the next, and how many looks all ranks take in a second:
the user's own collectives may need the store as well, and it answers one after the other."""

_CLOSED = "closed"
"""What a rank says on leaving that closes its monitor."""

_Result = TypeVar("_Result")


class OutOfTouch(PriorityMonitorError):
    """Ranks can't know the same any more.

    Args:
        message: Which of them is to blame.
        is_untold: Whether the first rank can't know it.
    """

    def __init__(self, message: str, is_untold: bool = False) -> None:
        super().__init__(message)
        self.is_untold = is_untold


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
        self._number = store.add(_monitors_of(rank), 1)
        self._name = f"prioritymonitor/{self._number}"
        self._asked = self._epochs = 0
        self._group: Any = None
        self._group_members: list[int] = []
        self._old_keys: list[str] = []  # for this rank to delete
        self._departures: list[tuple[int, str]] = []
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
            self._come_together(f"{self._name}/{name}/begin")
            try:
                result = exchange()
            except RuntimeError:
                self._wait_for_the_end(began)
                raise
            self._meet(f"{self._name}/{name}/end", self.members)
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
        self._come_together(f"{self._name}/step/{self._asked}")
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
        keys = [f"{self._epoch_key}/{batches}", self._epoch_key]
        for key in keys:
            self._store.add(key, 1)
        self._old_keys += keys if self.rank == self.members[0] else []

    def have_as_many(self, batches: int | None) -> bool:
        """Whether no rank is known to have another number of batches in this epoch.

        Those that had fewer would come too early to a meeting at its end, and the others could not
        come: they may need them in a collective of the user's.
        """
        begun = self._count(self._epoch_key)
        return batches is not None and self._count(f"{self._epoch_key}/{batches}") >= begun

    def of_first(self, name: str, own: str) -> str:
        """What the first rank has of something, once it has told; nobody is waited for."""
        key = f"{self._name}/of_first/{name}"
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
            number = self._store.add(f"{self._name}/left", 1)
            said = json.dumps([self.rank, _CLOSED if why is None else why])
            self._store.set(f"{self._name}/left/{number}", said)
        except RuntimeError:  # the run is over, and nobody asks
            return
        finally:
            self._group = None

    @property
    def _epoch_key(self) -> str:
        return f"{self._name}/begun/{self._epochs}"

    def _wait_for_the_end(self, began: float) -> None:
        """A rank is gone, and whoever has started this one will end it as well.

        Until then nothing is concluded: it might be saved, and a resumed run would go on with it.

        Args:
            began: When the others were first waited for, by the clock that only goes forward.
        """
        until = began + self._patience.total_seconds()
        while time.monotonic() < until and not self._count(f"{self._name}/left"):
            time.sleep(_LONGEST_PAUSE)

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        own = tensor.detach().to("cpu", copy=True).contiguous()
        if self._group is not None:
            self._group.allreduce([own], operation).wait()
        return own

    def _come_together(self, name: str) -> None:
        """Meet, and have a group of those who came, made by them alone."""
        before, self.members = self.members, self._meet(name, self.members)
        members = self.members
        if members == before:
            self._tidy(name)
        if members == self._group_members:
            return
        self._group, self._group_members = None, members
        if len(members) > 1:
            name = f"{self._name}/group"
            self._group = group_of(self._store, name, members, self.rank, self._patience)

    def _tidy(self, name: str) -> None:
        """All have come here, so none will look again at the meetings before."""
        kept = (f"{name}/", f"{self._epoch_key}/")
        for key in self._old_keys:
            if not f"{key}/".startswith(kept):
                self._store.delete_key(key)
        self._old_keys = [key for key in self._old_keys if f"{key}/".startswith(kept)]

    def _meet(self, name: str, expected: list[int]) -> list[int]:
        """Wait for the others, and agree on who came: the first to go on says it for all.

        Raises:
            OutOfTouch: They have gone on without this rank, or one is missing whose monitor is in
                use: it would not stop with the others.
        """
        self._store.set(f"{name}/{self.rank}", "here")
        is_last = self._store.add(f"{name}/count", 1) >= len(expected)
        until, pause = time.monotonic() + self._patience.total_seconds(), _FIRST_PAUSE
        while not is_last and self._is_incomplete(name, expected) and time.monotonic() < until:
            time.sleep(pause)
            pause = min(2 * pause, max(_LONGEST_PAUSE, len(expected) / _LOOKS))
        is_said = is_last or self._store.check([f"{name}/came"])
        came = expected if is_said else self._here(name, expected)
        said = json.dumps([came, self._why_missing(expected, came)])
        came, why = json.loads(self._store.compare_set(f"{name}/came", "", said))
        shared = ("count", "came") if self.rank == expected[0] else ()
        self._old_keys += [f"{name}/{what}" for what in (self.rank, *shared)]
        if self.rank not in came:
            raise OutOfTouch(f"{self._late(self.rank)}, and the others have gone on", True)
        if why is not None:
            raise OutOfTouch(why, is_untold=0 not in came and came[0] == self.rank)
        return [*came]

    def _is_incomplete(self, name: str, expected: list[int]) -> bool:
        """Whether to wait on; the last to come says that they are complete."""
        if self._store.check([f"{name}/came"]):
            return False
        gone = self._gone().keys() & {*expected}
        if not gone or self._count(f"{name}/count") + len(gone) < len(expected):
            return True
        return not self._store.check([f"{name}/{rank}" for rank in expected if rank not in gone])

    def _here(self, name: str, ranks: list[int]) -> list[int]:
        """Those of some ranks that have come, by few questions where few are missing."""
        if self._store.check([f"{name}/{rank}" for rank in ranks]):
            return ranks
        half = len(ranks) // 2
        return self._here(name, ranks[:half]) + self._here(name, ranks[half:]) if half else []

    def _gone(self) -> dict[int, str]:
        """Why ranks have left that have."""
        for number in range(len(self._departures) + 1, self._count(f"{self._name}/left") + 1):
            key = f"{self._name}/left/{number}"
            if not self._store.check([key]):
                break  # it is just about to say why
            self._departures.append(json.loads(self._store.get(key)))
        return dict(self._departures)

    def _why_missing(self, expected: list[int], came: list[int]) -> str | None:
        """Of those missing, what is wrong with one of them; None if they may be missing."""
        gone = self._gone() if len(came) < len(expected) else {}
        for rank in (rank for rank in expected if rank not in came):
            if rank in gone:
                if gone[rank] != _CLOSED:
                    return f"on rank {rank} {gone[rank]}"
            elif self._count(_monitors_of(rank)) >= self._number:
                return self._late(rank)
        return None

    def _late(self, rank: int) -> str:
        return f"rank {rank} was late by more than {self._patience.total_seconds():g} s"

    def _count(self, key: str) -> int:
        return int(self._store.add(key, 0))


def _monitors_of(rank: int) -> str:
    return f"prioritymonitor/monitors_of/{rank}"
