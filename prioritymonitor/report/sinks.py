"""Everything that a run reports, to the log, to TensorBoard and to its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import Decision, Suspect
from .folder import write_run
from .log import Log
from .tensorboard import EventWriter


class Reports:
    """A failure to write turns writing off, and nothing else.

    Args:
        log_dir: Folder of the run; None: nothing is written to a disk.
        writer: The user's own `SummaryWriter` instead.
    """

    def __init__(self, log_dir: Path | None, writer: Any) -> None:
        self.log = Log()
        self._log_dir = log_dir
        self._events = EventWriter(log_dir, writer, self._failed)

    def step(self, values: Mapping[str, float], step: int, time: float) -> None:
        """Statistics of a measured step."""
        self._events.scalars(values, step, time)

    def epoch(self, record: Mapping[str, Any], decision: Decision) -> None:
        """Record of a completed epoch."""
        self.log.epoch(record, decision)
        numbers = {
            name: float(value)
            for name, value in record.items()
            if name != "step" and value is not None and not isinstance(value, str)
        }
        self._events.scalars(numbers, record["step"])

    def stop(self, decision: Decision, step: int) -> None:
        """The advice to stop."""
        self.log.stop(decision)
        self._events.text("decision", decision.message, step)
        self._events.flush()

    def folder(self, suspects: Sequence[Suspect], history: Sequence[Mapping[str, Any]]) -> None:
        """Files for people and other programs, in the folder of the run."""
        if self._log_dir is None:
            return
        try:
            write_run(self._log_dir, suspects, history)
        except OSError as error:
            self._failed(error)

    def resume_at(self, step: int) -> None:
        """Hide what an interrupted run wrote to the same folder after this step."""
        self._events.resume_at(step)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._events.flush()

    def close(self) -> None:
        """Flush, and close what is our own."""
        self._events.close()

    def _failed(self, error: Exception) -> None:
        self.log.once(
            f"writing is off, measuring and training go on: {type(error).__name__}: {error}"
        )
