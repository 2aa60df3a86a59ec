"""Watch clean and noisy labels compete in every update, and stop before the noise is learnt."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import ArgumentTypeError as ArgumentTypeError
    from .errors import ArgumentValueError as ArgumentValueError
    from .errors import PriorityMonitorError as PriorityMonitorError
    from .monitor import GradientMonitor as GradientMonitor
    from .records import Decision as Decision
    from .records import StopReason as StopReason
    from .records import Suspect as Suspect
    from .samples.known_labels import corrupt_labels as corrupt_labels
    from .stopping.rule import StopRule as StopRule

__version__ = "0.1.0"

_WHERE = {
    "ArgumentTypeError": "errors",
    "ArgumentValueError": "errors",
    "Decision": "records",
    "GradientMonitor": "monitor",
    "PriorityMonitorError": "errors",
    "StopReason": "records",
    "StopRule": "stopping.rule",
    "Suspect": "records",
    "corrupt_labels": "samples.known_labels",
}
"""Public name -> module; it is imported when the name is asked for, for torch takes a second."""

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
