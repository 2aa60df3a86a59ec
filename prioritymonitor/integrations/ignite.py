"""Ignite: a handler that watches the training of an `Engine`, and terminates it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .. import GradientMonitor, PriorityMonitorError
from .options import check_options
from .trainer_missing import says_what_to_install

with says_what_to_install("ignite", "ignite"):
    from ignite.base.mixins import Serializable
    from ignite.engine import Engine, Events, RemovableEventHandle


class GradientMonitorHandler(Serializable):
    """Watches the training of an Ignite `Engine`, and terminates it once noisy labels dominate.

        handler = GradientMonitorHandler(log_dir="runs/a")
        handler.attach(trainer, model, optimizer, train_loader)
        trainer.run(train_loader, max_epochs=100)
        handler.monitor.suspects()

    The advice is read where Ignite's epochs end. With an `epoch_length=` other than that of the
    loader, the monitor's epochs are still passes over the loader. It goes on in the next
    `trainer.run()`, and once it has said stop, that run ends before its first batch: `close()`
    takes it off. With `Checkpoint`, pass it in `to_save` and to `Checkpoint.load_objects()`.

    Args:
        restore_best: Put the weights of the best epoch into the model at `Events.COMPLETED`.
        stop_training: Call `trainer.terminate()` when the monitor says stop; False: only measure
            and say so.
        verbose: Print the advice at the end of each epoch.
        options: Those of `GradientMonitor`, by name.

    Raises:
        ArgumentValueError: `restore_best=True` with `keep_best=None`.
        TypeError: `GradientMonitor` has no such option.
    """

    _state_dict_all_req_keys = ("version", "run")

    def __init__(
        self,
        *,
        restore_best: bool = False,
        stop_training: bool = True,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        check_options(options, restore_best=restore_best)
        self.restore_best, self.stop_training, self.verbose = restore_best, stop_training, verbose
        self.monitor: GradientMonitor | None = None
        """What it measures with; None before `attach()`."""
        self._options = options
        self._loaded: Mapping[str, Any] | None = None
        self._handles: list[RemovableEventHandle] = []
        self._in_step = True

    def attach(
        self, trainer: Engine, model: nn.Module, optimizer: Optimizer, loader: DataLoader[Any]
    ) -> None:
        """Watch a trainer from now on; one that it was attached to before is left alone.

        Args:
            trainer: The engine whose process function trains the model.
            model: As for `GradientMonitor`.
            optimizer: As for `GradientMonitor`.
            loader: The loader that the trainer is run over.
        """
        self.close()
        self._loader = loader
        self.monitor = GradientMonitor(model, optimizer, loader, **self._options)
        if self._loaded is not None:
            self.monitor.load_state_dict(dict(self._loaded))
            self._loaded = None
        # None at EXCEPTION_RAISED: Ignite swallows an exception that anyone handles.
        self._handles = [
            trainer.add_event_handler(Events.STARTED, self._started),
            trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed),
            trainer.add_event_handler(Events.COMPLETED, self._completed),
        ]

    def close(self) -> None:
        """Leave trainer, model, optimizer and loader as found; what was measured stays readable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.monitor is not None:
            self.monitor.close()

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """What a resumed run needs, for `torch.load(..., weights_only=True)`."""
        if self.monitor is not None:
            return self.monitor.state_dict()
        if self._loaded is not None:
            return dict(self._loaded)
        raise PriorityMonitorError("got state_dict() before attach(); attach the handler first")

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict()` gave, now or at `attach()`."""
        super().load_state_dict(state_dict)
        if self.monitor is not None:
            self.monitor.load_state_dict(dict(state_dict))
        else:
            self._loaded = state_dict

    def _started(self, trainer: Engine) -> None:
        # Resumed in the middle of an epoch, Ignite may begin the loader anew, and its epochs then
        # end in the middle of passes.
        length = trainer.state.epoch_length
        self._in_step = not length or trainer.state.iteration % length == 0
        self._follow_advice(trainer)

    def _epoch_completed(self, trainer: Engine) -> None:
        if self.monitor is not None and self._is_a_pass(trainer.state.epoch_length):
            self.monitor.end_epoch()
        self._follow_advice(trainer)
        if self.monitor is not None and self.verbose:
            decision = self.monitor.decision
            print(f"prioritymonitor, epoch {decision.epoch}: {decision.message}")

    def _is_a_pass(self, epoch_length: int | None) -> bool:
        """Whether an epoch of so many batches is a pass over the loader."""
        try:
            return self._in_step and epoch_length == len(self._loader)
        except TypeError:
            return True  # a stream: its epochs are what Ignite takes for one

    def _follow_advice(self, trainer: Engine) -> None:
        if self.monitor is not None and self.stop_training and self.monitor.should_stop:
            trainer.terminate()

    def _completed(self) -> None:
        if self.monitor is not None and self.restore_best:
            self.monitor.restore_best()
