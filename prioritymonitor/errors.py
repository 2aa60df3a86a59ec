"""What `prioritymonitor` raises. Only wrong arguments raise; a failure during training is logged.

PriorityMonitorError
├── ArgumentValueError  (also a ValueError)   a value that cannot be used
└── ArgumentTypeError   (also a TypeError)    a thing of the wrong kind
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PriorityMonitorError(Exception):
    """Base of every error that `prioritymonitor` raises."""


class ArgumentValueError(PriorityMonitorError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ArgumentTypeError(PriorityMonitorError, TypeError):
    """An argument is of a type that cannot be used."""


@contextmanager
def contained(on_error: Callable[[Exception], None]) -> Iterator[None]:
    """Keep a failure of ours from the training loop.

    Args:
        on_error: Told about what was raised inside. What it raises itself goes through.
    """
    try:
        yield
    except Exception as error:
        on_error(error)
