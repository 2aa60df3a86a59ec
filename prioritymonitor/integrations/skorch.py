"""skorch: a callback that watches the training of a net, and ends it."""

from __future__ import annotations

import inspect
import io
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from .. import GradientMonitor
from .options import check_options
from .trainer_missing import says_what_to_install

with says_what_to_install("skorch", "skorch"):
    from skorch.callbacks import Callback
    from skorch.utils import to_numpy

_OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(GradientMonitor).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
}

_COLUMNS = ("agreement", "noise_rate", "priority")
"""Of the monitor's history, put into the net's."""


class GradientMonitorCallback(Callback):  # type: ignore[misc]  # skorch has no annotations
    """Watches the training of a skorch net, and ends it once noisy labels dominate.

        watch = GradientMonitorCallback(log_dir="runs/a")
        net = NeuralNetClassifier(module, max_epochs=100, callbacks=[watch])
        net.fit(X, y)
        wrong = [watch.rows_[suspect.index] for suspect in watch.monitor.suspects()]

    skorch holds a part of the data out (`train_split`), so the monitor's indices are places in the
    rest: `rows_` has the row of `X` for each. `agreement`, `noise_rate` and `priority` of each
    epoch go into `net.history`. A net that is fitted, copied by `sklearn.base.clone` or taken by a
    grid search has a callback of its own in `net.callbacks_`. `partial_fit` and `warm_start` go on
    with the same monitor where they get the same data, also after pickling; they end after one
    epoch once it has said stop.

    Args:
        restore_best: Put the weights of the best epoch into the module when training ends.
        stop_training: End the training when the monitor says stop, as skorch's `EarlyStopping`
            does, so that callbacks behind this one miss that epoch's end; False: only measure and
            say so.
        verbose: Print the advice at the end of each epoch.
        options: Those of `GradientMonitor`, by name. `criterion`, where it is None, is that of the
            net; `noisy` and `true_labels` have one entry for each row of `X`.

    Raises:
        TypeError: `GradientMonitor` has no such option.
    """

    def __init__(
        self,
        *,
        restore_best: bool = False,
        stop_training: bool = True,
        verbose: bool = False,
        **options: Any,
    ) -> None:
        check_options(options, restore_best=False)  # set_params() may change both later
        self.restore_best, self.stop_training, self.verbose = restore_best, stop_training, verbose
        # Each is an attribute under its own name, as clone() and set_params() want it.
        self.__dict__.update(_OPTIONS | options)
        self.monitor_: GradientMonitor | None = None
        self.initialize()

    @property
    def monitor(self) -> GradientMonitor | None:
        """What it measures with; None before the first epoch, and after unpickling."""
        return self.monitor_

    def initialize(self) -> GradientMonitorCallback:
        """Forget an earlier training."""
        self._close()
        self.monitor_ = None
        self.rows_: Any = None
        self.labels_: Any = None
        self.state_: bytes | None = None
        self.has_begun_, self.given_ = False, (None, None)
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Wait for the first epoch: the data are split by then."""
        self._close()
        self.has_begun_, self.given_ = False, (X, y)

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Watch, from the first epoch on."""
        if not self.has_begun_:
            self._begin(net, dataset_train, *self.given_)
            self.has_begun_, self.given_ = True, (None, None)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Write the epoch into the net's history, and end the training if that is advised."""
        if self.monitor_ is None:
            return
        self.monitor_.end_epoch()
        for record in self.monitor_.history()[-1:]:
            for name in _COLUMNS:
                net.history.record(name, record[name])
        decision = self.monitor_.decision
        if self.verbose:
            print(f"prioritymonitor, epoch {decision.epoch}: {decision.message}")
        if self.stop_training and decision.stop:
            raise KeyboardInterrupt  # as skorch ends a training

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Leave the net as found."""
        if self.monitor_ is not None and self.restore_best:
            self.monitor_.restore_best()
        self._close()

    def _begin(self, net: Any, dataset: Any, X: Any, y: Any) -> None:
        options = {name: getattr(self, name) for name in _OPTIONS}
        check_options(options, restore_best=self.restore_best)
        is_part = isinstance(dataset, Subset) and dataset is not X
        rows = np.asarray(dataset.indices) if is_part else np.arange(len(dataset))
        labels = _labels(y)
        goes_on = np.array_equal(rows, self.rows_) and np.array_equal(labels, self.labels_)
        state = self._state() if goes_on else None
        self.rows_, self.labels_, self.state_ = rows, labels, None
        if options["criterion"] is None and isinstance(net.criterion_, nn.Module):
            options["criterion"] = net.criterion_
        for name in ("noisy", "true_labels"):
            if options[name] is not None and not callable(options[name]):
                options[name] = np.asarray(options[name])[rows]
        loader = net.get_iterator(dataset, training=True)  # one more, over the same data
        self.monitor_ = GradientMonitor(net.module_, net.optimizer_, loader, **options)
        if state is not None:
            on_cpu = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
            self.monitor_.load_state_dict(on_cpu)

    def _close(self) -> None:
        if self.monitor_ is not None:
            self.monitor_.close()

    def _state(self) -> bytes | None:
        if self.monitor_ is None:
            return self.state_
        file = io.BytesIO()
        torch.save(self.monitor_.state_dict(), file)
        return file.getvalue()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"monitor_": None, "state_": self._state()}


def _labels(y: Any) -> Any:
    """Labels, to be compared; None where they can't be."""
    try:
        return np.array(to_numpy(y))
    except (TypeError, ValueError):
        return None
