"""Interruptions at any line, as by Ctrl-C or a signal handler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import prioritymonitor

PACKAGE = str(Path(prioritymonitor.__file__).parent)


class Interruption(BaseException):
    """Comes at a line of the package."""


def interrupted_at(line: int, function: Callable[[], Any]) -> bool:
    """Call a function and raise at the `line`-th line of the package that runs, from 1 on.

    Returns:
        Whether so many lines ran; False means that the call went through.
    """
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except Interruption:
        return True
    finally:
        sys.settrace(before)
    return False


def interrupted_everywhere(function: Callable[[], Any]) -> Iterator[int]:
    """Call a function again and again, interrupted one line later each time, until it goes through.

    Yields:
        The number of the line, after each interruption.
    """
    line = 1
    while interrupted_at(line, function):
        yield line
        line += 1
