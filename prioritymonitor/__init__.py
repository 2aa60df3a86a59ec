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

_MODULES = {
    "ArgumentTypeError": ".errors",
    "ArgumentValueError": ".errors",
    "PriorityMonitorError": ".errors",
    "GradientMonitor": ".monitor",
    "Decision": ".records",
    "StopReason": ".records",
    "Suspect": ".records",
    "corrupt_labels": ".samples.known_labels",
    "StopRule": ".stopping.rule",
}
"""Where each public name is: its module, and torch with it, is loaded when somebody asks for it."""

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])
