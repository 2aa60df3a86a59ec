"""TensorBoard scalars: one event per report, all under `prioritymonitor/`, on one step axis."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import Columns, Decision
from ..tags import EPOCH_SCALARS, tag_of
from .sink import RunInfo, Sink

# torch.utils.tensorboard is loaded with the first report: it takes a third of a second.

PREFIX = "prioritymonitor/"

_MOST_WAITING = 1_000
"""Reports that may not be on the disk yet; the oldest ones go when there are more."""


class EventWriter(Sink):
    """Writes scalars and texts.

    Args:
        folder: Gives the folder of the run, once there is one; a writer is opened there with the
            first report after that.
        has_events: Whether those from before an interruption may be in it.
        writer: The user's own writer instead: a `SummaryWriter`, or anything with its
            `add_scalar(tag, value, step)`. It is flushed and never closed.
    """

    name = "TensorBoard"

    def __init__(
        self,
        folder: Callable[[], Path | None],
        has_events: Callable[[], bool] = lambda: True,
        writer: Any = None,
    ) -> None:
        self._folder = folder
        self._has_events = has_events
        self._earlier: Sequence[Mapping[str, Any]] = ()
        """Records of the epochs before an interruption."""
        self._writer = writer
        self._is_own = writer is None
        self._purge_step: int | None = None
        self._described: set[str] = set()
        self._waiting: deque[tuple[int, Callable[[Any], None]]] = deque(maxlen=_MOST_WAITING)
        """Reports since the last flush, each with its step and how to write it."""
        self._written = 0
        """How many of them the writer has taken."""

    def begin(self, run: RunInfo) -> None:
        """Keep what a folder that was lost has to be told again."""
        self._earlier = run.epochs if self._is_own else ()

    def step(self, values: Mapping[str, float], step: int, time: float) -> None:
        """One event for a measured step."""
        self._report(step, lambda writer: self._add(writer, values, step, time))

    def epoch(self, record: Mapping[str, Any], samples: Callable[[], Columns]) -> None:
        """One event for a completed epoch."""
        self._report(record["step"], lambda writer: self._add_epoch(writer, record))
        self.flush()

    def stop(self, decision: Decision, step: int, suspects: Callable[[], Columns]) -> None:
        """The advice to stop, as a text where the writer knows texts."""
        tag, text = PREFIX + "decision", decision.message
        if self._is_own or hasattr(self._writer, "add_text"):
            self._report(step, lambda writer: writer.add_text(tag, text, step))
        self.flush()

    def resume_at(self, step: int, samples: Callable[[], Columns]) -> None:
        """Hide what an interrupted run wrote to the same folder after this step."""
        self.flush()
        if self._is_own:
            if self._writer is not None:
                self._writer.close()
            self._let_go()
            self._waiting.clear()
            self._purge_step = step + 1

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._write()
        if self._written == 0:
            return
        if hasattr(self._writer, "flush"):
            self._writer.flush()
        # Those of the latest step stay, for a writer that is opened anew hides whole steps.
        last, _ = self._waiting[-1]
        while self._waiting[0][0] < last:
            self._waiting.popleft()
        self._written = len(self._waiting)

    def close(self, suspects: Callable[[], Columns]) -> None:
        """Flush, and close a writer of our own."""
        self.flush()
        if self._is_own and self._writer is not None:
            self._writer.close()

    def recover(self) -> None:
        """A writer of our own that has failed once fails for good: open another with what waits."""
        if self._is_own:
            self._let_go()
            self._purge_step = self._waiting[0][0] if self._waiting else self._purge_step

    def _let_go(self) -> None:
        self._writer, self._written = None, 0
        self._described.clear()

    def _report(self, step: int, write: Callable[[Any], None]) -> None:
        if len(self._waiting) == _MOST_WAITING:
            self._written = max(self._written - 1, 0)
        self._waiting.append((step, write))
        self._write()
        if self._written == _MOST_WAITING:
            self.flush()

    def _write(self) -> None:
        if self._is_own and self._writer is None:
            self._writer = self._opened()
        while self._writer is not None and self._written < len(self._waiting):
            self._waiting[self._written][1](self._writer)
            self._written += 1

    def _opened(self) -> Any:
        """A new writer; None before there is a folder or anything to write."""
        folder = self._folder()
        if folder is None or not self._waiting:
            return None
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder), purge_step=self._purge_step)
        if not self._has_events():
            for record in self._earlier:
                self._add_epoch(writer, record)
            writer.flush()
        self._earlier = ()
        return writer

    def _add_epoch(self, writer: Any, record: Mapping[str, Any]) -> None:
        values = {
            name: float(value)
            for name, value in record.items()
            if name in EPOCH_SCALARS and value is not None
        }
        self._add(writer, values, record["step"], record.get("time"))

    def _add(self, writer: Any, values: Mapping[str, float], step: int, time: float | None) -> None:
        """Write one report; values that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        if not _is_torchs(writer):
            for tag, value in finite.items():
                writer.add_scalar(PREFIX + tag, value, step)
            return
        if writer.file_writer is None:  # it would open another file by itself
            raise ValueError("the SummaryWriter passed as writer= was closed")
        from tensorboard.compat.proto.summary_pb2 import Summary

        entries = [
            Summary.Value(tag=PREFIX + tag, simple_value=value, metadata=self._description(tag))
            for tag, value in finite.items()
        ]
        writer.file_writer.add_summary(Summary(value=entries), step, time)

    def _description(self, tag: str) -> Any:
        """What TensorBoard shows beside a chart, with the first value of a tag."""
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

        known = tag_of(tag)
        if known is None or tag in self._described:
            return None
        self._described.add(tag)
        plugin = SummaryMetadata.PluginData(plugin_name="scalars")
        return SummaryMetadata(summary_description=known.meaning, plugin_data=plugin)


def _is_torchs(writer: Any) -> bool:
    """Whether it takes a report as one event: others, tensorboardX's too, take a scalar each."""
    from torch.utils.tensorboard import SummaryWriter

    return isinstance(writer, SummaryWriter)
