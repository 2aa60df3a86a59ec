"""A callable to put on the user's objects: it never raises and does nothing in a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Hook:
    """Calls `function` and gives any exception to `on_error` instead of the training loop.

    A model that carries a hook may be copied (an EMA copy, a snapshot) or pickled
    (`torch.save(model)`). The copy must neither feed this monitor nor drag it along, so a copied
    hook is inert.
    """

    __slots__ = ("__weakref__", "_function", "_on_error")

    def __init__(
        self, function: Callable[..., Any] | None, on_error: Callable[[Exception], None] | None
    ) -> None:
        self._function = function
        self._on_error = on_error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; None if it is inert or raised."""
        if self._function is None:
            return None
        try:
            return self._function(*args, **kwargs)
        except Exception as error:
            if self._on_error is not None:
                self._on_error(error)
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return type(self)(None, None)

    def __reduce__(self) -> tuple[type[Hook], tuple[None, None]]:
        return type(self), (None, None)


class ModuleHook(Hook):
    """A hook on a module, which `torch.compile` must not trace: what it does changes every step."""

    __slots__ = ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function outside any compiled graph."""
        return super().__call__(*args, **kwargs)
