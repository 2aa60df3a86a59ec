"""What the user chose, after the checks in `arguments`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from .decision import StopRule
from .noise import KnownNoise


@dataclass(frozen=True)
class Settings:
    """The fields are the arguments of `GradientMonitor`."""

    criterion: nn.Module | Callable[..., Tensor] | None
    head: nn.Module | None
    known_noise: KnownNoise | None
    engine: str | None
    """None for scope="head"."""
    every: int | Literal["auto"]
    budget: float
    stop: StopRule | None
    keep_best: str | None
    log_dir: Path | None
    writer: Any
    max_tracked: int
