"""Lightning: a callback that watches a fit, and ends it once noisy labels dominate."""

from __future__ import annotations

import copy
import functools
import logging
import sys
from typing import TYPE_CHECKING, Any

from torch import tensor
from torch.optim import SGD

from .. import ArgumentValueError, GradientMonitor
from .options import check_options
from .trainer_missing import says_what_to_install

_NAMES = ("lightning", "pytorch_lightning")
"""One library under two names."""

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:  # as the user imports it, or else what there is
    _packages = [sys.modules.get(name) for name in ("lightning.pytorch", "pytorch_lightning")]
    if not any(_packages):
        try:
            import lightning.pytorch as _package
        except ImportError:
            with says_what_to_install("lightning", "pytorch_lightning"):
                import pytorch_lightning as _package
        _packages = [_package]
    Callback = type("Callback", tuple(one.Callback for one in _packages if one), {})

_LOG = logging.getLogger("prioritymonitor")

_SOURCE = "_data_source"
"""Of `trainer.fit_loop`: by its `dataloader()` Lightning asks for the train loader. Not documented,
and there since Lightning 2.0."""


class GradientMonitorCallback(Callback):
    """Watches a fit with a `GradientMonitor`, and ends it once noisy labels dominate.

        callback = GradientMonitorCallback()
        L.Trainer(callbacks=[callback]).fit(module, loader)
        callback.monitor.suspects()

    Each `fit` has a monitor of its own. With `ckpt_path`, and where the same trainer goes on with
    another `fit`, it goes on from what was known; checkpoints hold that, with a copy of the
    weights. Without `log_dir` and `writer` it writes to the trainer's `TensorBoardLogger`. Other
    loggers get the values of each epoch, and `EarlyStopping` and `ModelCheckpoint` can watch them:
    `monitor="prioritymonitor/priority"`.

    Args:
        loader: Which one to follow where there are several train loaders: its key, or its place in
            the list.
        optimizer: Which one to watch where `configure_optimizers` gives several: its place in
            `trainer.optimizers`, or the name of its class.
        restore_best: Put the weights of the best epoch into the module at the end of the fit. They
            are left alone by default, as by `EarlyStopping`; `callback.monitor.restore_best()`
            does it later.
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
        loader: int | str | None = None,
        optimizer: int | str | None = None,
        restore_best: bool = False,
        stop_training: bool = True,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        check_options(options, restore_best=restore_best)
        self.restore_best, self.stop_training, self.verbose = restore_best, stop_training, verbose
        self.monitor: GradientMonitor | None = None
        """What the latest fit is measured with; None before its train loader is asked for."""
        self._loader, self._optimizer, self._options = loader, optimizer, options
        self._state: dict[str, Any] | None = None
        self._old_optimizers: Any = None
        self._early: tuple[Any, GradientMonitor] | None = None

    @property
    def state_key(self) -> str:
        """One for each optimizer that is watched."""
        return self._generate_state_key(optimizer=self._optimizer)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Wait for the train loader; there is no optimizer yet."""
        if stage != "fit":
            return
        goes_on = self.monitor is not None and trainer.global_step > 0
        self._state = self.state_dict() if goes_on else None
        self.monitor, self._old_optimizers = None, trainer.optimizers
        source = getattr(trainer.fit_loop, _SOURCE, None)
        if source is None:
            _LOG.warning(
                "this version of Lightning asks for its train loader in a way that is not known; "
                "the first epoch is not seen: use another version, or another prioritymonitor"
            )
        else:
            source.dataloader = functools.partial(self._asked, trainer, source.dataloader)

    def _asked(self, trainer: Any, original: Any) -> Any:
        """Lightning asks for the train loader, and is about to make an iterator of it."""
        loaders = original()
        if all(one is not self for one in trainer.callbacks):
            return loaders  # a tuner tries something out
        if trainer.optimizers is not self._old_optimizers:
            self._watch(trainer, loaders)
        elif self._early is None:
            # `trainer.estimated_stepping_batches` in `configure_optimizers`: the first iterator is
            # made before there is an optimizer. Until there is, a monitor of nothing follows it.
            loader, module = _loader_in(loaders, self._loader), _called(trainer.lightning_module)
            nothing = SGD(module.parameters(), lr=0.0)
            monitor = GradientMonitor(module, nothing, loader, stop=None, keep_best=None)
            self._early = loaders, monitor
        return loaders

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """There are loader and optimizer in any case."""
        self._watch(trainer, self._early[0] if self._early else trainer.train_dataloader)

    def _watch(self, trainer: Any, loaders: Any) -> None:
        if self.monitor is not None:
            return
        module, options = _called(trainer.lightning_module), _with_output(self._options, trainer)
        loader = _loader_in(loaders, self._loader)
        if trainer.reload_dataloaders_every_n_epochs:
            loader = copy.copy(loader)  # one that nobody uses: any other over its data is followed
        optimizer = _optimizer_in(trainer.optimizers, self._optimizer)
        self.monitor = GradientMonitor(module, optimizer, loader, **options)
        if self._early is not None:
            self._early[1].close()
        if self._state is not None:
            try:
                self.monitor.load_state_dict(self._state)
            except ArgumentValueError as error:  # it is Lightning that loads, not the user
                _LOG.warning("nothing is known of the training before: %s", error)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the epoch, tell its values, and ask for the stop."""
        assert self.monitor is not None
        self.monitor.end_epoch()
        for record in self.monitor.history()[-1:]:
            self._tell(trainer, record)
        decision = self.monitor.decision
        if self.verbose:
            trainer.print(f"prioritymonitor, epoch {decision.epoch}: {decision.message}")
        if self.stop_training:
            stop = trainer.strategy.reduce_boolean_decision(decision.stop, all=False)
            trainer.should_stop = trainer.should_stop or stop

    def _tell(self, trainer: Any, record: dict[str, Any]) -> None:
        values = {
            f"prioritymonitor/{name}": float(value)
            for name, value in record.items()
            if isinstance(value, (int, float)) and name not in ("step", "time")
        }
        # Not by `log()`, which wants them from all ranks, and some may know no value.
        trainer.callback_metrics.update({name: tensor(value) for name, value in values.items()})
        writer = _with_output(self._options, trainer).get("writer")
        for logger in trainer.loggers:
            if writer is None or _writer_of(logger) is not writer:
                logger.log_metrics(values, step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the best weights back, before others save what there is."""
        if self.restore_best and self.monitor is not None:
            self.monitor.restore_best()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave everything as found; what was measured stays readable."""
        self._let_go(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave everything as found; what was measured stays readable."""
        self._let_go(trainer)

    def _let_go(self, trainer: Any) -> None:
        source = getattr(trainer.fit_loop, _SOURCE, None)
        if source is not None:
            vars(source).pop("dataloader", None)
        for monitor in (self._early and self._early[1], self.monitor):
            if monitor is not None:
                monitor.close()
        self._early = self._old_optimizers = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed fit needs, for `torch.load(..., weights_only=True)`."""
        return self.monitor.state_dict() if self.monitor is not None else self._state or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it for the monitor that a fit will have."""
        self._state = state_dict


