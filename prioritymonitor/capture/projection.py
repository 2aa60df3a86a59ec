"""Long rows of numbers, taken to a few in which distances are nearly the same."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ..loaded import damaged, exactly, like, mapping, within
from ..records import REPRESENTATION

_WIDTH = REPRESENTATION[1]

_MOST_PROJECTED = 2**14
"""Numbers that are projected by a matrix; more of them are first added up in so many sums."""

_FIRST_ROWS = 128
"""So many rows tell in which directions rows differ."""

_LEAST_SPREAD = 1e-6
"""Of the largest, in squares; below that a direction is made of rounding."""

_SEED = 20240212


class Projection:
    """Takes rows to 64 numbers, about a centre: those of the first rows that it gets.

    To the directions in which the first rows differ most, and where they span fewer, to random ones
    besides: so distances are nearly kept. Rows of 64 numbers or fewer are kept as they are. Those
    of another length than the first are NaN.

    Args:
        rows_of_all: Gives the first rows of all ranks, so many at most, from those of this one:
            distances mean something only where all take the same directions.
    """

    def __init__(
        self, rows_of_all: Callable[[Tensor, int], Tensor] = lambda own, most: own[:most]
    ) -> None:
        self._rows_of_all = rows_of_all
        self._size: int | None = None
        self._centre: Tensor | None = None
        self._matrix: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        """Float32 `[B, 64]`.

        Args:
            rows: Float32 `[B, size]`.
        """
        if self._size is None:
            self._size = rows.shape[1]
        if rows.shape[1] != self._size:
            return rows.new_full((len(rows), _WIDTH), torch.nan)
        with torch.autocast(rows.device.type, enabled=False):
            projected = self._projected(rows)
        if self._centre is None:
            own = projected.nan_to_num(0.0, 0.0, 0.0).mean(0, keepdim=True)
            self._centre = self._rows_of_all(own, _FIRST_ROWS).mean(0)
        return projected - self._centre.to(projected.device)

    def _projected(self, rows: Tensor) -> Tensor:
        size = rows.shape[1]
        if size <= _WIDTH:
            return nn.functional.pad(rows, (0, _WIDTH - size))
        if size > _MOST_PROJECTED:
            # Sums with random signs keep distances, too, and a matrix for so many would be large.
            rows = nn.functional.pad(rows * _signs(size, rows.device), (0, -size % _MOST_PROJECTED))
            rows = rows.view(len(rows), -1, _MOST_PROJECTED).sum(1)
        if self._matrix is None:
            first = self._rows_of_all(rows, _FIRST_ROWS)
            self._matrix = _directions(first.to(rows.device))
        self._matrix = self._matrix.to(rows.device)
        return rows @ self._matrix

    def forget(self) -> None:
        """Free the memory; the next rows are the first."""
        self._size = self._centre = self._matrix = None

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        kept = {"centre": self._centre, "matrix": self._matrix}
        copies = {name: None if x is None else x.cpu().clone() for name, x in kept.items()}
        return {"size": self._size, **copies}

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is damaged.
        """
        mapping(state)
        size = exactly(state["size"], int, NoneType)
        shapes = {"centre": (_WIDTH,), "matrix": (min(size or 0, _MOST_PROJECTED), _WIDTH)}
        is_there = {"centre": size is not None, "matrix": size is not None and size > _WIDTH}
        kept: dict[str, Tensor | None] = {}
        for name, shape in shapes.items():
            if (state[name] is not None) is not is_there[name]:
                raise damaged(
                    f"a projection of {size} numbers, and its {name} is not as it must be"
                )
            example = torch.empty(shape, dtype=torch.float32, device="meta")
            kept[name] = _finite(like(state[name], example)) if is_there[name] else None

        def resume() -> None:
            self._size, self._centre, self._matrix = size, kept["centre"], kept["matrix"]

        return resume


def _finite(values: Tensor) -> Tensor:
    return within(values, -torch.inf, torch.inf)


def _directions(rows: Tensor) -> Tensor:
    """In which rows `[B, size]` differ most, as columns `[size, 64]`; random ones where too few."""
    size, device = rows.shape[1], rows.device
    rows = rows.nan_to_num(0.0, 0.0, 0.0)
    rows = rows - rows.mean(0)
    squares, vectors = torch.linalg.eigh(rows @ rows.T)  # the largest last
    some = squares > _LEAST_SPREAD * squares[-1]
    some[:-_WIDTH] = False
    found = rows.T @ (vectors[:, some] / squares[some].sqrt())
    generator = torch.Generator("cpu").manual_seed(_SEED)
    others = _WIDTH - found.shape[1]
    options: Any = {"generator": generator, "device": "cpu", "dtype": torch.float32}
    random = (torch.randn((size, others), **options) / max(others, 1) ** 0.5).to(device)
    return torch.cat((found, random - found @ (found.T @ random)), 1)


def _signs(size: int, device: torch.device) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(_SEED)
    options: Any = {"generator": generator, "device": "cpu", "dtype": torch.int8}
    return (torch.randint(2, (size,), **options) * 2 - 1).float().to(device)
