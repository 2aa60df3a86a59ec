"""What `prioritymonitor` raises. Only wrong arguments raise; a failure during training is logged.

PriorityMonitorError
├── ArgumentValueError  (also a ValueError)   a value that cannot be used
└── ArgumentTypeError   (also a TypeError)    a thing of the wrong kind
"""

from __future__ import annotations


class PriorityMonitorError(Exception):
    """Base of every error that `prioritymonitor` raises."""


class ArgumentValueError(PriorityMonitorError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class ArgumentTypeError(PriorityMonitorError, TypeError):
    """An argument is of a type that cannot be used."""
