"""Parts of a model that a loop calls one after the other, each on what the one before it gave."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor, nn

from . import private
from .hooks import Guard, Handle, ModuleHook

_MOST_LINKS = 32
"""Calls among which the one before is looked for."""


class Link(NamedTuple):
    """A call that is over, which may be the one before another."""

    module: nn.Module
    call: Any
    """Positional arguments and others."""
    output: Tensor
    changes: int
    """How many times the output had been changed in place by then."""


class Chain(nn.Module):
    """Parts in the order of their calls, as one module; the user's own modules stay as they are.

    Args:
        parts: The parts.
        given: Shape of what each got, but the first; None if more than parts lies in between.
    """

    def __init__(self, parts: Sequence[nn.Module], given: Sequence[Size] | None) -> None:
        super().__init__()
        self.can_be_called = given is not None
        self.parts = nn.ModuleList(parts)
        self._given = given or ()

    def has_parts_of(self, other: Chain) -> bool:
        """Whether another chain has the same parts."""
        return [*self.parts] == [*other.parts]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call them all."""
        first, *others = self.parts
        output = first(*args, **kwargs)
        for part, shape in zip(others, self._given, strict=True):
            output = part(output.reshape(-1, *shape[1:]))
        return output


class Links:
    """Remembers calls until one that follows them has ended."""

    def __init__(self) -> None:
        self._links: deque[Link] = deque(maxlen=_MOST_LINKS)
        self._handles: list[Handle] = []

    def add(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """A call is over."""
        if isinstance(output, Tensor) and torch.is_grad_enabled():
            changes = private.changes_of(output)
            self._links.append(Link(module, (args, kwargs), output.detach(), changes))

    def follow(self, chain: Chain, guard: Guard) -> None:
        """Remember the calls of a chain's parts but the last, until `close()`."""
        hook = ModuleHook(self.add, guard)
        for part in [*chain.parts][:-1]:
            handle = guard.attach(part.register_forward_hook, hook, with_kwargs=True)
            self._handles.append(handle)

    def close(self, guard: Guard) -> None:
        """Leave the parts as they were found."""
        self._links.clear()
        while self._handles:
            guard.attachments.remove(self._handles.pop())

    def clear(self) -> None:
        """Forget the calls."""
        self._links.clear()

    def before(self, module: nn.Module, call: Any) -> tuple[Chain, Any] | None:
        """The parts that a call hangs on, itself the last, and what the first was called with.

        Args:
            module: What was called.
            call: What it was called with, positional arguments and others.

        Returns:
            None where no part got data.
        """
        parts: list[nn.Module] = [module]
        given: list[Size] = []
        links, data = [*self._links], call
        while _is_learnt(data):
            tensor = _alone(data)
            while links and (tensor is None or not _gave(links[-1], tensor)):
                links.pop()
            if tensor is None or not links:
                return self._around(module)
            link = links.pop()
            parts.insert(0, link.module)
            given.insert(0, tensor.shape)
            data = link.call
        return Chain(parts, given), data

    def _around(self, module: nn.Module) -> tuple[Chain, Any] | None:
        """The first call since the last one of a part, where more than parts lies in between."""
        first = None
        for link in reversed(self._links):
            if link.module is module:
                break
            if not _is_learnt(link.call) and tensors_in(link.call):
                first = link
        return (Chain([first.module, module], None), first.call) if first is not None else None


def tensors_in(call: Any) -> list[Tensor]:
    """What a call got, positional arguments first."""
    args, kwargs = call
    return [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]


def _is_learnt(call: Any) -> bool:
    """Whether a call got what a layer that is trained has made."""
    return any(one.requires_grad for one in tensors_in(call))


def _alone(call: Any) -> Tensor | None:
    args, kwargs = call
    is_alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
    return args[0] if is_alone else None


def _gave(link: Link, tensor: Tensor) -> bool:
    """Whether a call has given a tensor, unchanged but for its shape."""
    output = link.output
    return (
        (output.data_ptr(), output.numel()) == (tensor.data_ptr(), tensor.numel())
        and output.dtype == tensor.dtype
        and output.is_contiguous()
        and tensor.is_contiguous()
        and private.changes_of(tensor) == link.changes
        and output.numel() > 0
    )
