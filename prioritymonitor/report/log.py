"""The log: one line per epoch at INFO, and each problem said once at WARNING."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..errors import contained, described, shown
from ..records import Columns, Decision
from .sink import Sink

_LOGGER = logging.getLogger("prioritymonitor")


class Log(Sink):
    """Writes to the logger `prioritymonitor`; its levels and handlers are the user's business.

    A handler that raises does not reach the training loop: what it was to write goes to stderr.

    Args:
        speaks: Whether this process is the one, of several ranks, that writes.
    """

    name = "the log"

    def __init__(self, speaks: Callable[[], bool] = lambda: True) -> None:
        self._speaks = speaks
        self._said: set[str] = set()

    def epoch(self, record: Mapping[str, Any], samples: Callable[[], Columns]) -> None:
        """One line for a completed epoch."""
        parts = [f"epoch {record['epoch']}"]
        for name, text in (
            ("train_loss", "train loss {:.4f}"),
            ("agreement", "agreement {:.1%}"),
            ("priority", "clean priority {:+.4f}"),
            ("validation", "validation {:.1%}"),
            ("noise_rate", "noise rate {:.1%}"),
            ("reason", "{}"),
            ("best_epoch", "best epoch {}"),
        ):
            if record.get(name) is not None:
                parts.append(text.format(record[name]))
        _write(logging.INFO, " · ".join(parts))

    def stop(self, decision: Decision, step: int, suspects: Callable[[], Columns]) -> None:
        """The advice to stop. A warning, so that a script without logging set up shows it too."""
        _write(logging.WARNING, f"stop after epoch {decision.epoch}: {decision.message}")

    def once(self, *messages: str, aloud: bool = False) -> None:
        """Problems, each said the first time only.

        Args:
            messages: The problems.
            aloud: Whether they are said by any rank, as the first can't know them.
        """
        for message in messages:
            if message not in self._said and (aloud or self._speaks()):
                self._said.add(message)
                _write(logging.WARNING, message)

    def cause(self, error: Exception) -> None:
        """The traceback behind a problem, for those who look at DEBUG."""
        _write(logging.DEBUG, "the cause", error)


def _write(level: int, message: str, cause: Exception | None = None) -> None:
    message = shown(message)
    with contained(partial(_print_instead, message)):
        _LOGGER.log(level, message, exc_info=cause)


def _print_instead(message: str, error: Exception) -> None:
    with contained(lambda _: None):  # a process may have no stderr
        problem = f"a handler of the log raised {described(error)}"
        print(f"prioritymonitor: {shown(problem)}; it was to write: {message}", file=sys.stderr)
