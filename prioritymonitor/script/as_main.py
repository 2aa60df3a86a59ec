"""Runs a script or a module as `python` itself would."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from types import TracebackType

_ABOVE = (__file__, runpy.__file__, "<frozen runpy>")
"""Files of the frames that stand above the script."""


def run_as_main(target: str, arguments: Sequence[str], *, is_module: bool) -> int | str | None:
    """Run it to its end, with its own `sys.argv` and `sys.path`.

    Args:
        target: Path of a script, or name of a module.
        arguments: What `sys.argv` holds after it.
        is_module: Whether it is a module, as for `python -m`.

    Returns:
        What it has given to `sys.exit`; 1 after an exception, whose traceback it has printed.
    """
    sys.argv[:] = [target, *arguments]
    sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.abspath(target))
    try:
        if is_module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except SystemExit as ended:
        return ended.code
    except BaseException as error:
        error.__traceback__ = _of_script(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _of_script(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that stand above the script."""
    own = trace
    while own is not None and own.tb_frame.f_code.co_filename in _ABOVE:
        own = own.tb_next
    return own or trace
