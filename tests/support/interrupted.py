"""Errors and interruptions at any line, as by a fault, by Ctrl-C or by a signal handler."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prioritymonitor

PACKAGE = str(Path(prioritymonitor.__file__).parent)


class Interruption(BaseException):
    """Comes at a line of the package."""


class Interrupter:
    """Within it, `act` is called where the `line`-th line of the package runs, from 1 on.

    Args:
        line: The line.
        act: Raises something; whatever it is comes out of that line.
        leaving_out: Ends of the names of files whose lines don't count.
    """

    def __init__(
        self, line: int, act: Callable[[], object], leaving_out: tuple[str, ...] = ()
    ) -> None:
        self._left = line
        self._act = act
        self._leaving_out = leaving_out
        self._before: Any = None

    @property
    def acted(self) -> bool:
        """Whether so many lines ran."""
        return self._left <= 0

    def __enter__(self) -> Interrupter:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def _trace(self, *called: Any) -> Any:
        # Not by name: a function that gets the frame it interrupts looks like a signal handler.
        frame, event, _ = called
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE) or file.endswith(self._leaving_out):
            return None
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self._act()
        return self._trace


def raising(error: type[BaseException]) -> Callable[[], object]:
    """Raises it, as a line does that goes wrong."""

    def act() -> None:
        raise error

    return act


def interrupted_at(
    line: int, function: Callable[[], Any], error: type[BaseException] = Interruption
) -> bool:
    """Call a function and raise at the `line`-th line of the package that runs, from 1 on.

    Returns:
        Whether so many lines ran; False means that the call went through.
    """
    with Interrupter(line, raising(error)) as interrupter, contextlib.suppress(error):
        function()
    return interrupter.acted


def interrupted_everywhere(
    function: Callable[[], Any], error: type[BaseException] = Interruption, stride: int = 1
) -> Iterator[int]:
    """Call a function again and again, interrupted one line later each time, until it goes through.

    Args:
        function: The function.
        error: What is raised.
        stride: Lines from one interruption to the next.

    Yields:
        The number of the line, after each interruption.
    """
    for line in itertools.count(1, stride):
        if not interrupted_at(line, function, error):
            return
        yield line