def _called(module: Any) -> Any:
    """What `training_step` calls: where there is no `forward()`, it can only be a part."""
    has_forward = type(module).forward.__module__.partition(".")[0] not in _NAMES
    parts = [part for part in module.children() if any(True for _ in part.parameters())]
    return module if has_forward or len(parts) != 1 else parts[0]


def _loader_in(loaders: Any, which: int | str | None) -> Any:
    several = getattr(loaders, "iterables", loaders)  # of a CombinedLoader
    if not isinstance(several, (dict, list, tuple)) or len(several) < 2:
        return loaders
    named: dict[Any, Any] = several if isinstance(several, dict) else dict(enumerate(several))
    if which not in named:
        raise ArgumentValueError(
            f"got loader={which!r} for the train loaders {[*named]}; pass the one of them whose "
            "labels are trained on"
        )
    return named[which]


def _optimizer_in(optimizers: list[Any], which: int | str | None) -> Any:
    names = [type(one).__name__ for one in optimizers]
    pairs = enumerate(zip(names, optimizers, strict=True))
    found = [one for place, (name, one) in pairs if which is None or which in (place, name)]
    if len(found) != 1:
        raise ArgumentValueError(
            f"got optimizer={which!r} for {names} of configure_optimizers; pass the place in this "
            "list, or the name, of the one to watch"
        )
    return found[0]


def _with_output(options: dict[str, Any], trainer: Any) -> dict[str, Any]:
    if trainer.fast_dev_run:  # no logger writes then
        return options | {"log_dir": None}
    if options.get("log_dir") is not None or options.get("writer") is not None:
        return options
    return options | {"writer": next(filter(None, map(_writer_of, trainer.loggers)), None)}


def _writer_of(logger: Any) -> Any:
    """The `SummaryWriter` behind a logger, if there is one."""
    experiment = getattr(logger, "experiment", None)
    return experiment if hasattr(type(experiment), "add_scalar") else None
