"""Known noise, for experiments: which labels are wrong, and how to make some wrong."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentTypeError, ArgumentValueError
from ..records import TargetKind, Visits
from ..type_names import got

NoisyCallable = Callable[[Any, Tensor, Tensor | None], Tensor]
"""`noisy(inputs, targets, index) -> bool [B]`."""


def corrupt_labels(
    targets: Tensor,
    rate: float,
    kind: str = "symmetric",
    generator: torch.Generator | None = None,
    num_classes: int | None = None,
) -> Tensor:
    """Replace a share of the labels by wrong ones.

    Args:
        targets: Class labels, int64 `[n]`.
        rate: Share of the labels to replace, in [0, 1]; exactly `round(rate * n)` are.
        kind: `"symmetric"`: by any other class with equal chance. `"pair"`: by the next class.
        generator: Source of randomness; None: torch's own.
        num_classes: Number of classes; None: the largest label plus one.

    Returns:
        A new tensor `[n]`; `result != targets` are the wrong labels.

    Raises:
        ArgumentTypeError: `targets` are no integer labels.
        ArgumentValueError: `rate`, `kind` or `num_classes` cannot be used.

    Examples:
        >>> clean = torch.arange(10).repeat(10)
        >>> int((corrupt_labels(clean, 0.4) != clean).sum())
        40
    """
    targets = torch.as_tensor(targets)
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.ndim != 1:
        raise ArgumentTypeError(
            f"got targets of type {targets.dtype} and shape {list(targets.shape)}; "
            "pass integer class labels of shape [n]"
        )
    if not 0 <= rate <= 1:
        raise ArgumentValueError(f"got rate={rate}; it is a share, from 0 to 1")
    classes = num_classes if num_classes is not None else int(targets.max()) + 1
    if classes < 2 or classes <= int(targets.max()):
        raise ArgumentValueError(
            f"got num_classes={classes} with a largest label of {int(targets.max())}; "
            "labels run from 0 to num_classes − 1, and at least two classes are needed"
        )
    chosen = torch.randperm(len(targets), generator=generator)[: round(rate * len(targets))]
    if kind == "symmetric":
        shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    elif kind == "pair":
        shift = torch.ones(len(chosen), dtype=torch.int64)
    else:
        raise ArgumentValueError(f'got kind={kind!r}; use "symmetric" or "pair"')
    corrupted = targets.clone()
    corrupted[chosen] = ((targets[chosen] + shift) % classes).to(targets.dtype)
    return corrupted


class KnownNoise:
    """Tells which samples are noisy.

    Args:
        noisy: One flag per sample of the data set, bool `[n]`, or a function of the visits.
        true_labels: The true class of each sample, int64 `[n]`; makes `noisy` unnecessary.
    """

    def __init__(self, noisy: Tensor | NoisyCallable | None, true_labels: Tensor | None) -> None:
        self._noisy = noisy
        self._true_labels = true_labels

    @property
    def needs_inputs(self) -> bool:
        """True for a function of the batch, which is asked for one micro-batch at a time."""
        return self._noisy is not None and not isinstance(self._noisy, Tensor)

    def is_noisy(self, visits: Visits) -> Tensor:
        """Float `[B]`, 1 for a noisy label; NaN where the sample is not known."""
        if self._noisy is None:
            if visits.targets is not TargetKind.ONE:
                raise ArgumentValueError(
                    f"got true_labels, one class per sample, and targets that are "
                    f"{visits.targets.value}; pass noisy=, one flag per sample"
                )
            return (visits.given_label != self.true_label(visits)).to(visits.margin.dtype)
        if isinstance(self._noisy, Tensor):
            if visits.index is None:
                return torch.full_like(visits.margin, torch.nan)
            self._noisy = self._noisy.to(visits.index.device)
            flags = self._noisy[visits.index.clamp(min=0)].to(visits.margin.dtype)
            return torch.where(visits.index < 0, torch.nan, flags)
        flags = torch.as_tensor(self._noisy(visits.inputs, visits.given_label, visits.index))
        if flags.shape != visits.given_label.shape or flags.dtype != torch.bool:
            raise ArgumentTypeError(
                f"noisy(inputs, targets, index) gave {flags.dtype} of shape {list(flags.shape)}; "
                f"it must give one bool per sample, shape {list(visits.given_label.shape)}"
            )
        return flags.to(visits.margin.device, visits.margin.dtype)

    def true_label(self, visits: Visits) -> Tensor:
        """Class of each sample if its label is wrong: the true one, else the predicted one."""
        if self._true_labels is None or visits.index is None:
            return visits.rival
        self._true_labels = self._true_labels.to(visits.index.device)
        true_label = self._true_labels[visits.index.clamp(min=0)]
        return torch.where(visits.index < 0, visits.rival, true_label)


def known_noise(noisy: Any, true_labels: Any, dataset: Any) -> KnownNoise | None:
    """What the user knows of wrong labels; None for nothing.

    Args:
        noisy: As it was passed in.
        true_labels: As they were passed in.
        dataset: What they are about; None without one.

    Raises:
        ArgumentTypeError: One of them is no such thing.
        ArgumentValueError: One of them does not go with the data set.
    """
    flags, labels = _flags(noisy, dataset), _true_labels(true_labels, dataset)
    return None if flags is None and labels is None else KnownNoise(flags, labels)


def _flags(noisy: Any, dataset: Any) -> Tensor | Callable[..., Tensor] | None:
    """`noisy` as a bool tensor `[n]` or a callable; raises for anything else."""
    if noisy is None or (callable(noisy) and not isinstance(noisy, Tensor)):
        return noisy
    flags = _column("noisy", noisy, dataset)
    if flags.dtype != torch.bool:
        raise ArgumentTypeError(
            f"got noisy of type {flags.dtype}; pass one bool per sample, True where the label is "
            "wrong, or a function (inputs, targets, index) -> bool [B]"
        )
    return flags


def _true_labels(true_labels: Any, dataset: Any) -> Tensor | None:
    """`true_labels` as an int64 tensor `[n]`; raises for anything else."""
    if true_labels is None:
        return None
    labels = _column("true_labels", true_labels, dataset)
    if labels.dtype == torch.bool or labels.is_floating_point():
        raise ArgumentTypeError(
            f"got true_labels of type {labels.dtype}; pass one integer class per sample"
        )
    return labels.long()


def _column(name: str, values: Any, dataset: Any) -> Tensor:
    if not isinstance(values, (Tensor, np.ndarray, list, tuple)):
        raise ArgumentTypeError(f"{got(name, values)}; pass one value per sample")
    try:
        column = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentTypeError(f"got {name} that is no tensor: {error}") from error
    if not isinstance(dataset, Sized):
        raise ArgumentValueError(
            f"got {name} by sample and no train_loader whose data set has a length; samples then "
            "have no index: pass train_loader, or a function of the batch"
        )
    if column.shape != (len(dataset),):
        raise ArgumentValueError(
            f"got {name} of shape {list(column.shape)} for a data set of {len(dataset)} samples; "
            "pass one value per sample, in the order of train_loader.dataset"
        )
    return column
