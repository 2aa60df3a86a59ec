"""The head: the last linear layer, whose output is the logits and whose input we call features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .hooks import ModuleHook

Head = nn.Linear | nn.Conv2d


def is_linear(module: nn.Module) -> bool:
    """True for a layer that maps features to logits by one matrix: Linear or a 1×1 convolution."""
    if isinstance(module, nn.Conv2d):
        plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
        return plain and module.padding in ((0, 0), "valid", "same")
    return isinstance(module, nn.Linear)


def logits_in(output: Any) -> list[Tensor]:
    """The tensors of a model's output that may be its logits, likeliest first."""
    if isinstance(output, Tensor):
        found: list[Any] = [output]
    elif isinstance(getattr(output, "logits", None), Tensor):
        found = [output.logits]
    elif hasattr(output, "keys"):
        found = [output["logits"]] if "logits" in output else list(output.values())
    elif isinstance(output, (tuple, list)):
        found = list(output)
    else:
        found = []
    tensors = [item for item in found if isinstance(item, Tensor)]
    return [item for item in tensors if item.is_floating_point() and item.ndim >= 2]


class HeadWatch:
    """Finds the head on the first forward pass and keeps the features of each pass.

    Args:
        model: The model.
        head: Its head if the user named it; None: every linear layer is watched until one is seen
            to produce the logits.
        on_error: Gets any exception of ours.
    """

    def __init__(
        self, model: nn.Module, head: nn.Module | None, on_error: Callable[[Exception], None]
    ) -> None:
        self.head: Head | None = None
        self.searching = True
        self._position = 0
        self._calls: list[tuple[Head, Tensor, Tensor]] = []
        watched = [head] if head is not None else [m for m in model.modules() if is_linear(m)]
        hook = ModuleHook(self._called, on_error)
        self._handles = {
            module: module.register_forward_hook(hook, with_kwargs=True) for module in watched
        }

    def _called(self, module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if not self.searching:
            self._calls.clear()  # a head that is called twice in one pass: its last call counts
        features = args[0] if args else kwargs["input"]
        self._calls.append((module, features.detach(), output.detach()))

    def read(self, output: Any) -> tuple[Tensor | None, Tensor | None]:
        """Logits and features (`[B, D]`) of the forward pass that just gave `output`.

        Either is None where it can't be told.
        """
        candidates = logits_in(output)
        calls, self._calls = self._calls, []
        if self.searching and candidates and candidates[0].requires_grad:
            self._search(candidates, calls)
        if self._position >= len(candidates):
            return None, None
        logits = candidates[self._position]
        for module, features, _ in reversed(calls):
            if module is self.head and features.flatten(1).shape[1] == _width(module):
                return logits, features.flatten(1)
        return logits, None

    def _search(self, candidates: list[Tensor], calls: list[tuple[Head, Tensor, Tensor]]) -> None:
        self.searching = False
        for module, _, output in reversed(calls):
            for position, logits in enumerate(candidates):
                if _same(output, logits.detach()):
                    self.head, self._position = module, position
                    self._unwatch(keep=module)
                    return
        self._unwatch(keep=None)

    def _unwatch(self, keep: nn.Module | None) -> None:
        for module in [module for module in self._handles if module is not keep]:
            self._handles.pop(module).remove()

    def close(self) -> None:
        """Take the hooks off."""
        self._unwatch(keep=None)
        self._calls.clear()


def _width(head: Head) -> int:
    return head.in_features if isinstance(head, nn.Linear) else head.in_channels


def _same(output: Tensor, logits: Tensor) -> bool:
    """Whether the logits are this output: itself, a view of it, or a copy in another precision."""
    if output.numel() != logits.numel():
        return False
    if output.data_ptr() == logits.data_ptr():
        return True
    return torch.equal(output.flatten().double(), logits.flatten().double())
