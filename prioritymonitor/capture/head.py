"""The head: the last linear layer, whose output is the logits and whose input we call features."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .eager import EagerRerun, LayerCall
from .graph import leads_to
from .hooks import Guard, Handle, ModuleHook
from .positions import by_position
from .rerun import hidden_layers

Head = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_MOST_COMPARED = 256
"""Positions of a sample that are compared to find out which layer gave the logits."""

_MOST_OPERATIONS = 20_000
"""Operations of the model that are looked at to find out which output comes last."""

_MOST_CALLS = 64
"""Calls kept beside one of each layer; a model of which only parts are called has no pass."""


class Layout(NamedTuple):
    """How the model makes its logits of the output of its head."""

    class_dim: int
    """Dimension of the classes: 1, or −1 for the last."""
    is_log: bool
    """True if it takes the log-softmax, so that they are log-probabilities."""


class Logits(NamedTuple):
    """What a forward pass of the model gave."""

    tensor: Tensor
    layout: Layout
    features: Tensor | None
    """Input of the head, `[B · N, D]` or `[B, N, D]`; None where it can't be told."""


def unknown(logits: Tensor) -> Logits:
    """Logits that reached a criterion, of which it is not known how the model made them."""
    return Logits(logits, Layout(1 if logits.ndim > 2 else -1, False), None)


