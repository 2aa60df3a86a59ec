"""Everything that a run reports, to the log, to its folder and to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import contained, may_pass
from ..records import Columns, Decision
from .folder import RunFolder
from .log import Log
from .sink import RunInfo, Sink
from .tensorboard import EventWriter


def all_sinks(log: Log, folder: RunFolder | None, writer: Any) -> list[Sink]:
    """The table of sinks, in the order in which they are told. A new one is a line here.

    Args:
        log: The log.
        folder: The folder of the run, to which others may write as well; None: nothing is written
            to a disk.
        writer: A `SummaryWriter` of the user's, instead of one in the folder.
    """
    table: list[Sink | None] = [
        log,
        folder,
        EventWriter(lambda: folder.path, lambda: folder.has_events) if folder else None,
        EventWriter(lambda: None, writer=writer) if writer is not None else None,
    ]
    return [sink for sink in table if sink is not None]


class Sinks:
    """Tells each sink; one that fails ends alone.

    Args:
        sinks: The sinks.
        say: Says a problem to the user, the first time only.
        speaks: Whether this process is the one, of several ranks, that reports.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        say: Callable[[str], None],
        speaks: Callable[[], bool] = lambda: True,
    ) -> None:
        self._sinks = list(sinks)
        self._speaks = speaks
        self._say = say
        self._is_last = False

    def begin(self, run: RunInfo) -> None:
        """The first step is about to be reported."""
        if not self._speaks():
            self._sinks.clear()
        self._tell(lambda sink: sink.begin(run))

    def step(self, values: Mapping[str, float], step: int, time: float) -> None:
        """A step was measured."""
        self._tell(lambda sink: sink.step(values, step, time))

    def epoch(self, record: Mapping[str, Any], samples: Callable[[], Columns]) -> None:
        """An epoch ended."""
        self._tell(lambda sink: sink.epoch(record, samples))

    def stop(self, decision: Decision, step: int, suspects: Callable[[], Columns]) -> None:
        """Training should stop."""
        self._tell(lambda sink: sink.stop(decision, step, suspects))

    def resume_at(self, step: int, samples: Callable[[], Columns]) -> None:
        """A state was loaded."""
        self._tell(lambda sink: sink.resume_at(step, samples))

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._tell(lambda sink: sink.flush())

    def close(self, suspects: Callable[[], Columns]) -> None:
        """Write what is left, and let go of every sink."""
        self._is_last = True
        self._tell(lambda sink: sink.close(suspects))
        self._sinks.clear()

    def _tell(self, report: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            with contained(partial(self._failed, sink)):
                report(sink)

    def _failed(self, sink: Sink, error: Exception) -> None:
        if self._is_last or not may_pass(error):
            self._sinks.remove(sink)
            problem = _of(error, error)
            self._say(f"writing to {sink.name} is off, measuring and training go on: {problem}")
            return
        problem = _of(error, getattr(error, "strerror", None) or error)  # the same at each report
        self._say(f"writing to {sink.name} failed and is tried again: {problem}")
        with contained(lambda _: None):
            sink.recover()


def _of(error: Exception, problem: object) -> str:
    return f"{type(error).__name__}: {problem}"
