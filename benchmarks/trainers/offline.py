"""What scripts import, made loadable on a machine without a GPU and without a network."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch


def make_importable() -> None:
    """Call it before such an import."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        # Its build on PyPI brings operators for GPUs, which don't load next to a torch for CPUs;
        # without these two it can't be imported.
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
    metrics = ModuleType("evaluate")
    metrics.load = lambda *_, **__: Accuracy()  # type: ignore[attr-defined]
    sys.modules["evaluate"] = metrics


class Accuracy:
    """Stands for the metrics of `evaluate`, whose code is fetched from a hub."""

    def __init__(self) -> None:
        self._right: list[bool] = []

    def add_batch(self, predictions: Any, references: Any) -> None:
        self._right += [bool(p == r) for p, r in zip(predictions, references, strict=True)]

    def compute(self, predictions: Any = (), references: Any = ()) -> dict[str, float]:
        self.add_batch(predictions, references)
        right, self._right = self._right, []
        return {"accuracy": sum(right) / len(right)}
