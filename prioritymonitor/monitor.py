"""`GradientMonitor`: arguments in, readings out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from . import arguments
from .errors import PriorityMonitorError
from .readings import Readings
from .records import Decision
from .run import Run
from .samples.known_labels import NoisyCallable
from .state import load_state_dict, state_dict
from .stopping.rule import Rule, StopRule


class GradientMonitor(Readings):
    """Watches how much of each update comes from clean and how much from noisy labels.

    Two lines go into a training script, and the training stays bit for bit what it was:

        monitor = GradientMonitor(model, optimizer, train_loader, log_dir="runs/a")
        for epoch in range(100):
            for x, y in train_loader:
                ...
            if monitor.should_stop: break
        monitor.restore_best()

    Keep the monitor in a variable: it closes itself when nothing refers to it any more. An epoch is
    a pass over `train_loader` in which the model was trained; epochs count from 1. What is read is
    as of the last closed epoch. A failure of the monitor is said in the log and never reaches the
    training loop.

    Reference: Liu, Abedsoltan, Belkin, *On Emergence of Clean-Priority Learning in Early Stopped
    Neural Networks*, arXiv 2306.02533.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps; it trains parameters of `model`.
        train_loader: The `DataLoader` of the training data, or what a trainer has made of it. It
            stays in use as it is and tells which samples each batch holds; so do other loaders
            over the same data set, until it is trained on itself. Without it there is no history
            per sample, so no stop and no suspects.
        criterion: The loss as an `nn.Module` that the loop calls, or a function of (logits,
            targets). None: a cross-entropy loss on the model's logits is recognised by itself.
            Pass it for any other loss than cross-entropy: `BCEWithLogitsLoss`, `NLLLoss`,
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
        stop: When to stop: a `StopRule`, or any function of the list that `history()` gives which
            returns a `Decision`; it is asked at the end of each epoch. None: measure only.
        keep_best: Weights to keep for `restore_best()`: `"averaged"`, a running average, `"last"`,
            the weights as the optimizer left them at the end of the best epoch, or None.
        validation: A loader of other samples with labels as given, however noisy: one more witness.
            Batches are `(inputs, labels)`, or dicts of labels and the model's arguments; the model
            takes them as they come. Its averaged weights are tried on the first 2,000 samples at
            each epoch's end. They are drawn by a fixed seed, and are not in `state_dict()`.
        class_names: Names of the classes, in their order; they go into the run folder.
        log_dir: Folder of the run: TensorBoard events, its epochs, samples and suspects, written
            while the run goes on. None: nothing is written. A folder of another run is left alone,
            and a number added to the name.
        writer: A `SummaryWriter` of yours to write to instead of `log_dir`.
        max_tracked: Larger data sets are followed by a fixed random subset of this many samples;
            None: every sample is followed; beyond 1 GiB the log says what that takes.

    Raises:
        ArgumentTypeError: An argument is of a type that cannot be used.
        ArgumentValueError: An argument has a value that cannot be used, such as an optimizer
            without parameters of the model, or `noisy` of the wrong length.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        train_loader: Iterable[Any] | None = None,
        *,
        criterion: nn.Module | Callable[..., Tensor] | None = None,
        head: nn.Module | None = None,
        noisy: Tensor | NoisyCallable | None = None,
        true_labels: Tensor | None = None,
        scope: Literal["head", "all"] = "head",
        engine: Literal["auto", "closed_form", "func", "opacus"] = "auto",
        every: int | None = None,
        stop: Rule | None = StopRule(),  # noqa: B008  it is frozen
        keep_best: Literal["averaged", "last"] | None = "averaged",
        validation: Iterable[Any] | None = None,
        class_names: Sequence[str] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        writer: Any = None,
        max_tracked: int | None = None,
    ) -> None:
        optimizer = arguments.check_model_and_optimizer(model, optimizer)
        loader = arguments.check_loader(train_loader)
        settings = arguments.checked(
            model,
            loader,
            criterion=criterion,
            head=head,
            noisy=noisy,
            true_labels=true_labels,
            scope=scope,
            engine=engine,
            every=every,
            stop=stop,
            keep_best=keep_best,
            validation=validation,
            class_names=class_names,
            log_dir=log_dir,
            writer=writer,
            max_tracked=max_tracked,
        )
        self._model_name = type(model).__name__
        self._run = Run(settings)
        # Runs when nobody refers to the monitor any more, and at the exit of the process. Hooks are
        # made after it, so that none is left, and refer to the run only.
        self._process = os.getpid()
        self._closer = weakref.finalize(self, _close, self._run, self._process)
        self._run.attach(model, optimizer, loader)

    @property
    def should_stop(self) -> bool:
        """True once noisy labels dominate the updates; it stays True."""
        return self.decision.stop

    @property
    def decision(self) -> Decision:
        """The latest advice with its reason.

        Read by the thread that trains, in a single process, it closes an epoch whose last batch was
        used; so does `should_stop`. No other reading changes anything, from any thread.
        """
        self._run.loop.advice_was_read = True
        self._run.settle()
        return self._run.decision

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights `restore_best()` would give now; None before the first."""
        return self._run.decision.best_epoch

    @property
    def log_dir(self) -> Path | None:
        """The folder that this run writes to; None before the first step and without any."""
        folder = self._run.folder
        return folder.path if folder is not None else None

    def end_epoch(self) -> None:
        """Close the epoch that is under way; once more does nothing.

        For trainers, and for loops that never run to the end of `train_loader`, or have none; a
        plain loop needs no such call. What is trained on afterwards is another epoch.
        """
        self._run.end_epoch()

    def restore_best(self) -> int | None:
        """Put the weights of the best epoch into the model, buffers included.

        Returns:
            The epoch they are from; None, and the model unchanged, if no epoch was closed.

        Raises:
            PriorityMonitorError: The monitor was made with `keep_best=None`, or the model has got
                other layers and is left as it is.
        """
        if self._run.settings.keep_best is None:
            raise PriorityMonitorError(
                'got restore_best() with keep_best=None, which keeps no weights; use "averaged"'
            )
        return self._run.restore_best()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, for `torch.load(..., weights_only=True)`.

        It is as large as the table of samples and the kept weights. It brings all to the disk, and
        waits for no other rank. Where an epoch ends, that of any rank will do for all.
        """
        return state_dict(self._run)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a run: the same decisions follow as without the interruption.

        Load it before the first step: then the run goes on in its folder too. A run that had
        stopped, or failed, still has.

        Args:
            state: What `state_dict()` gave.

        Raises:
            ArgumentValueError: The state is damaged, or from a run with other data, `train_loader`
                or `keep_best`; the monitor is left as it was.
        """
        load_state_dict(self._run, state)

    def close(self) -> None:
        """Take every hook off, write what is left, leave model, optimizer and loader as found.

        What was measured can still be read, and `restore_best()` works. After an interruption, call
        it again.
        """
        _close(self._run, self._process)
        self._closer.detach()

    def __enter__(self) -> GradientMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        run, capture, engine = self._run, self._run.attached.capture, self._run.settings.engine
        scope = "scope='head'" if engine is None else f"scope='all', engine={engine!r}"
        return (
            f"GradientMonitor({self._model_name}, head={capture.head_finder.head}, {scope}, "
            f"every={run.settings.every}, steps={capture.steps}, epochs={run.epoch}, "
            f"{run.decision.message!r})"
        )


def _close(run: Run, process: int) -> None:
    # A forked worker of a loader has copies of everything, and must neither write to our files nor
    # wait for threads that it has not.
    if os.getpid() == process:
        run.close()
