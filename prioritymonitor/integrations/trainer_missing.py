"""What is said where the trainer of an integration is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def says_what_to_install(extra: str, *modules: str) -> Iterator[None]:
    """Imports inside that find no trainer say what to install.

    Args:
        extra: Of this package, which brings the trainer.
        modules: The trainer's top-level modules. Whatever else is missing is an error of its own.

    Raises:
        ModuleNotFoundError: The trainer is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in modules:
            raise
        raise ModuleNotFoundError(
            f"got no module {error.name!r}; run: pip install 'prioritymonitor[{extra}]'",
            name=error.name,
        ) from error