def is_linear(module: nn.Module) -> bool:
    """True for a layer that maps features to logits by one matrix: Linear or a 1×1 convolution."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        plain = {*module.kernel_size, *module.stride, module.groups} == {1}
        return plain and (isinstance(module.padding, str) or set(module.padding) == {0})
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
    outputs = [item for item in tensors if item.is_floating_point() and item.ndim >= 1]
    return sorted(outputs, key=lambda item: item.ndim < 2)


class HeadFinder:
    """Finds the head on the first forward pass and keeps the features of each pass.

    Args:
        model: The model.
        head: Its head if the user named it; None: every linear layer is watched until one is seen
            to produce the logits.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None, guard: Guard) -> None:
        self.head: Head | None = None
        self.searching = True
        self.logits_at = 0
        """Which of the tensors that `logits_in` finds are the logits."""
        self._layout: Layout | None = None
        self._eager = EagerRerun(model, guard)
        found = [head] if head is not None else [m for m in model.modules() if is_linear(m)]
        self._candidates = found
        self._calls: deque[LayerCall] = deque(maxlen=len(found) + _MOST_CALLS)
        self._attachments = guard.attachments
        self._handles: dict[nn.Module, Handle] = {}
        hidden, hook = hidden_layers(model), ModuleHook(self._called, guard)
        for module in found:
            if module not in hidden:
                handle = guard.attach(module.register_forward_hook, hook, with_kwargs=True)
                self._handles[module] = handle

    def close(self) -> None:
        """Leave the model as it was found."""
        self._eager.close()
        for handle in self._handles.values():
            self._attachments.remove(handle)

    def pass_begins(self, model: nn.Module, args: Any) -> None:
        """To be called in the first pass, where that has begun before this was made."""
        self._calls.clear()
        self._eager.pass_begins(model, args)

    def _called(self, module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if not self.searching:
            self._calls.clear()  # a head that is called twice in one pass: its last call counts
        features = args[0] if args else kwargs["input"]
        self._calls.append(LayerCall(module, features.detach(), output.detach()))

    def logits_of(self, call: Any, output: Any, *, is_measured: bool) -> Logits | None:
        """What the forward pass that just ended gave.

        Args:
            call: What the model was called with, positional arguments and others.
            output: What it gave.
            is_measured: Whether features are wanted.

        Returns:
            None without logits.
        """
        candidates = logits_in(output)
        calls = [*self._calls]
        self._calls.clear()
        if candidates and len(candidates[0]) == 0:
            return unknown(candidates[0])  # a batch without samples
        outputs = candidates
        if self.searching or (is_measured and not calls and self.head is not None):
            outputs, calls = self._run_again(call, candidates, calls)
        if self.searching and candidates and candidates[0].requires_grad:
            self._search(outputs, calls)
        if self.logits_at >= len(candidates):
            return None
        logits = candidates[self.logits_at]
        layout = self._layout
        if layout is None:  # as torch's losses take them, and transformers give them
            layout = Layout(-1 if logits.ndim < 4 else 1, False)
        return Logits(logits, layout, self._features(calls, len(logits), logits.numel()))

    def _run_again(
        self, call: Any, given: list[Tensor], seen: list[LayerCall]
    ) -> tuple[list[Tensor], list[LayerCall]]:
        """Outputs and calls of a compiled model, which hides its layers, as it was written.

        Where it gives something else than the compiled model gave, as with other random numbers,
        no head is found, or features are NaN.
        """
        args, kwargs = call
        again = self._eager.run_again(args, kwargs, self._candidates)
        outputs = logits_in(again.output) if again is not None else []
        if again is None or [x.shape for x in outputs] != [x.shape for x in given]:
            return given, seen
        off = sum(_nan_if_different(*pair) for pair in zip(outputs, given, strict=True))
        if self.searching and bool(torch.as_tensor(off).isnan()):
            return given, seen
        return outputs, [one._replace(features=one.features + off) for one in again.calls]

    def _features(self, calls: list[LayerCall], samples: int, logits: int) -> Tensor | None:
        """Input of the head, of as many positions as the logits have; None where it is unknown."""
        head = self.head
        of_head = [call.features for call in calls if call.layer is head]
        if head is None or not of_head:
            return None
        features, (classes, width) = of_head[-1], head.weight.shape[:2]
        if features.numel() * classes != logits * width:
            return None
        if features.ndim == 2:
            return features
        return by_position(features, samples, -1 if isinstance(head, nn.Linear) else 1)

    def _search(self, candidates: list[Tensor], calls: list[LayerCall]) -> None:
        givers = [_giver(candidate.detach(), calls) for candidate in candidates]
        found = [(i, *giver) for i, giver in enumerate(givers) if giver is not None]
        for place, module, layout in found:
            others = [candidates[other] for other, giver, _ in found if giver is not module]
            if any(leads_to(other, candidates[place], _MOST_OPERATIONS) for other in others):
                continue  # features on the way to the logits, which are returned too
            self.head, self.logits_at, self._layout = module, place, layout
            break
        self._candidates = [module for module in self._candidates if module is self.head]
        for layer in [layer for layer in self._handles if layer is not self.head]:
            self._attachments.remove(self._handles[layer])
            del self._handles[layer]
        self.searching = False  # at the end: if a signal breaks it off, it is begun anew


def giver_in(output: Any, calls: list[LayerCall]) -> Head | None:
    """The layer that gave the logits in a model's output; None if no layer did."""
    givers = (_giver(candidate, calls) for candidate in logits_in(output) if len(candidate))
    return next((giver[0] for giver in givers if giver is not None), None)


def _giver(logits: Tensor, calls: list[LayerCall]) -> tuple[Head, Layout] | None:
    """The layer that gave the logits, and how; None if no layer did."""
    # A layer that begins with zeros gives what others give, too; the memory tells them apart.
    by_memory = sorted(reversed(calls), key=lambda call: call[2].data_ptr() != logits.data_ptr())
    for module, _, output in by_memory:
        layout = _find_layout(module, output, logits)
        if layout is not None:
            return module, layout
    return None


def _find_layout(head: Head, output: Tensor, logits: Tensor) -> Layout | None:
    """How logits come from the output of a layer; None if they don't.

    They may be the output itself, a view, a copy in another precision, or its log-softmax.
    """
    own_dim = -1 if isinstance(head, nn.Linear) else 1
    classes = len(head.weight)
    if output.numel() != logits.numel() or len(logits) == 0:
        return None
    rows = _some(output, len(logits), own_dim)
    for class_dim in (own_dim, -own_dim) if logits.ndim > 2 else (-1,):
        if logits.ndim > 1 and logits.shape[class_dim] != classes:
            continue
        given = _some(logits, len(logits), class_dim)
        if given.shape != rows.shape:
            continue
        if torch.equal(given, rows):
            return Layout(class_dim, False)
        precision = torch.finfo(logits.dtype).eps ** 0.5
        if torch.allclose(given, rows.log_softmax(2), rtol=precision, atol=precision):
            return Layout(class_dim, True)
    return None


def _nan_if_different(again: Tensor, given: Tensor) -> Tensor:
    """0 where only rounding lies between two outputs, NaN otherwise, without a wait."""
    given = given.detach()
    largest = torch.linalg.vector_norm(given, torch.inf) * torch.finfo(given.dtype).eps ** 0.5
    difference = torch.linalg.vector_norm(again - given, torch.inf)
    return torch.where(difference <= largest, 0.0, torch.nan).to(given.dtype)


def _some(tensor: Tensor, samples: int, class_dim: int) -> Tensor:
    """Some positions of each sample, finite, in double precision, `[B, n, C]`."""
    rows = by_position(tensor, samples, class_dim)
    return rows[:, :: rows.shape[1] // _MOST_COMPARED + 1].double().nan_to_num()
