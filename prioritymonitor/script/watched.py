"""A monitor on what a script trains, from the first pass to the script's end."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ..capture.hooks import Guard, Hook
from ..errors import contained, described
from ..monitor import GradientMonitor
from .finder import TrainingFinder

_WEIGHTS = "best_weights.pt"

_LOGGER = logging.getLogger("prioritymonitor")


class WatchedScript:
    """Attaches itself to the training of this process, until `close()`.

    Args:
        log_dir: Folder of the run.
        stops: Whether to end the script where the next epoch begins after the stop.
    """

    def __init__(self, log_dir: Path, stops: bool) -> None:
        self.monitor: GradientMonitor | None = None
        """None until something is trained."""
        self._model: nn.Module | None = None
        # Of several ranks the first one writes.
        self._log_dir = log_dir if os.environ.get("RANK", "0") == "0" else None
        self._stops = stops
        self._guard = Guard(_say_failed)
        self._on_model = Guard(_say_failed)
        self._finder = TrainingFinder(self._attach, self._guard)

    def _attach(
        self, model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any] | None
    ) -> None:
        if self.monitor is not None:
            self.monitor.close()
            self._on_model.attachments.remove_all()
        self._model = model
        self.monitor = GradientMonitor(model, optimizer, loader, log_dir=self._log_dir)
        self.monitor.decision  # noqa: B018  nobody is to be reminded that the script reads none
        if self._stops:
            hook = Hook(self._exit, self._on_model)
            self._on_model.attach(model.register_forward_pre_hook, hook)

    def _exit(self, model: nn.Module, inputs: Any) -> None:
        """End the script, where training would go on after the stop."""
        if torch.is_grad_enabled() and self.monitor is not None and self.monitor.should_stop:
            raise SystemExit(0)

    def close(self) -> None:
        """Leave everything as it was found, and write what the run has led to."""
        self._finder.close()
        self._on_model.attachments.remove_all()
        monitor = self.monitor
        if monitor is None:
            _LOGGER.warning(
                "nothing was watched: no module was called with gradients whose parameters a torch "
                "optimizer holds"
            )
            return
        monitor.close()
        with contained(_say_failed):
            self._save(monitor)

    def _save(self, monitor: GradientMonitor) -> None:
        """Save the weights to hand back; the model keeps those that it has."""
        folder, model = monitor.log_dir, self._model
        said = [monitor.decision.message, f"{len(monitor.suspects())} suspects"]
        if folder is not None and model is not None:
            said.append(f"run folder {folder}")
            if monitor.best_epoch is not None:
                last = {name: value.clone() for name, value in model.state_dict().items()}
                try:
                    if monitor.restore_best() is not None:
                        torch.save(model.state_dict(), folder / _WEIGHTS)
                        said.append(f"weights of epoch {monitor.best_epoch} in {_WEIGHTS}")
                finally:
                    model.load_state_dict(last)
        print("prioritymonitor: " + " · ".join(said), file=sys.stderr)


def _say_failed(error: Exception) -> None:
    _LOGGER.warning("not watching, the script goes on: %s", described(error))
