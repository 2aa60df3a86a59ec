"""Where a tensor comes from: the way back through the graph of autograd, without any computation.

A criterion may get the model's logits as they are, as a view, in another precision, without their
last position, or as log-probabilities. The way back tells which.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_LONGEST_WAY = 64
"""Operations between the model's output and the criterion, at most."""

_KEEPS_ORDER = {
    f"{name}Backward0"
    for name in (
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Squeeze"),
        *("Unsqueeze", "Transpose", "Permute"),
    )
} | {"SqueezeBackward1", "SqueezeBackward2"}
"""Operations that leave the values and the order of samples and positions."""


@dataclass(frozen=True)
class Derivation:
    """How a tensor comes from a marked one.

    Attributes:
        mark: What the marked tensor carries.
        is_exact: False if it is not known what happened on the way.
        has_log_softmax: True if it holds log-probabilities of the marked tensor.
        start: First position that was taken.
        node: The operation that gave the marked tensor; who keeps it keeps the graph.
        output: Which of the operation's outputs the marked tensor is.
    """

    mark: Any
    is_exact: bool = True
    has_log_softmax: bool = False
    start: int = 0
    node: Any = None
    output: int = 0


def leave_mark(tensor: Tensor, key: object, mark: Any) -> None:
    """Make a tensor known to `find_derivation`, for as long as someone else holds the mark.

    A graph that held it might hold itself, by the tensors that the mark holds.
    """
    node: Any = tensor.grad_fn
    node.metadata[key, tensor.output_nr] = weakref.ref(mark)


def find_derivation(tensor: Tensor, key: object) -> Derivation | None:
    """The marked tensor that this one was computed from; None if there is none nearby."""
    return _follow(tensor, key) or _search(tensor, key)


def before_copies(tensor: Tensor) -> tuple[Any, int]:
    """The operation, and which of its outputs, that a tensor is a copy of in another precision.

    accelerate gives the outputs of a model that runs in half precision back in full.
    """
    node, output = tensor.grad_fn, tensor.output_nr
    while node is not None and node.name() == "ToCopyBackward0":
        node, output = node.next_functions[0]
    return node, output


def leads_to(tensor: Tensor, earlier: Tensor, longest: int) -> bool:
    """Whether a tensor was computed from an earlier one, as far as so many operations tell."""
    node = earlier.grad_fn
    return any(found is node for found, _ in _behind(tensor, longest) if node is not None)


def _follow(tensor: Tensor, key: object) -> Derivation | None:
    """The derivation, if only operations that we know lie between."""
    node, output = tensor.grad_fn, tensor.output_nr
    has_log_softmax, start = False, 0
    for _ in range(_LONGEST_WAY):
        if node is None:
            return None
        mark = _mark_of(node, output, key)
        if mark is not None:
            return Derivation(mark, True, has_log_softmax, start, node, output)
        name = node.name()
        if name == "LogSoftmaxBackward0":
            has_log_softmax = True
        elif name in ("SliceBackward0", "SelectBackward0"):
            first = _first_taken(node)
            if first is None:
                return None
            start += first
        elif name not in _KEEPS_ORDER or _moves_samples(node):
            return None
        node, output = node.next_functions[0]
    return None


def _search(tensor: Tensor, key: object) -> Derivation | None:
    """The derivation, whatever lies between."""
    for node, output in _behind(tensor, _LONGEST_WAY):
        mark = _mark_of(node, output, key)
        if mark is not None:
            return Derivation(mark, is_exact=False, node=node, output=output)
    return None


def _mark_of(node: Any, output: int, key: object) -> Any:
    left = node.metadata.get((key, output))
    return left() if left is not None else None


def _behind(tensor: Tensor, longest: int) -> Iterator[tuple[Any, int]]:
    """The operations that a tensor was computed by, latest first, at most so many."""
    waiting = deque([(tensor.grad_fn, tensor.output_nr)])
    seen: set[Any] = set()
    while waiting and len(seen) < longest:
        node, output = waiting.popleft()
        if node is None or (node, output) in seen:
            continue
        seen.add((node, output))
        yield node, output
        waiting.extend(node.next_functions)


def _moves_samples(node: Any) -> bool:
    name = node.name()
    if name == "TransposeBackward0":
        return 0 in (node._saved_dim0, node._saved_dim1)
    return bool(name == "PermuteBackward0" and node._saved_dims[0] != 0)


def _first_taken(node: Any) -> int | None:
    """The first position that a slice takes; None if it takes anything but positions in a row."""
    sizes, dim = node._saved_self_sym_sizes, _signed(node._saved_dim)
    size = sizes[dim]
    if node.name() == "SelectBackward0":
        start, is_all = _signed(node._saved_index), size == 1
    else:
        start = _signed(node._saved_start)
        is_all = start == 0 and _signed(node._saved_end) >= size
        if node._saved_step != 1:
            return None
    if is_all:
        return 0
    if len(sizes) != 3 or dim % 3 == 0:
        return None
    return int(start % size)


def _signed(number: int) -> int:
    """Autograd shows negative numbers as unsigned ones."""
    return number - 2**64 if number >= 2**63 else number
