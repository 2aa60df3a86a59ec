"""Lightning: a callback that watches a fit, and ends it once noisy labels dominate."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any

from torch.optim import SGD, Optimizer

from .. import ArgumentValueError, GradientMonitor

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:  # one library under two names: as the user imports it, or else what there is
    _packages = [sys.modules.get(name) for name in ("lightning.pytorch", "pytorch_lightning")]
    if not any(_packages):
        try:
            import lightning.pytorch as _package
        except ImportError:
            import pytorch_lightning as _package
        _packages = [_package]
    Callback = type("Callback", tuple(one.Callback for one in _packages if one), {})

_SOURCE = "_data_source"
"""Of `trainer.fit_loop`: its `dataloader()` is how Lightning asks for the train loader. It is not
documented, and there since Lightning 2.0."""

_LOG = logging.getLogger("prioritymonitor")


class GradientMonitorCallback(Callback):
    """Watches a fit with a `GradientMonitor`, and ends it once noisy labels dominate.

        callback = GradientMonitorCallback()
        L.Trainer(callbacks=[callback]).fit(module, loader)
        callback.monitor.suspects()

    Each `fit` has a monitor of its own. With `ckpt_path`, and where the same trainer goes on with
    another `fit`, it goes on from what was known; checkpoints hold that, and a copy of the weights
    with it. Without `log_dir` and `writer` it writes to the trainer's `TensorBoardLogger`. Other
    loggers get the values of each epoch, and `EarlyStopping` and `ModelCheckpoint` can watch them:
    `monitor="prioritymonitor/priority"`.

    Args:
        optimizer: Which one to watch where `configure_optimizers` gives several: its place in
            `trainer.optimizers`, or the name of its class.
        restore_best: Put the weights of the best epoch into the module at the end of the fit. Left
            alone by default, as by `EarlyStopping`: `callback.monitor.restore_best()` does it too.
        stop_training: Ask the trainer to stop, which respects `min_epochs`; False: only measure
            and say so.
        verbose: Print the advice at the end of each epoch.
        options: Those of `GradientMonitor`, by name.

    Raises:
        ArgumentValueError: `restore_best=True` with `keep_best=None`.
        TypeError: `GradientMonitor` has no such option.
    """

    def __init__(
        self,
        *,
        optimizer: int | str | None = None,
        restore_best: bool = False,
        stop_training: bool = True,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        inspect.signature(GradientMonitor).bind(None, None, None, **options)
        if restore_best and options.get("keep_best", "averaged") is None:
            raise ArgumentValueError(
                'got restore_best=True with keep_best=None, which keeps no weights; use "averaged"'
            )
        self.restore_best, self.stop_training, self.verbose = restore_best, stop_training, verbose
        self.monitor: GradientMonitor | None = None
        """What the latest fit is measured with; None before its train loader is asked for."""
        self._optimizer, self._options = optimizer, options
        self._state: dict[str, Any] | None = None
        self._loaders: Any = None
        self._stand_in: GradientMonitor | None = None
        self._is_fit = False

    @property
    def state_key(self) -> str:
        """One for each optimizer that is watched."""
        return self._generate_state_key(optimizer=self._optimizer)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wait for the train loader; there is no optimizer yet."""
        self._is_fit = stage == "fit"
        if not self._is_fit:
            return
        goes_on = self.monitor is not None and trainer.global_step > 0
        self._state = self.state_dict() if goes_on else None
        self.monitor, self._old_optimizers = None, trainer.optimizers
        source = getattr(trainer.fit_loop, _SOURCE, None)
        if source is None:
            _LOG.warning("this version of Lightning can't be followed; epoch 1 may be missing")
            return
        source.dataloader = functools.partial(self._asked, trainer, source.dataloader)

    def _asked(self, trainer: Any, original: Any) -> Any:
        """Lightning asks for the train loader, and is about to make an iterator of it."""
        loaders = original()
        if all(one is not self for one in trainer.callbacks):
            return loaders  # a tuner tries something out
        if trainer.optimizers is not self._old_optimizers:
            self._watch(trainer, loaders)
        elif self._stand_in is None:
            # `trainer.estimated_stepping_batches` in `configure_optimizers`: the first iterator is
            # made before there is an optimizer. Until then, a monitor of nothing follows it.
            module, self._loaders = trainer.lightning_module, loaders
            nothing = SGD(module.parameters(), lr=0.0)
            self._stand_in = GradientMonitor(module, nothing, loaders, stop=None, keep_best=None)
        return loaders

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """There are loader and optimizer in any case."""
        waited = self._loaders is not None
        self._watch(trainer, self._loaders if waited else trainer.train_dataloader)

    def _watch(self, trainer: Any, loaders: Any) -> None:
        if self.monitor is not None:
            return  # loaders made anew over the same data are followed
        optimizer = _chosen(trainer.optimizers, self._optimizer)
        options = _with_output(self._options, trainer)
        self.monitor = GradientMonitor(trainer.lightning_module, optimizer, loaders, **options)
        self._writer = options.get("writer")
        if self._stand_in is not None:
            self._stand_in.close()
        if self._state is not None:
            try:
                self.monitor.load_state_dict(self._state)
            except ArgumentValueError as error:  # it is Lightning that loads, not the user
                _LOG.warning("nothing is known of the training before: %s", error)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the epoch, tell its values, and ask for the stop."""
        assert self.monitor is not None
        self.monitor.end_epoch()
        self._report(trainer, pl_module, self.monitor.history()[-1:])
        decision = self.monitor.decision
        if self.verbose:
            trainer.print(f"prioritymonitor: {decision.message}")
        if self.stop_training and not trainer.fast_dev_run:
            stop = trainer.strategy.reduce_boolean_decision(decision.stop, all=False)
            trainer.should_stop = trainer.should_stop or stop

    def _report(self, trainer: Any, module: Any, records: list[Any]) -> None:
        for record in records:
            values = {
                f"prioritymonitor/{name}": float(value)
                for name, value in record.items()
                if isinstance(value, (int, float)) and name not in ("step", "time")
            }
            module.log_dict(values, logger=False, batch_size=1)
            for logger in trainer.loggers:
                if _writer_of(logger) is None or _writer_of(logger) is not self._writer:
                    logger.log_metrics(values, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the best weights back, before others save what there is."""
        if self.restore_best and self.monitor is not None:
            self.monitor.restore_best()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave everything as found."""
        self._let_go(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave everything as found; what was measured stays readable."""
        if stage == "fit":
            self._let_go(trainer)

    def _let_go(self, trainer: Any) -> None:
        vars(getattr(trainer.fit_loop, _SOURCE, self)).pop("dataloader", None)
        for monitor in (self._stand_in, self.monitor):
            if monitor is not None:
                monitor.close()
        self._stand_in = self._loaders = None
        self._old_optimizers = []

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs, for `torch.load(..., weights_only=True)`."""
        return self.monitor.state_dict() if self.monitor is not None else self._state or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it for the monitor of a fit; `trainer.test(ckpt_path=...)` loads it too."""
        if self._is_fit:
            self._state = state_dict


def _chosen(optimizers: list[Optimizer], which: int | str | None) -> Optimizer:
    names = [type(one).__name__ for one in optimizers]
    pairs = enumerate(zip(names, optimizers, strict=True))
    found = [one for place, (name, one) in pairs if which is None or which in (place, name)]
    if len(found) != 1:
        raise ArgumentValueError(
            f"got optimizer={which!r} for {names} of configure_optimizers; pass the place in this "
            "list, or the name of a class, of the one to watch"
        )
    return found[0]


def _with_output(options: dict[str, Any], trainer: Any) -> dict[str, Any]:
    if trainer.fast_dev_run:  # no logger writes then
        return options | {"log_dir": None}
    if any(options.get(name) is not None for name in ("log_dir", "writer")):
        return options
    return options | {"writer": next(filter(None, map(_writer_of, trainer.loggers)), None)}


def _writer_of(logger: Any) -> Any:
    """The `SummaryWriter` behind a logger, if there is one."""
    experiment = getattr(logger, "experiment", None)
    return experiment if hasattr(type(experiment), "add_scalar") else None
