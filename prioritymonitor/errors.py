"""What `prioritymonitor` raises, and what becomes of errors while it measures.

PriorityMonitorError
├── ArgumentValueError  (also a ValueError)   a value that cannot be used
└── ArgumentTypeError   (also a TypeError)    a thing of the wrong kind

Only wrong arguments raise. A failure while measuring is said and ends the smallest part; what the
user's own code or a signal handler raises goes where it was meant to go.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from types import CodeType, FunctionType, TracebackType
from typing import Any

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE}


class PriorityMonitorError(Exception):
    """Base of every error that `prioritymonitor` raises."""

    def __str__(self) -> str:
        return shown(super().__str__())


class ArgumentValueError(PriorityMonitorError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ArgumentTypeError(PriorityMonitorError, TypeError):
    """An argument is of a type that cannot be used."""


class contained:
    """Gives a failure of ours to `on_error`; whatever else is raised inside goes on its way.

    No generator: what a signal handler raises while one is being closed is lost.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception) or is_from_signal(error):
            return False
        self._on_error(error)
        return True


def shown(text: str) -> str:
    """The same with what a terminal obeys written out: names and errors are of anyone's making."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def described(error: BaseException) -> str:
    """An error in the words of its last line in a traceback, one of ours in its own."""
    return (
        str(error)
        if isinstance(error, PriorityMonitorError)
        else f"{type(error).__name__}: {error}"
    )


def may_pass(error: Exception) -> bool:
    """True for a failure that may be over the next time: no memory left, a full disk."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    # torch's own error for an accelerator, and its words for the host, without importing torch.
    is_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torch


def is_from_signal(error: BaseException) -> bool:
    """True if a signal handler raised it: a time-out, a notice of pre-emption, a dead worker.

    A handler runs between two lines of whatever is running, so its exception comes out of our
    code without being ours.
    """
    handlers = _codes_of_handlers()
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code in handlers or _is_handler(frame):
            return True
        trace = trace.tb_next
    return False


def _is_handler(frame: Any) -> bool:
    """Whether a function was called with a signal and the frame that it interrupts.

    So a handler is known that has put another in its place before it raises.
    """
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount]
    return frame.f_back is not None and any(
        frame.f_locals.get(name) is frame.f_back for name in names
    )


def _codes_of_handlers() -> set[CodeType]:
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = [_code_of(handler) for handler in handlers if callable(handler)]
    return {code for code in codes if code is not None}


def _code_of(handler: Any) -> CodeType | None:
    """The code that a callable runs first: a function, a method, a partial, an object."""
    for inner in ("func", "__func__", "__wrapped__"):
        handler = getattr(handler, inner, handler)
    if isinstance(handler, FunctionType):
        return handler.__code__
    return getattr(vars(type(handler)).get("__call__"), "__code__", None)
