"""The same random numbers each time, and afterwards those that would have come."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from .rerun import RandomState, surely, unchanged_randomness

_SEED = 20230605

_MOST_OBJECTS = 10_000
_MOST_PARTS = 100
"""A longer list holds data."""


class _Kind(NamedTuple):
    """A kind of generator: how its state is read and set, and what it is at the seed."""

    type: type
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    seeded: Callable[[Any], Any]


_KINDS = (
    _Kind(
        torch.Generator,
        lambda one: one.get_state(),
        lambda one, state: one.set_state(state),
        lambda one: torch.Generator(one.device).manual_seed(_SEED).get_state(),
    ),
    _Kind(
        np.random.Generator,
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, "state", state),
        lambda one: type(one.bit_generator)(_SEED).state,
    ),
    _Kind(
        np.random.RandomState,
        lambda one: one.get_state(),
        lambda one, state: one.set_state(state),
        lambda one: np.random.RandomState(_SEED).get_state(),
    ),
    _Kind(
        random.Random,
        lambda one: one.getstate(),
        lambda one, state: one.setstate(state),
        lambda one: random.Random(_SEED).getstate(),
    ),
)


@contextlib.contextmanager
def fixed_randomness(device: torch.device, loader: Any) -> Iterator[None]:
    """Inside, random numbers begin at a seed; afterwards, all generators are where they were.

    They are those of torch, for the CPU and the device, of Python and of NumPy, and those that are
    found in the loader: the train loader may draw from the same ones.
    """
    own = [(kind, one, kind.read(one)) for kind, one in _generators_in(loader)]

    def put_back() -> None:
        for kind, one, state in own:
            kind.write(one, state)

    with unchanged_randomness(device), surely(put_back):
        RandomState.seeded(device, _SEED).restore()
        for kind, one, _ in own:
            kind.write(one, kind.seeded(one))
        yield


def _generators_in(thing: Any) -> list[tuple[_Kind, Any]]:
    """Generators that an object holds, or what it holds, such as a data set and its transforms."""
    found, seen, waiting = [], {id(thing)}, deque([thing])
    while waiting and len(seen) < _MOST_OBJECTS:
        one = waiting.popleft()
        kind = next((kind for kind in _KINDS if isinstance(one, kind.type)), None)
        if kind is not None and not isinstance(one, random.SystemRandom):
            found.append((kind, one))
            continue
        for part in _parts(one):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return found


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, (type, ModuleType)):
        return []
    parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    if isinstance(thing, (list, tuple, dict)) and len(thing) <= _MOST_PARTS:
        parts += thing.values() if isinstance(thing, dict) else thing
    return parts
