"""What a batch holds: the labels, and what a model is called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

LABEL_KEYS = ("labels", "label", "targets", "target", "y")


def labels_in(batch: Any) -> Tensor | None:
    """The labels: the second of several parts, or by their name; None where they are no tensor."""
    found: Any = None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    elif hasattr(batch, "keys"):
        key = _label_key(batch)
        found = None if key is None else batch[key]
    return found if isinstance(found, Tensor) else None


def _label_key(batch: Any) -> str | None:
    return next((key for key in LABEL_KEYS if key in batch), None)


def call_of(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the model is called with to predict the labels of a batch.

    Args:
        model: Of its arguments, those that are given by name are the ones it knows.
        batch: The first of several parts, or a mapping without its labels.

    Returns:
        Positional arguments, and those by name.
    """
    parameters = inspect.signature(model.forward).parameters
    inputs = batch if isinstance(batch, Mapping) else batch[0]
    if isinstance(inputs, Mapping):
        key = _label_key(inputs)
        named = {name: value for name, value in inputs.items() if name != key}
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return (), named
        known = {name: value for name, value in named.items() if name in parameters}
        return ((), known) if known or len(named) != 1 else (tuple(named.values()), {})
    if isinstance(inputs, (tuple, list)) and _fits(model, inputs):
        return tuple(inputs), {}
    return (inputs,), {}


def _fits(model: nn.Module, args: Any) -> bool:
    """Whether the model takes so many arguments by position."""
    try:
        inspect.signature(model.forward).bind(*args)
    except TypeError:
        return False
    return True


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with each leaf changed; mappings become dicts."""
    if isinstance(value, Mapping):
        return {key: mapped(part, change) for key, part in value.items()}
    if hasattr(value, "to") or not isinstance(value, (tuple, list)):
        return change(value)
    parts = [mapped(part, change) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
