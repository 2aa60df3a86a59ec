"""transformers: a callback that watches the training of a `Trainer`, and ends it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from .. import GradientMonitor, PriorityMonitorError
from .options import check_options
from .trainer_missing import says_what_to_install

with says_what_to_install("transformers", "transformers"):
    from transformers import TrainerCallback, TrainerState
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

if TYPE_CHECKING:
    from transformers import Trainer

_LOGGER = logging.getLogger(__name__)
_NOT_LOGGED = ("epoch", "step", "time", "reason")  # axes of the Trainer's own, and what is a text


class GradientMonitorCallback(TrainerCallback):
    """Watches each training of a `Trainer`, and ends it once noisy labels dominate.

        trainer = Trainer(..., callbacks=[GradientMonitorCallback(log_dir="runs/a")])

    The state of the monitor is saved in each checkpoint, and a training that is resumed goes on
    with it. The values of each epoch go into `trainer.state.log_history`; with "tensorboard" in
    `report_to` and no `log_dir`, the run folder is `prioritymonitor` beside the Trainer's runs.

    Args:
        stop_training: End the training after the epoch in which the monitor says stop; False: only
            measure and say so.
        restore_best: Put the weights of the best epoch into the model when the training ends. By
            default they stay as the optimizer left them, as in any Trainer, and can be had by
            `callback.monitor.restore_best()`. `load_best_model_at_end` goes before it.
        verbose: Print a sentence after each epoch.
        trainer: The Trainer, for a callback that is added to it afterwards: the values of each
            epoch then go to all of `report_to`, by its `log()`.
        **options: Those of `GradientMonitor`, apart from model, optimizer and train_loader.

    Attributes:
        monitor: That of the latest training; None before the first.
    """

    # No ExportableState: the Trainer would make another callback from JSON, without the criterion
    # and the labels that were passed to this one.

    def __init__(
        self,
        *,
        stop_training: bool = True,
        restore_best: bool = False,
        verbose: bool = False,
        trainer: Trainer | None = None,
        **options: Any,
    ) -> None:
        check_options(options, restore_best=restore_best)
        self.monitor: GradientMonitor | None = None
        self.stop_training, self.restore_best = stop_training, restore_best
        self.verbose, self._trainer, self._options = verbose, trainer, options
        self._reported = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        """Attach a monitor; a training that broke off has left its own attached."""
        if self.monitor is not None:
            self.monitor.close()
        passed = [of_trainer[name] for name in ("model", "optimizer", "train_dataloader")]
        self.monitor = GradientMonitor(*passed, **_log_dir(args, self._options) | self._options)
        if self.restore_best and args.load_best_model_at_end:
            _LOGGER.warning("restore_best=True has no effect beside load_best_model_at_end=True")
        if state.global_step:
            _resume(self.monitor, args, state)
        self._reported = len(self.monitor.history())
        self._stop(self.monitor, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Judge the epoch, report it, and end the training if it is time."""
        if self.monitor is not None:
            self.monitor.end_epoch()
            self._report(self.monitor, state, control)
            self._stop(self.monitor, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the state of the monitor in the checkpoint that was just written."""
        folder = _checkpoint(args, state)
        if self.monitor is None or args.save_only_model or not folder.is_dir():
            return
        try:
            torch.save(self.monitor.state_dict(), folder / _file(args))
        except (OSError, RuntimeError) as error:
            _LOGGER.warning("the monitor can't be saved in %s: %s", folder, error)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the monitor off; with `restore_best`, the best weights stay in the model."""
        if self.monitor is None:
            return
        try:
            if self.restore_best and not args.load_best_model_at_end:
                self.monitor.restore_best()
        except PriorityMonitorError as error:
            _LOGGER.warning("the weights stay as they are: %s", error)
        self.monitor.close()

    def _report(self, monitor: GradientMonitor, state: Any, control: Any) -> None:
        for record in monitor.history()[self._reported :]:
            known = {name: value for name, value in record.items() if value is not None}
            values = {
                f"prioritymonitor/{name}": float(value)
                for name, value in known.items()
                if name not in _NOT_LOGGED
            }
            if self._trainer is None:
                at = {"epoch": state.epoch, "step": state.global_step}
                state.log_history.append(values | at)
            else:
                is_due = control.should_log  # of the Trainer's own values; log() would clear it
                self._trainer.log(values)
                control.should_log = is_due
            if self.verbose and state.is_world_process_zero:
                print(f"epoch {record['epoch']}: {monitor.decision.message}")
        self._reported = len(monitor.history())

    def _stop(self, monitor: GradientMonitor, control: Any) -> None:
        if self.stop_training and monitor.should_stop:
            control.should_training_stop = True


def _log_dir(args: Any, options: dict[str, Any]) -> dict[str, Any]:
    if "tensorboard" not in args.report_to or {"log_dir", "writer"} & {*options}:
        return {}
    runs = os.getenv("TENSORBOARD_LOGGING_DIR") or Path(args.output_dir, "runs")
    return {"log_dir": Path(runs, "prioritymonitor")}


def _file(args: Any) -> str:
    """Name of the state in a checkpoint: one of each process, as of the Trainer's random states."""
    process = f"_{args.process_index}" if args.world_size > 1 else ""
    return f"prioritymonitor{process}.pt"


def _checkpoint(args: Any, state: Any) -> Path:
    """That of the present step; named trials of a search have folders of their own."""
    name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    return Path(args.output_dir, state.trial_name or "", name)


def _resume(monitor: GradientMonitor, args: Any, state: Any) -> None:
    """Go on with the state in the checkpoint that the Trainer resumes from."""
    folders = (Path(str(args.resume_from_checkpoint)), _checkpoint(args, state))
    why: object = (
        f"its checkpoint is not in {args.output_dir}; name it in the TrainingArguments too, as "
        "resume_from_checkpoint="
    )
    try:
        for folder in folders:
            if _is_resumed(folder, state):
                monitor.load_state_dict(torch.load(folder / _file(args), weights_only=True))
                return
    except (OSError, EOFError, RuntimeError, TypeError, ValueError, UnpicklingError) as error:
        why = error
    message = "resumed at step %d without the state of the monitor, which begins anew: %s"
    _LOGGER.warning(message, state.global_step, why)


def _is_resumed(folder: Path, state: Any) -> bool:
    """The Trainer does not say which it is: it is known by what had been logged until then."""
    file = folder / "trainer_state.json"
    if not file.is_file():
        return False
    saved = TrainerState.load_from_json(str(file))
    return json.dumps(saved.log_history) == json.dumps(state.log_history)
