"""Other ranks: the only module that talks to them.

They meet in the store through which they found each other, not in a collective. A collective waits
for ever for a rank that has no monitor, or takes the bytes of one of the user's own; it would need
a tensor on the device that the backend knows, and reading it would wait for the device. The store
is the host's business alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist

_PATIENCE = timedelta(minutes=5)
"""How long to wait for a rank that is late: one of them may validate alone. Ranks that have no
monitor, or none any more, are known at once."""

_OFF = json.dumps(None)


class Ranks(Protocol):
    """Those that train the same model together."""

    def largest(self, step: int, values: Sequence[float]) -> list[float] | None:
        """The largest value of any rank, at each place; the same on all ranks.

        Args:
            step: Optimizer steps made; all ranks ask at the same ones.
            values: What this rank has to say, as many values on each rank.

        Returns:
            None if a rank is missing, then and at all later steps, and for all ranks.
        """

    def leave(self, step: int) -> None:
        """Take part no more; tells the others, who would ask next at this step."""


class Alone:
    """A process that trains by itself."""

    def largest(self, step: int, values: Sequence[float]) -> list[float] | None:
        """Its own values."""
        return list(values)

    def leave(self, step: int) -> None:
        """Nobody is to be told."""


class Together:
    """The ranks of a process group.

    Rank 0 collects what all have to say and gives the verdict; the first verdict in the store
    stands. So a rank that waited in vain and one that was late come to the same one.

    Args:
        store: The store of the process group.
        rank: Number of this process, from 0.
        count: How many there are.
        say: Tells the user about a problem.
        patience: How long to wait for another rank.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        count: int,
        say: Callable[[str], None],
        patience: timedelta = _PATIENCE,
    ) -> None:
        self._store = store
        self._rank = rank
        self._count = count
        self._say = say
        self._patience = patience
        self._is_on = True
        # The monitors that a process makes are numbered, and the n-th of each belong together.
        monitor = store.add(f"prioritymonitor/monitors_of/{rank}", 1)
        self._name = f"prioritymonitor/{monitor}"
        store.add(f"{self._name}/present", 1)

    def largest(self, step: int, values: Sequence[float]) -> list[float] | None:
        """See `Ranks`."""
        if not self._is_on:
            return None
        try:
            verdict = self._verdict(f"{self._name}/{step}", json.dumps(list(values)))
        except Exception as error:
            verdict = None
            self._say(f"the store of the process group failed: {type(error).__name__}: {error}")
        if verdict is None:
            self._is_on = False
            self._say(
                'not every rank takes part in every="auto": on one the monitor was not made, has '
                "failed or was closed, or it is minutes late. The interval between measured steps "
                "stays as it is on all ranks"
            )
        return verdict

    def _verdict(self, key: str, values: str) -> list[float] | None:
        own = f"{key}/{self._rank}"
        self._store.set(own, values)
        proposal = _OFF  # counts only where nobody gave a verdict in time
        if self._store.add(f"{self._name}/present", 0) >= self._count:
            if self._rank == 0:
                proposal = self._collected(key)
            else:
                self._wait_for([key])
        verdict: list[float] | None = json.loads(self._store.compare_set(key, "", proposal))
        self._store.delete_key(own)  # it was read, or nobody will
        return verdict

    def _collected(self, key: str) -> str:
        keys = [f"{key}/{rank}" for rank in range(self._count)]
        if not self._wait_for(keys):
            return _OFF
        said = [json.loads(self._store.get(each)) for each in keys]
        if None in said:
            return _OFF
        return json.dumps([max(column) for column in zip(*said, strict=True)])

    def _wait_for(self, keys: list[str]) -> bool:
        try:
            self._store.wait(keys, self._patience)
        except RuntimeError:  # DistStoreError where torch is new enough
            return False
        return True

    def leave(self, step: int) -> None:
        """See `Ranks`."""
        if not self._is_on:
            return
        self._is_on = False
        key = f"{self._name}/{step}"
        try:
            self._store.set(f"{key}/{self._rank}", _OFF)
            if self._rank == 0:
                self._store.compare_set(key, "", _OFF)
        except Exception:  # the run is over, or the others notice by themselves
            return


class Unreachable:
    """Ranks that can't be asked."""

    def largest(self, step: int, values: Sequence[float]) -> list[float] | None:
        """None: there is no agreement."""
        return None

    def leave(self, step: int) -> None:
        """Nobody can be told."""


def meet(say: Callable[[str], None]) -> Ranks:
    """The ranks that train with this process; to be called when training has begun."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return Alone()
    try:
        # Not public, but there since torch 1.8, and what others who need the store take.
        store = dist.distributed_c10d._get_default_store()
        return Together(store, dist.get_rank(), dist.get_world_size(), say)
    except Exception as error:
        say(
            'every="auto" needs the store of the process group, so the interval between measured '
            f"steps stays as it is: {type(error).__name__}: {error}"
        )
        return Unreachable()
