"""States changed at any depth, of what a safe `torch.load` can give."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.support.fuzz.saved import PHASES, State, saved
from tests.support.observed import content_of

Path = tuple[Any, ...]

NUMBERS: list[Any] = [
    *(-1, 0, 1, 2, 3, 7, 61, 10**6, 2**31, 2**53 + 1, 2**63, 10**30, -(10**30)),
    *(-1.0, 0.0, 0.5, 1.0, 1.5, 61.0, 1e30, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(True, False, 1j),
]
# No name of a hidden linear layer: a loop might have called it, and a state can't be known to lie.
TEXTS = [
    "", "1", "4", "3.weight", "CLOSED", "FAILED", "STOPPED", "MEASURING", "NOT_BEGUN",
    "IDENTITY_LOST", "NO_SUCH_NAME", "NOISY_DOMINATES", "__class__", "training", "../../etc",
    "two\nlines", "\x1b[2J\x07", "\u202egnp", "x" * 100_000, "\ud800",
]  # fmt: skip
THINGS: list[Callable[[], Any]] = [
    lambda: None,
    lambda: [],
    lambda: {},
    lambda: (),
    lambda: set(),
    lambda: [[[[[[{}]]]]]],
    lambda: [0] * 10_000,
    lambda: {str(number): number for number in range(1_000)},
    lambda: OrderedDict(a=1),
    lambda: b"bytes",
    lambda: torch.Size([2, 3]),
    lambda: torch.float32,
    lambda: torch.device("cpu"),
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.tensor(7),
    lambda: torch.zeros(3, 3, 3),
    lambda: torch.zeros(60, device="meta"),
    lambda: torch.zeros(60).to_sparse(),
    lambda: torch.nn.Parameter(torch.zeros(2)),
]


GO_ON = st.sampled_from([True, True, True, True, False])


def places(state: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a state, as the keys that lead to it."""
    inside = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in inside:
        yield (*path, key)
        if isinstance(value, (dict, list, tuple)):
            yield from places(value, (*path, key))


def _at(state: Any, path: Path) -> Any:
    for key in path:
        state = state[key]
    return state


def _put(state: State, path: Path, value: Any) -> None:
    """Put something into its place; tuples on the way are made anew."""
    *way, key = path
    inner = _at(state, tuple(way))
    if isinstance(inner, tuple):
        _put(state, tuple(way), (*inner[:key], value, *inner[key + 1 :]))
    else:
        inner[key] = value


def _drop(state: State, path: Path) -> None:
    *way, key = path
    inner = _at(state, tuple(way))
    if isinstance(inner, tuple):
        _put(state, tuple(way), (*inner[:key], *inner[key + 1 :]))
    else:
        del inner[key]


@st.composite
def other_tensor(draw: st.DrawFn, tensor: Tensor) -> Any:
    """A tensor of another shape, type, kind or content."""
    ways: list[Callable[[], Any]] = [
        lambda: tensor.double() if tensor.is_floating_point() else tensor.short(),
        lambda: tensor.to(draw(st.sampled_from([torch.float16, torch.int64, torch.bool]))),
        lambda: torch.cat((tensor.flatten(), tensor.flatten())),
        lambda: tensor.flatten()[: draw(st.integers(0, max(tensor.numel() - 1, 0)))],
        lambda: tensor.unsqueeze(0),
        lambda: tensor.t() if tensor.ndim == 2 else tensor[None, None],
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor.bool(),
        lambda: tensor.tolist(),
        *[lambda: _with(draw, tensor)] * 8,
    ]
    return draw(st.sampled_from(ways))()


def _with(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """The same with some of its numbers, or all of them, replaced."""
    changed = tensor.detach().clone()
    fits: list[float] = [-128, -2, -1, 0, 1, 2, 5, 60, 127]
    if tensor.is_floating_point():
        fits += [math.nan, math.inf, -math.inf, 0.5, -0.5, 1.4, 1e10, -1e10, 3e38]
    elif tensor.dtype in (torch.int32, torch.int64):
        fits += [2**31 - 1, -(2**31), 1000]
    number = draw(st.sampled_from(fits))
    if changed.numel() == 0 or draw(st.booleans()):
        return changed.fill_(number)
    flat = changed.reshape(-1)
    flat[draw(st.integers(0, flat.numel() - 1))] = number
    return flat.reshape(tensor.shape)


@st.composite
def place(draw: st.DrawFn, state: State) -> Path:
    """Any place, or key after key, so that all parts of the state have their turn."""
    if draw(st.booleans()):
        return draw(st.sampled_from(list(places(state))))
    path: Path = ()
    inner: Any = state
    while isinstance(inner, (dict, list, tuple)) and len(inner) and (not path or draw(GO_ON)):
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        path = (*path, draw(st.sampled_from(keys)))
        inner = _at(state, path)
    return path


@st.composite
def changed(draw: st.DrawFn, state: State) -> str:
    """Change one place of a state, which is changed itself; gives what was done."""
    path = draw(place(state))
    way = draw(st.sampled_from([*_WAYS, *["kind"] * 6]))
    _WAYS[way](draw, state, path)
    return f"{way} at {path}"


def _rename(draw: st.DrawFn, state: State, path: Path) -> None:
    *to, key = path
    inner = _at(state, tuple(to))
    if isinstance(inner, dict):
        inner[draw(st.sampled_from([*TEXTS, *NUMBERS[:8], None, (1, 2)]))] = inner.pop(key)


def _swap(draw: st.DrawFn, state: State, path: Path) -> None:
    """Put there what is at another place, unless one of them is in the other."""
    other = draw(place(state))
    if other[: len(path)] != path and path[: len(other)] != other:
        _put(state, path, _at(state, other))


def _kind(draw: st.DrawFn, state: State, path: Path) -> None:
    """Something of the same kind."""
    value = _at(state, path)
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        _put(state, path, draw(other_tensor(value)))
    elif isinstance(value, str):
        _put(state, path, draw(st.sampled_from(TEXTS)))
    elif isinstance(value, (list, tuple)) and len(value):
        more = [*value, *value] if draw(st.booleans()) else [*value[1:]]
        _put(state, path, type(value)(more))
    else:
        fits = [one for one in NUMBERS if type(one) is type(value)] or NUMBERS
        _put(state, path, draw(st.sampled_from(fits)))


_WAYS: dict[str, Callable[[st.DrawFn, State, Path], None]] = {
    "drop": lambda draw, state, path: _drop(state, path),
    "rename": _rename,
    "swap": _swap,
    "number": lambda draw, state, path: _put(state, path, draw(st.sampled_from(NUMBERS))),
    "text": lambda draw, state, path: _put(state, path, draw(st.sampled_from(TEXTS))),
    "thing": lambda draw, state, path: _put(state, path, draw(st.sampled_from(THINGS))()),
    "kind": _kind,
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, State]:
    """What was done to the state of a run in some phase, and the state."""
    phase = draw(st.sampled_from([*PHASES]))
    state = saved(phase)
    content = content_of(state)
    done = [draw(changed(content)) for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4])))]
    if draw(st.integers(0, 19)) == 0:  # seldom what it all is in, or nothing else would be seen
        done.append(draw(changed(state)))
    return f"{phase}: {'; '.join(done)}", state
