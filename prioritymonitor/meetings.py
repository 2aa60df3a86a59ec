"""Where ranks meet: in the store through which their processes found each other.

It tells who is there and who has gone without a collective, in which a rank without a monitor would
be waited for.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

from .errors import PriorityMonitorError

_FIRST_PAUSE, _LONGEST_PAUSE, _LOOKS = 0.0005, 0.05, 2_000
"""Seconds from one look at the store to the next, and how many looks all ranks take in a second:
the user's own collectives may need the store as well, and it answers one after the other."""

_CLOSED = "closed"
"""What a rank says on leaving that closes its monitor."""


class OutOfTouch(PriorityMonitorError):
    """Ranks can't know the same any more.

    Args:
        message: Which of them is to blame.
        is_untold: Whether the first rank can't know it.
    """

    def __init__(self, message: str, is_untold: bool = False) -> None:
        super().__init__(message)
        self.is_untold = is_untold


class Meetings:
    """The meetings of the ranks that have a monitor.

    Args:
        store: The store of the process group.
        rank: Number of this process, from 0.
        patience: How long to wait for one that is late.
    """

    def __init__(self, store: Any, rank: int, patience: timedelta) -> None:
        self._store = store
        self._rank = rank
        self._patience = patience.total_seconds()
        # The monitors that a process makes are numbered, and the n-th of each belong together.
        self._number = store.add(_monitors_of(rank), 1)
        self.name = f"prioritymonitor/{self._number}"
        """Of these monitors; all keys begin with it."""
        self._to_delete: list[str] = []
        self._departures: list[tuple[int, str]] = []

    def meet(self, name: str, expected: list[int]) -> list[int]:
        """Wait for the others, and agree on who came: the first to go on says it for all.

        Args:
            name: Of the occasion, the same on each rank, and another each time.
            expected: Numbers of the ranks, sorted.

        Raises:
            OutOfTouch: They have gone on without this rank, or one is missing whose monitor is in
                use: it would not stop with the others.
        """
        name = f"{self.name}/{name}"
        self._store.set(f"{name}/{self._rank}", "here")
        is_last = self._store.add(f"{name}/count", 1) >= len(expected)
        until, pause = time.monotonic() + self._patience, _FIRST_PAUSE
        while not is_last and self._is_incomplete(name, expected) and time.monotonic() < until:
            time.sleep(pause)
            pause = min(2 * pause, max(_LONGEST_PAUSE, len(expected) / _LOOKS))
        is_said = is_last or self._store.check([f"{name}/came"])
        came = expected if is_said else self._here(name, expected)
        said = json.dumps([came, self._why_missing(expected, came)])
        came, why = json.loads(self._store.compare_set(f"{name}/came", "", said))
        shared = ("count", "came") if self._rank == expected[0] else ()
        self._to_delete += [f"{name}/{what}" for what in (self._rank, *shared)]
        if self._rank not in came:
            raise OutOfTouch(f"{self._late(self._rank)}, and the others have gone on", True)
        if why is not None:
            raise OutOfTouch(why, is_untold=0 not in came and came[0] == self._rank)
        return [*came]

    def add(self, key: str, *, for_all: bool) -> None:
        """Count one more.

        Args:
            key: What is counted.
            for_all: Whether this rank deletes it later, for all of them.
        """
        self._store.add(f"{self.name}/{key}", 1)
        self._to_delete += [f"{self.name}/{key}"] if for_all else []

    def count(self, key: str) -> int:
        """How many were counted."""
        return int(self._store.add(f"{self.name}/{key}", 0))

    def tidy(self, *kept: str) -> None:
        """Delete what no rank will look at again.

        Args:
            kept: Names of occasions, and keys, that may still be looked at.
        """
        names = tuple(f"{self.name}/{name}/" for name in kept)
        for key in self._to_delete:
            if not f"{key}/".startswith(names):
                self._store.delete_key(key)
        self._to_delete = [key for key in self._to_delete if f"{key}/".startswith(names)]

    def leave(self, why: str | None) -> None:
        """This rank measures no more, and nobody waits for it.

        Args:
            why: None if its monitor was closed.
        """
        number = self._store.add(f"{self.name}/left", 1)
        said = json.dumps([self._rank, _CLOSED if why is None else why])
        self._store.set(f"{self.name}/left/{number}", said)

    def wait_for_departure(self, began: float) -> None:
        """A rank is gone, and whoever has started this one will end it as well.

        Until then nothing is concluded: it might be saved, and a resumed run would go on with it.

        Args:
            began: When the others were first waited for, by the clock that only goes forward.
        """
        while time.monotonic() < began + self._patience and not self.count("left"):
            time.sleep(_LONGEST_PAUSE)

    def _is_incomplete(self, name: str, expected: list[int]) -> bool:
        """Whether to wait on; the last to come says that they are complete."""
        if self._store.check([f"{name}/came"]):
            return False
        gone = self._gone().keys() & {*expected}
        if not gone or int(self._store.add(f"{name}/count", 0)) + len(gone) < len(expected):
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
        for number in range(len(self._departures) + 1, self.count("left") + 1):
            key = f"{self.name}/left/{number}"
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
            elif int(self._store.add(_monitors_of(rank), 0)) >= self._number:
                return self._late(rank)
        return None

    def _late(self, rank: int) -> str:
        return f"rank {rank} was late by more than {self._patience:g} s"


def _monitors_of(rank: int) -> str:
    return f"prioritymonitor/monitors_of/{rank}"
