"""TensorBoard scalars: one event per report, all under `prioritymonitor/`, on one step axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

PREFIX = "prioritymonitor/"


class EventWriter:
    """Writes scalars and texts; a failure turns writing off and never reaches the training loop.

    Args:
        log_dir: Folder of the run; a writer is opened there with the first report.
        writer: The user's own writer instead: a `SummaryWriter`, or anything with its
            `add_scalar(tag, value, step)`. It is flushed and never closed.
        on_error: Told once about the first failure.
    """

    def __init__(
        self, log_dir: Path | None, writer: Any, on_error: Callable[[Exception], None]
    ) -> None:
        self._log_dir = log_dir
        self._writer = writer
        self._is_own = writer is None
        self._on_error = on_error
        self._is_on = log_dir is not None or writer is not None
        self._purge_step: int | None = None

    def resume_at(self, step: int) -> None:
        """Hide what an interrupted run wrote to the same folder after this step."""
        self._purge_step = step + 1

    def scalars(self, values: Mapping[str, float], step: int, time: float | None = None) -> None:
        """Write one report as one event; values that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        self._try(lambda writer: _add(writer, finite, step, time))

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text, where the writer knows texts."""
        self._try(
            lambda writer: hasattr(writer, "add_text") and writer.add_text(PREFIX + tag, text, step)
        )

    def flush(self) -> None:
        """Bring everything to the disk."""
        if self._writer is not None:
            self._try(lambda writer: hasattr(writer, "flush") and writer.flush())

    def close(self) -> None:
        """Flush, and close a writer of our own."""
        self.flush()
        if self._is_own and self._writer is not None:
            self._try(lambda writer: writer.close())
            self._writer = None
        self._is_on = False

    def _try(self, write: Callable[[Any], Any]) -> None:
        if not self._is_on:
            return
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._log_dir), purge_step=self._purge_step)
            write(self._writer)
        except Exception as error:
            self._is_on = False
            self._on_error(error)


def _add(writer: Any, values: Mapping[str, float], step: int, time: float | None) -> None:
    events = getattr(writer, "file_writer", None)
    if events is None:
        for tag, value in values.items():
            writer.add_scalar(PREFIX + tag, value, step)
        return
    entries = [Summary.Value(tag=PREFIX + tag, simple_value=v) for tag, v in values.items()]
    events.add_summary(Summary(value=entries), step, time)
