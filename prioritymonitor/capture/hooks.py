"""A callable to put on the user's objects: it never raises and does nothing in a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch._dynamo.eval_frame import skip_code

from .stopwatch import Stopwatch

_CHECKPOINTS = torch.utils.checkpoint.__name__
"""Activation checkpointing ends a forward pass that it runs again by an exception of its own, which
may pass through a hook that saves a tensor."""


class Guard:
    """What all hooks of one monitor share.

    Args:
        on_error: Gets any exception of ours; the training loop never sees it.
    """

    __slots__ = ("on_error", "stopwatch")

    def __init__(
        self, on_error: Callable[[Exception], None], stopwatch: Stopwatch | None = None
    ) -> None:
        self.on_error = on_error
        self.stopwatch = stopwatch or Stopwatch()

    def for_part(self, on_error: Callable[[Exception], None]) -> Guard:
        """The guard of a part whose failure is its own; the time is everyone's."""
        return Guard(on_error, self.stopwatch)


class Hook:
    """Calls `function` on the guard's time, and gives any exception to the guard instead.

    A model that carries a hook may be copied (an EMA copy, a snapshot) or pickled
    (`torch.save(model)`). The copy must neither feed this monitor nor drag it along, so a copied
    hook is inert.
    """

    __slots__ = ("__weakref__", "_function", "_guard")

    def __init__(self, function: Callable[..., Any] | None, guard: Guard | None) -> None:
        self._function = function
        self._guard = guard

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function; None if it is inert or raised."""
        guard = self._guard
        if guard is None or self._function is None:
            return None
        is_outermost = guard.stopwatch.start()
        try:
            return self._function(*args, **kwargs)
        except Exception as error:
            if type(error).__module__ == _CHECKPOINTS:
                raise
            guard.on_error(error)
            return None
        finally:
            if is_outermost:
                guard.stopwatch.stop()

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return type(self)(None, None)

    def __reduce__(self) -> tuple[type[Hook], tuple[None, None]]:
        return type(self), (None, None)


def _transform_runs() -> bool:
    # What a transform computes is no training pass, and its tensors must not get out of it.
    return torch._C._functorch.peek_interpreter_stack() is not None


class ModuleHook(Hook):
    """A hook on a module. In a graph that `torch.compile` makes it is not there.

    What it does changes every step, so it can't be traced; and where it would break the graph, it
    would slow training down, or end it under `fullgraph=True`. What calls a compiled graph, such as
    the compiled model itself, still calls its hooks.
    """

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function outside any compiled graph and any transform of `torch.func`."""
        return None if torch.compiler.is_compiling() else self._uncompiled(*args, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _uncompiled(self, *args: Any, **kwargs: Any) -> Any:
        return None if _transform_runs() else super().__call__(*args, **kwargs)


# It may still be traced through, but never be compiled itself: it would then always see that it is.
skip_code(ModuleHook.__call__.__code__)
