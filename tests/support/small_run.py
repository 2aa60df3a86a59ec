"""A small training run, and all of it that a monitor could harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from prioritymonitor import GradientMonitor
from tests.support.cases import CLASSES, INPUTS, Data, make_data, make_loader

SETTINGS: dict[str, dict[str, Any]] = {
    "head": {"every": 2},
    "closed_form": {"scope": "all", "engine": "closed_form", "every": 1},
    "func": {"scope": "all", "engine": "func", "every": 1},
}
"""What is measured, and how."""


class SmallRun:
    """Model with random numbers and buffers, optimizer with a state, shuffled loader.

    Args:
        workers: Worker processes of the loader.
        data: The data.
    """

    def __init__(self, workers: int = 0, data: Data | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(INPUTS, 8),
            nn.LayerNorm(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(8, CLASSES),
        )
        self.model.register_buffer("offset", torch.ones(3))
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.05, momentum=0.9)
        self.loader = make_loader(
            data or make_data(torch.float32),
            batch_size=10,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def watched(self, **options: Any) -> GradientMonitor:
        """A monitor of it."""
        return GradientMonitor(self.model, self.optimizer, self.loader, **options)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        self.criterion(self.model(x), y).backward()
        self.optimizer.step()

    def train(self, epochs: int = 1, after_step: Callable[[], object] = lambda: None) -> None:
        """A plain loop."""
        for _ in range(epochs):
            for x, y, _index in self.loader:
                self.step(x, y)
                after_step()

    def result(self) -> dict[str, Any]:
        """What training has led to."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [parameter.grad for parameter in self.model.parameters()],
            "random": torch.get_rng_state(),
        }

    def on_it(self) -> dict[str, Any]:
        """All that could be left on what the user passed in."""
        things = [*self.model.modules(), self.criterion, self.optimizer, self.loader]
        kept = self.loader._iterator
        return {
            "attributes": [_attributes(thing) for thing in things],
            "parameters": [_on_parameter(one) for one in self.model.parameters()],
            "iterator": (id(kept), type(kept), id(getattr(kept, "_index_sampler", None))),
        }


def _attributes(thing: Any) -> dict[str, Any]:
    """Name -> what it is, and the hooks in it."""
    return {
        name: (id(value), [*map(id, value.values())] if name.endswith("_hooks") else None)
        for name, value in vars(thing).items()
    }


def _on_parameter(parameter: nn.Parameter) -> tuple[set[str], int, int]:
    accumulated = getattr(parameter, "_post_accumulate_grad_hooks", None)
    return set(vars(parameter)), len(parameter._backward_hooks or ()), len(accumulated or ())


def measured(monitor: GradientMonitor) -> dict[str, Any]:
    """What a monitor tells apart from clock times."""
    return {
        "history": [record | {"time": None} for record in monitor.history()],
        "samples": {name: np.nan_to_num(x).tolist() for name, x in monitor.samples().items()},
        "latest": monitor.latest | {"overhead_fraction": None},
    }
