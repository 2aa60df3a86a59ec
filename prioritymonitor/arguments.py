"""Checks of what the user passed in: each wrong argument raises at construction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from .capture.head import is_linear
from .capture.loader.first_samples import FirstSamples
from .capture.loader.wrapped import loaders_in
from .errors import ArgumentTypeError, ArgumentValueError
from .samples.known_labels import KnownNoise, known_noise
from .stopping.rule import Rule
from .type_names import got, instead, type_name

_EVERY = {"head": 8, "all": 16}
"""Optimizer steps from a measured one to the next, unless the user says."""


@dataclass(frozen=True)
class Settings:
    """The fields are the arguments of `GradientMonitor`."""

    criterion: nn.Module | Callable[..., Tensor] | None
    head: nn.Module | None
    noisy: KnownNoise | None
    engine: str | None
    """None for scope="head"."""
    every: int
    stop: Rule | None
    keep_best: str | None
    validation: FirstSamples | None
    class_names: tuple[str, ...] | None
    log_dir: Path | None
    writer: Any
    max_tracked: int | None


def checked(
    model: nn.Module,
    loader: DataLoader[Any] | None,
    *,
    criterion: Any,
    head: Any,
    noisy: Any,
    true_labels: Any,
    scope: Any,
    engine: Any,
    every: Any,
    stop: Any,
    keep_best: Any,
    validation: Any,
    class_names: Any,
    log_dir: Any,
    writer: Any,
    max_tracked: Any,
) -> Settings:
    """The settings, from the arguments of `GradientMonitor`.

    Raises:
        ArgumentTypeError: One of them is of a type that cannot be used.
        ArgumentValueError: One of them has a value that cannot be used.
    """
    check_head(model, head)
    check_criterion(criterion, loader)
    check_choices(scope, engine, stop, keep_best)
    check_count("every", every)
    check_count("max_tracked", max_tracked)
    check_output(log_dir, writer)
    dataset = loader.dataset if loader is not None else None
    return Settings(
        criterion=criterion,
        head=head,
        noisy=known_noise(noisy, true_labels, dataset),
        engine=_chosen(engine, model) if scope == "all" else None,
        every=every if every is not None else _EVERY[scope],
        stop=stop,
        keep_best=keep_best,
        validation=check_validation(validation, loader),
        class_names=check_class_names(class_names),
        log_dir=Path(log_dir) if log_dir is not None else None,
        writer=writer,
        max_tracked=max_tracked,
    )


def _chosen(engine: str, model: nn.Module) -> str:
    from .gradients.parameters import choose  # loaded where all parameters are measured only

    return choose(engine, model)


def check_model_and_optimizer(model: Any, optimizer: Any) -> Optimizer:
    """The torch optimizer to watch.

    Raises:
        ArgumentTypeError: One of them is something else.
        ArgumentValueError: The optimizer trains no parameter of the model.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(
            f"{got('model', model)}; pass a torch.nn.Module{instead('model', model)}"
        )
    # A wrapper such as accelerate's has no step hooks. That of Opacus steps the one inside only if
    # parameters change, while the gradients of the samples are still there.
    for name in ("optimizer", "original_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, Optimizer):
            optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(
            f"{got('optimizer', optimizer)}; pass a torch.optim.Optimizer"
            f"{instead('optimizer', optimizer)}"
        )
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    groups = optimizer.param_groups
    if not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise ArgumentValueError(
            f"got a {type_name(optimizer)} that holds no trainable parameter of "
            f"{type_name(model)}; make the optimizer from model.parameters(), and the monitor from "
            "that same model"
        )
    return optimizer


def check_head(model: nn.Module, head: Any) -> None:
    """Raises unless the head is None or a linear layer of the model."""
    if head is None:
        return
    if not isinstance(head, nn.Module) or not is_linear(head):
        raise ArgumentTypeError(
            f"{got('head', head)}; pass the nn.Linear or 1×1 nn.Conv2d of the model "
            "that gives the logits, or leave it out to have it found"
        )
    if not any(module is head for module in model.modules()):
        raise ArgumentValueError(
            f"got a head that is no layer of {type_name(model)}; pass one of its own linear layers"
        )


def check_loader(loader: Any) -> DataLoader[Any] | None:
    """The torch DataLoader that draws the batches, out of what trainers put around it.

    Raises:
        ArgumentTypeError: There is none, or more than one.
    """
    if loader is None:
        return None
    found = loaders_in(loader)
    if len(found) == 1:
        return found[0]
    if found:
        raise ArgumentTypeError(
            f"{got('train_loader', loader)} around {len(found)} DataLoaders; pass the one whose "
            "labels are trained on"
        )
    raise ArgumentTypeError(
        f"{got('train_loader', loader)}; pass the torch DataLoader of the training data, or leave "
        f"it out and do without suspects and stop{instead('train_loader', loader)}"
    )


def check_validation(validation: Any, loader: Any) -> FirstSamples | None:
    """The held-out samples; raises unless they can be iterated over again, and are held out."""
    if validation is None:
        return None
    if validation is loader or (loader is not None and loader in loaders_in(validation)):
        raise ArgumentValueError("got train_loader as validation; pass a loader of other samples")
    is_one = isinstance(validation, (str, bytes, Tensor, Mapping, Iterator))
    if is_one or not isinstance(validation, Iterable):
        raise ArgumentTypeError(
            f"{got('validation', validation)}; pass a DataLoader, or another iterable "
            "of batches that can be gone through again"
        )
    return FirstSamples(validation)


def check_choices(scope: Any, engine: Any, stop: Any, keep_best: Any) -> None:
    """Raises unless every option has a value that exists."""
    if scope not in ("head", "all"):
        raise ArgumentValueError(f'got scope={scope!r}; use "head" or "all"')
    if engine not in ("auto", "closed_form", "func", "opacus"):
        raise ArgumentValueError(
            f'got engine={engine!r}; use "auto", "closed_form", "func" or "opacus"'
        )
    if scope == "head" and engine != "auto":
        raise ArgumentValueError(
            f'got engine={engine!r} and scope="head", which needs none; use scope="all"'
        )
    if stop is not None and (not callable(stop) or isinstance(stop, type)):
        raise ArgumentTypeError(
            f"got stop={stop!r}; pass a StopRule(), a function of the history that returns a "
            "Decision, or None"
        )
    if keep_best not in ("averaged", "last", None):
        raise ArgumentValueError(f'got keep_best={keep_best!r}; use "averaged", "last" or None')


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises unless it is None or a whole number that is not too small."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ArgumentTypeError(f"got {name}={value!r}; pass a whole number, or None")
    if value < least:
        raise ArgumentValueError(f"got {name}={value}; it must be at least {least}")


def check_share(name: str, value: Any) -> None:
    """Raises unless it is a number in [0, 1]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ArgumentTypeError(f"got {name}={value!r}; pass a number")
    if not 0 <= value <= 1:
        raise ArgumentValueError(f"got {name}={value}; it lies between 0 and 1")


def check_class_names(names: Any) -> tuple[str, ...] | None:
    """The names of the classes; raises unless they are strings."""
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ArgumentTypeError(f"got class_names={names!r}; pass a list of strings, one per class")
    found = tuple(names)
    if not all(isinstance(name, str) for name in found):
        raise ArgumentTypeError(f"got class_names={names!r}; pass a list of strings, one per class")
    return found


def check_criterion(criterion: Any, loader: Any) -> None:
    """Raises unless the criterion can be followed."""
    if criterion is None or isinstance(criterion, nn.Module):
        return
    if not callable(criterion):
        raise ArgumentTypeError(
            f"{got('criterion', criterion)}; pass an nn.Module such as "
            "nn.CrossEntropyLoss(), or a function of (logits, targets)"
        )
    if loader is None:
        raise ArgumentValueError(
            "got a function as criterion and no train_loader; the labels are then unknown: pass "
            "train_loader too, or the criterion as an nn.Module"
        )


def check_output(log_dir: Any, writer: Any) -> None:
    """Raises unless there is at most one place to write to, and it can be written to."""
    if log_dir is not None and not isinstance(log_dir, (str, os.PathLike)):
        raise ArgumentTypeError(f"{got('log_dir', log_dir)}; pass a path")
    if log_dir == "":
        raise ArgumentValueError('got log_dir=""; name a folder, or pass None to write nothing')
    if log_dir is not None and writer is not None:
        raise ArgumentValueError("got log_dir and writer; pass one of them")
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise ArgumentTypeError(
            f"{got('writer', writer)}; pass a SummaryWriter, or anything with "
            "add_scalar(tag, value, step)"
        )
