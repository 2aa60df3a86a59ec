"""Callables to put on the user's objects: they never raise, never swallow and never stay.

A hook gives an exception of ours to its guard; what a signal handler raised goes on. In a copy of
the user's object it does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import contained, is_from_signal
from . import private
from .stopwatch import Stopwatch


class Handle(Protocol):
    """What torch gives for a hook."""

    def remove(self) -> None:
        """Take the hook off; once more does nothing."""


class Attachments:
    """The hooks that one monitor has put on the user's objects."""

    def __init__(self) -> None:
        self._handles: list[Handle] = []

    def add(self, register: Callable[..., Handle], hook: Hook, **options: Any) -> Handle:
        """Put a hook on something.

        Args:
            register: What registers it, such as `model.register_forward_hook`.
            hook: The hook.
            options: Further arguments of `register`.
        """
        self._handles.append(register(hook, **options))  # one line: nothing can come in between
        return self._handles[-1]

    def remove(self, handle: Handle) -> None:
        """Take one hook off."""
        handle.remove()
        self._handles = [other for other in self._handles if other is not handle]

    def remove_all(self) -> None:
        """Take all hooks off; if interrupted, it can be called again."""
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()


class Guard:
    """What all hooks of one monitor share.

    Args:
        on_error: Gets any exception of ours; the training loop never sees it.
        on_interruption: Called where another exception breaks a hook off and goes on to the loop.
    """

    __slots__ = ("attachments", "lock", "on_error", "on_interruption", "stopwatch")

    def __init__(
        self,
        on_error: Callable[[Exception], None],
        on_interruption: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_error = on_error
        self.on_interruption = on_interruption
        self.lock = threading.RLock()
        """Held while a hook runs: another thread may close an epoch, or the monitor."""
        self.stopwatch = Stopwatch()
        self.attachments = Attachments()

    def for_part(self, on_error: Callable[[Exception], None]) -> Guard:
        """The guard of a part whose failure is its own; all else is shared."""
        part = Guard(on_error, self.on_interruption)
        part.lock, part.stopwatch, part.attachments = self.lock, self.stopwatch, self.attachments
        return part

    def attach(self, register: Callable[..., Handle], hook: Hook, **options: Any) -> Handle:
        """Put a hook on an object of the user's; see `Attachments.add`."""
        return self.attachments.add(register, hook, **options)


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
        private.tell_dynamo()
        modes = torch.is_grad_enabled(), private.transforms_running()
        try:
            with guard.lock:
                began = guard.stopwatch.read()
                try:
                    return self._function(*args, **kwargs)
                finally:
                    guard.stopwatch.add_since(began)
        except BaseException as error:
            if private.ends_recomputation(error):
                raise
            _put_back(*modes)
            if not isinstance(error, Exception) or is_from_signal(error):
                with contained(_ignore):
                    guard.on_interruption()
                raise
            with guard.lock, contained(_ignore):  # to tell of a failure may fail
                guard.on_error(error)
            return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return type(self)(None, None)

    def __reduce__(self) -> tuple[type[Hook], tuple[None, None]]:
        return type(self), (None, None)

    @property
    def __name__(self) -> str:
        # Only torch.jit.script asks a hook for it, in order to compile the hook too.
        raise AttributeError(
            "torch.jit.script compiles the hooks of a module, and those of a GradientMonitor can't "
            "be; call monitor.close() first"
        )


def _put_back(has_gradients: bool, transforms: int) -> None:
    """Modes of torch that a signal kept a `with` of ours from leaving."""
    private.end_transforms(transforms)
    torch.set_grad_enabled(has_gradients)


def _ignore(error: Exception) -> None:
    """There is nobody left to tell."""


class ModuleHook(Hook):
    """A hook on a module. It is not there in a graph that `torch.compile` or `torch.jit` makes.

    What it does changes every step, so it can't be traced; and where it would break the graph, it
    would slow training down, or end it under `fullgraph=True`. What calls a compiled graph, such as
    the compiled model itself, still calls its hooks.
    """

    __slots__ = ()

    def __init__(self, function: Callable[..., Any] | None, guard: Guard | None) -> None:
        super().__init__(function, guard)
        private.never_compile(ModuleHook.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function outside any graph in the making and any transform of `torch.func`."""
        if torch.compiler.is_compiling() or private.is_traced():
            return None
        return private.run_outside_graphs(self._eager, args, kwargs)

    def _eager(self, *args: Any, **kwargs: Any) -> Any:
        # What a transform computes is no training pass, and its tensors must not get out of it.
        return None if private.is_transform_running() else super().__call__(*args, **kwargs)
