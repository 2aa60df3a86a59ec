"""`GradientMonitor`: the only place that puts the stages together."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from . import arguments
from .arguments import Settings
from .errors import PriorityMonitorError
from .gradients.parameters import choose
from .records import Decision, Suspect
from .run import Watch
from .samples.known_labels import KnownNoise, NoisyCallable
from .stopping.rule import StopRule

_EVERY = {"head": 8, "all": 16}
"""Optimizer steps from a measured one to the next, unless the user says."""


class GradientMonitor:
    """Watches how much of each update comes from clean and how much from noisy labels.

    Two lines go into a training script, and the training stays bit for bit what it was::

        monitor = GradientMonitor(model, optimizer, train_loader, log_dir="runs/a")
        for epoch in range(100):
            for x, y in train_loader:
                ...
            if monitor.should_stop: break
        monitor.restore_best()

    Keep the monitor in a variable: it closes itself when nothing refers to it any more.

    An epoch is a pass over `train_loader` in which the model was trained; epochs count from 1.
    Reference: Liu, Abedsoltan, Belkin, *On Emergence of Clean-Priority Learning in Early Stopped
    Neural Networks*, arXiv 2306.02533.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps; it trains parameters of `model`.
        train_loader: The `DataLoader` of the training data. It stays in use as it is and tells
            which samples each batch holds. Without it there is no history per sample, so no stop
            and no suspects.
        criterion: The loss as an `nn.Module` that the loop calls, or a function of (logits,
            targets). None: a cross-entropy loss on the model's logits is recognised by itself.
            Pass it for label smoothing and for any other loss: `BCEWithLogitsLoss`, `NLLLoss`,
            `MSELoss` and whatever is a sum over samples, or over pixels or tokens.
        head: The last linear layer, whose output is the logits. None: found on the first forward
            pass.
        noisy: Known wrong labels, for experiments: bool `[n]`, one flag per sample of
            `train_loader.dataset`, or a function `(inputs, targets, index) -> bool [B]`.
        true_labels: Known true labels, for experiments: int `[n]`. Says what `noisy` says, and the
            true class of the noisy samples with it.
        scope: Which parameters the step statistics cover: `"head"`, the last linear layer, at next
            to no cost, or `"all"`.
        engine: How per-sample gradients of all parameters are obtained: `"closed_form"`, from what
            the backward pass brings to each layer, `"func"`, by `torch.func`, or `"opacus"`, by
            Opacus (an extra) or from the gradients of a model that trains under its
            `PrivacyEngine`. `"auto"` takes the first that can see the model's layers.
        every: Step statistics are measured in each `every`-th optimizer step, at least 1. Losses
            and margins are kept in every step. None: 8 for the head, 16 for all parameters.
        stop: When to stop; None: measure only.
        keep_best: Weights to keep for `restore_best()`: `"averaged"`, a running average of the
            weights, `"last"`, the weights as the optimizer left them at the end of the epoch, or
            None.
        log_dir: Folder for TensorBoard events, epochs, samples and suspects, made at the first
            step; where another run is in it, `log_dir-2` and so on. None: nothing is written.
        writer: A `SummaryWriter` of yours to write to instead of `log_dir`.
        max_tracked: Larger data sets are followed by a fixed random subset of this many samples.

    Raises:
        ArgumentTypeError: An argument is of a type that cannot be used.
        ArgumentValueError: An argument has a value that cannot be used, such as an optimizer
            without parameters of the model, or `noisy` of the wrong length.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train_loader: DataLoader[Any] | None = None,
        *,
        criterion: nn.Module | Callable[..., Tensor] | None = None,
        head: nn.Module | None = None,
        noisy: Tensor | NoisyCallable | None = None,
        true_labels: Tensor | None = None,
        scope: Literal["head", "all"] = "head",
        engine: Literal["auto", "closed_form", "func", "opacus"] = "auto",
        every: int | None = None,
        stop: StopRule | None = StopRule(),  # noqa: B008  it is frozen
        keep_best: Literal["averaged", "last"] | None = "averaged",
        log_dir: str | os.PathLike[str] | None = None,
        writer: Any = None,
        max_tracked: int = 1_000_000,
    ) -> None:
        optimizer = arguments.check_model_and_optimizer(model, optimizer)
        arguments.check_loader(train_loader)
        arguments.check_head(model, head)
        arguments.check_criterion(criterion, train_loader)
        arguments.check_choices(scope, engine, stop, keep_best, max_tracked)
        arguments.check_every(every)
        chosen = choose(engine, model) if scope == "all" else None
        arguments.check_output(log_dir, writer)
        dataset = train_loader.dataset if train_loader is not None else None
        flags = arguments.check_noisy(noisy, dataset)
        labels = arguments.check_true_labels(true_labels, dataset)
        noisy_is_known = flags is not None or labels is not None

        self._model_name = type(model).__name__
        self._watch = Watch(
            model,
            optimizer,
            train_loader,
            Settings(
                criterion=criterion,
                head=head,
                known_noise=KnownNoise(flags, labels) if noisy_is_known else None,
                engine=chosen,
                every=every if every is not None else _EVERY[scope],
                stop=stop,
                keep_best=keep_best,
                log_dir=Path(log_dir) if log_dir is not None else None,
                writer=writer,
                max_tracked=max_tracked,
            ),
        )
        # Runs when nobody refers to the monitor any more, and at the exit of the process. The hooks
        # refer to the watch only, so a notebook cell that is run again lets go of the old monitor.
        self._closer = weakref.finalize(self, _close, self._watch, os.getpid())

    @property
    def should_stop(self) -> bool:
        """True once noisy labels dominate the updates; it stays True."""
        return self.decision.stop

    @property
    def decision(self) -> Decision:
        """The latest advice with its reason."""
        self._watch.settle_epoch()
        return self._watch.decision

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights `restore_best()` would give now; None before the first."""
        wanted, keeper = self.decision.best_epoch, self._watch.keeper
        return wanted if keeper is None else keeper.epoch

    @property
    def noise_rate(self) -> float:
        """Estimated share of noisy labels among the samples seen, in [0, 1]; NaN before epoch 1."""
        self._watch.settle_epoch()
        return self._watch.path.noise_rate if self._watch.path is not None else float("nan")

    @property
    def latest(self) -> dict[str, float]:
        """Statistics of the last measured step by tag, without prefix; empty before the first."""
        self._watch.report_steps()
        return dict(self._watch.latest)

    @property
    def log_dir(self) -> Path | None:
        """The folder that is written to; None before the first step, and without one."""
        folder = self._watch.folder
        return folder.path if folder is not None else None

    def history(self) -> list[dict[str, Any]]:
        """One record per completed epoch, the first one first.

        Returns:
            Plain dicts with the keys `epoch`, `step`, `priority`, `noise_rate`, `train_loss`,
            `clean_loss`, `noisy_loss`, `epochs_since_peak`, `best_epoch`, `stop` and `reason`.
            Without sample identities, and after the stop: `epoch`, `step` and `reason` only.
        """
        self._watch.settle_epoch()
        return self._watch.history()

    def suspects(self, k: int | None = None) -> list[Suspect]:
        """The training samples, those most likely mislabelled first.

        Args:
            k: How many; None: all that were visited. Those with a score above 0.5 are taken to be
                mislabelled.

        Returns:
            Tuples `(index, score, given_label, predicted_label)`; the index is the position in
            `train_loader.dataset`. Empty before the first epoch is complete.
        """
        self._watch.settle_epoch()
        return self._watch.path.suspects(k) if self._watch.path is not None else []

    def restore_best(self) -> int | None:
        """Put the weights of the best epoch into the model, buffers included.

        Returns:
            The epoch they are from; None, and the model unchanged, if no epoch was completed.

        Raises:
            PriorityMonitorError: The monitor was made with `keep_best=None`.
        """
        keeper = self._watch.keeper
        if self._watch.settings.keep_best is None:
            raise PriorityMonitorError(
                'got restore_best() with keep_best=None, which keeps no weights; use "averaged"'
            )
        epoch = self.best_epoch
        if keeper is None or epoch is None:
            self._watch.log.once(
                "restore_best() left the weights as they are: no epoch over train_loader was "
                "completed"
            )
            return None
        keeper.restore()
        return epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as tensors and plain types.

        `torch.load(..., weights_only=True)` reads it. Its size is that of the history of the
        samples and of the kept weights.
        """
        return self._watch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a run: the same decisions follow as without the interruption.

        Raises:
            ArgumentValueError: The state is from a run with other settings of `train_loader` or
                `keep_best`, or on a data set of another size.
        """
        self._watch.load_state_dict(state)

    def close(self) -> None:
        """Take every hook off, write what is left, leave model, optimizer and loader as found.

        What was measured can still be read, and `restore_best()` works.
        """
        self._closer()

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        capture, everything = self._watch.capture, self._watch.all_parameters
        scope = 'scope="head"'
        if everything is not None:
            engine = self._watch.settings.engine
            scope = f'scope="all", engine={engine!r}, coverage={everything.coverage:.3f}'
        return (
            f"GradientMonitor({self._model_name}, head={capture.head_watch.head}, "
            f"{scope}, every={self._watch.settings.every}, steps={capture.steps}, "
            f"epochs={self._watch.epoch}, {self.decision.message!r})"
        )


def _close(watch: Watch, process: int) -> None:
    # A forked worker of a loader has copies of everything, and must neither write to our files nor
    # wait for threads that it has not.
    if os.getpid() == process:
        watch.close()
