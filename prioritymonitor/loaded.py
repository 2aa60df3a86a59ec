"""What is read from a state, checked before anything is made of it."""

from __future__ import annotations

import math
import reprlib
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import ArgumentValueError

_Kind = TypeVar("_Kind", bound=Enum)

_MOST = 2**53
"""No count of a run is larger; a float holds it exactly, and an event's step has room for it."""

_MOST_TOLD = 60
"""Characters of a value that a message shows."""


def damaged(what: str) -> ArgumentValueError:
    """The error to raise where a state can't be one of a run.

    Args:
        what: What was found in it.
    """
    return ArgumentValueError(f"got a damaged state: {what}; save it anew, or start without it")


def exactly(value: Any, *types: type) -> Any:
    """A plain value.

    Raises:
        ArgumentValueError: It is of none of these types, or a number below zero, or larger than
            any count.
    """
    if type(value) not in types or (type(value) is int and not 0 <= value <= _MOST):
        names = " or ".join(one.__name__ for one in types)
        raise damaged(f"{_told(value)} in place of {names}")
    return value


def mapping(value: Any) -> dict[Any, Any]:
    """A dict; its parts are still to be checked.

    Raises:
        ArgumentValueError: It is none.
    """
    if not isinstance(value, dict):
        raise damaged(f"{_told(value)} in place of a dict")
    return value


def member(kind: type[_Kind], name: Any) -> _Kind:
    """A member of an enumeration by its name.

    Raises:
        ArgumentValueError: There is none.
    """
    if type(name) is not str or name not in kind.__members__:
        raise damaged(f"{_told(name)} in place of a name of {kind.__name__}")
    return kind[name]


def number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A float that is finite and lies between these.

    Raises:
        ArgumentValueError: It is none.
    """
    if type(value) is not float or not math.isfinite(value) or not low <= value <= high:
        raise damaged(f"{_told(value)} in place of a number from {low:g} to {high:g}")
    return value


def like(value: Any, example: Tensor) -> Tensor:
    """A copy on the host of a tensor.

    Raises:
        ArgumentValueError: It is none of the type and shape of the example.
    """
    check_has_numbers(value)
    if (value.dtype, value.shape) != (example.dtype, example.shape):
        raise damaged(f"{_told(value)} in place of {_told(example)}")
    copied: Tensor = value.detach().to("cpu", copy=True)
    return copied


def within(values: Tensor, low: float, high: float, *, or_nan: bool = False) -> Tensor:
    """The same numbers, all of which lie between these.

    Args:
        values: The numbers.
        low: The least one.
        high: The largest one.
        or_nan: Whether NaN stands for what is not known.

    Raises:
        ArgumentValueError: One does not, or is not finite.
    """
    is_good = (values >= low) & (values <= high) & values.isfinite()
    if or_nan:
        is_good |= values.isnan()
    if not is_good.all():
        wrong = values[~is_good].flatten()[0].item()
        raise damaged(f"{wrong:g} in place of a number from {low:g} to {high:g}")
    return values


def check_has_numbers(value: Any) -> None:
    """Refuse what is no tensor, or one whose numbers are not all there to be read.

    Raises:
        ArgumentValueError: It is none, or sparse, or on the device "meta".
    """
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise damaged(f"{_told(value)} in place of a tensor")


def _told(value: Any) -> str:
    """A value in a few words on one line."""
    if isinstance(value, Tensor):
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{value.dtype} {list(value.shape)}{place}"
    if isinstance(value, (dict, list, tuple, set)):
        return f"{type(value).__name__} of {len(value)}"
    return reprlib.repr(value)[:_MOST_TOLD]
