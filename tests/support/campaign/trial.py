"""A training run in whose middle something happens, in a loop that survives it."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from prioritymonitor import GradientMonitor
from tests.support.cases import CLASSES, INPUTS
from tests.support.separable import separable

EPOCHS = 25
"""After so many the loop ends, stopped or not."""

_MOST_BREAKS = 20
"""Passes over the loader that may break off."""

Step = Callable[[torch.Tensor, torch.Tensor], object]


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A data set that people change while they train on it."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs, labels
        self.before_item: Callable[[int], object] = _nothing

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.before_item(index)
        return self.inputs[index], self.labels[index]


class Trial:
    """Model, optimizer and loader, the loop around them, and what the loop saw.

    Args:
        seed: Of weights, batches, and of what happens when.
        folder: For whatever is written; None without a run folder.
        options: What the monitor is made with; None: there is none.
    """

    def __init__(self, seed: int, folder: Path | None, options: dict[str, Any] | None) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.random = random.Random(seed)
        self.when = self.random.randint(4, 30)
        """Before which step it happens: in one of the first four epochs."""
        self.folder = folder
        data = separable()
        self.model: nn.Module = nn.Sequential(
            nn.Linear(INPUTS, 128), nn.LayerNorm(128), nn.ReLU(), nn.Dropout(0.05),
            nn.Linear(128, CLASSES),
        )  # fmt: skip
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.data = Samples(data.inputs, data.given)
        self.loader: DataLoader[Any] = DataLoader(self.data, 50, shuffle=True)
        self.begun_with = self.model, self.optimizer, self.loader
        self.monitor: GradientMonitor | None = None
        self.options = options
        if options is not None:
            self.monitor = self.watch()
        self.seen: list[str] = []
        """What the loop caught, by type."""
        self.more: list[Any] = []
        """What the fault has led to, besides the training: copies, results."""
        self.losses: list[float] = []
        self.undo = contextlib.ExitStack()
        self._made = 0
        self._breaks = 0
        self._next: list[Step] = []
        self._later: dict[int, Callable[[], object]] = {}
        self._is_to_begin_anew = False

    def watch(self, **options: Any) -> GradientMonitor:
        """A monitor of what is trained now."""
        own = {"log_dir": self.folder} | (self.options or {}) | options
        return GradientMonitor(self.model, self.optimizer, self.loader, **own)

    # What a fault may ask for

    def once(self, *steps: Step) -> None:
        """Take the next steps in another way."""
        self._next.extend(steps)

    def later(self, steps: int, act: Callable[[], object]) -> None:
        """Do something so many steps from now."""
        self._later[self._made + steps] = act

    def begin_anew(self) -> None:
        """Leave the loader after the next step, and go over it from its beginning."""
        self._is_to_begin_anew = True

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """Catch whatever comes, and note that it came."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            self.seen.append(type(error).__name__)

    def saved(self) -> Callable[[], None]:
        """A copy of the training as it is; what it gives puts it back."""
        model = copy.deepcopy(self.model.state_dict())
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        gradients = [p.grad if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        randomness = torch.get_rng_state()

        def put_back() -> None:
            self.model.load_state_dict(model)
            self.optimizer.load_state_dict(optimizer)
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            torch.set_rng_state(randomness)

        return put_back

    # The loop

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Of a pass through the model."""
        return F.cross_entropy(self.model(x), y)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """One training step as in a plain loop."""
        self.optimizer.zero_grad()
        loss = self.loss(x, y)
        self.losses.append(loss.item())
        loss.backward()
        self.optimizer.step()

    def train(self, happens: Callable[[Trial], object], epochs: int = EPOCHS) -> int:
        """Train until the monitor says stop, if there is one; how many epochs that were."""
        for epoch in range(1, epochs + 1):
            while not self._one_pass(happens) and self._breaks < _MOST_BREAKS:
                pass
            if self.monitor is not None and self.monitor.should_stop and self._is_past():
                return epoch
        return epochs

    def _is_past(self) -> bool:
        return self._made > self.when and not self._later

    def _one_pass(self, happens: Callable[[Trial], object]) -> bool:
        """Go over the loader; whether it was gone over to its end."""
        batches = iter(self.loader)
        while not self._is_to_begin_anew:
            try:
                x, y = next(batches)
            except StopIteration:
                return True
            except (Exception, KeyboardInterrupt) as error:
                self.seen.append(type(error).__name__)
                self._is_to_begin_anew = True
                break
            if self._made == self.when:
                happens(self)
            self._later.pop(self._made, _nothing)()
            step = self._next.pop(0) if self._next else self.step
            self._made += 1
            with self.surviving():
                step(x, y)
        self._is_to_begin_anew = False
        self._breaks += 1
        return False

    # What came of it

    def result(self) -> dict[str, Any]:
        """All that the monitor must leave as it is without one."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [parameter.grad for parameter in self.model.parameters()],
            "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
            "losses": self.losses,
            "seen": self.seen,
            "more": self.more,
            "steps": self._made,
        }

    @property
    def steps(self) -> int:
        """Steps that the loop has made or tried."""
        return self._made


def _nothing(*arguments: Any) -> None:
    """What happens where nothing does."""
