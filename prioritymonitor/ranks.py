"""Other ranks: the only module that talks to them.

They meet in the store through which they found each other, not in a collective. A collective waits
for ever for a rank that has no monitor, or takes the bytes of one of the user's own; it would need
a tensor on the device that the backend knows, and reading it would wait for the device. The store
is the host's business alone.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE = timedelta(minutes=5)
"""How long to wait for a rank that is late: one of them may validate alone."""

_PRESENT, _LEFT = "present", "left"


def is_alone() -> bool:
    """True for a process that trains by itself."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2


class Presence:
    """Tells, without a collective, which ranks have a monitor and which have one no more.

    Args:
        store: The store of the process group.
        rank: Number of this process, from 0.
        count: How many there are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self._store = store
        self._rank = rank
        self._count = count
        # The monitors that a process makes are numbered, and the n-th of each belong together.
        number = store.add(f"prioritymonitor/monitors_of/{rank}", 1)
        self._name = f"prioritymonitor/{number}/rank"
        store.set(self._key(rank), _PRESENT)

    @classmethod
    def of_process(cls) -> Presence | None:
        """That of this process in its default group; None for a process alone."""
        if is_alone():
            return None
        # Not public, but there since torch 1.8, and what others who need the store take.
        store = dist.distributed_c10d._get_default_store()
        return cls(store, dist.get_rank(), dist.get_world_size())

    def missing(self, patience: timedelta = PATIENCE) -> list[int]:
        """Ranks that have left, or that did not come within the patience.

        Args:
            patience: How long to wait, once for all of them.

        Raises:
            RuntimeError: The store can't be reached.
        """
        keys = [self._key(rank) for rank in range(self._count)]
        if not self._wait_for(keys, patience):
            return [rank for rank, key in enumerate(keys) if not self._is(key, _PRESENT)]
        return [rank for rank, key in enumerate(keys) if self._is(key, _LEFT)]

    def leave(self) -> None:
        """This rank has a monitor no more; the others learn it when they ask."""
        try:
            self._store.set(self._key(self._rank), _LEFT)
        except RuntimeError:  # the run is over, and nobody asks
            return

    def _key(self, rank: int) -> str:
        return f"{self._name}/{rank}"

    def _is(self, key: str, state: str) -> bool:
        return bool(self._store.check([key])) and self._store.get(key) == state.encode()

    def _wait_for(self, keys: list[str], patience: timedelta) -> bool:
        try:
            self._store.wait(keys, patience)
        except RuntimeError:  # DistStoreError where torch is new enough
            return False
        return True
