"""Options that all integrations take beside their own: those of `GradientMonitor`, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .. import ArgumentValueError, GradientMonitor


def check_options(options: Mapping[str, Any], *, restore_best: bool) -> None:
    """Refuse at once what a monitor would refuse once training begins.

    Args:
        options: Those of `GradientMonitor`.
        restore_best: Whether its best weights are wanted at the end.

    Raises:
        ArgumentValueError: `restore_best=True` with `keep_best=None`.
        TypeError: `GradientMonitor` has no such option.
    """
    inspect.signature(GradientMonitor).bind(None, None, None, **options)
    if restore_best and options.get("keep_best", "averaged") is None:
        raise ArgumentValueError(
            'got restore_best=True with keep_best=None, which keeps no weights; use "averaged"'
        )
