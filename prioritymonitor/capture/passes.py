"""Forward passes of the model, and what is observed of them once their gradients are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..records import Batch
from .batches import HandedOut, Piece
from .losses import (
    Observed,
    evaluate_criterion,
    ignored_label,
    per_sample_loss,
    recognise_cross_entropy,
)


@dataclass
class Pass:
    """A forward pass, and what its backward pass added to it."""

    logits: Tensor
    features: Tensor | None
    handed_out: HandedOut | None
    inputs: Any
    target: Tensor | None = None
    gradient: Tensor | None = None
    seen_before: int = 0
    """How many samples of the same batch had gone through the model before these."""
    pieces: tuple[Piece, ...] = ()
    """Which samples they are: one piece, or two of which the labels tell the right one."""
    backward: int = -1
    """Which backward pass brought the gradient."""

    @property
    def kind(self) -> tuple[Any, ...]:
        """Passes of one kind can be observed together."""
        target = None if self.target is None else (self.target.shape, self.target.dtype)
        assert self.gradient is not None
        pieces = tuple((piece.is_whole, piece.labels is None) for piece in self.pieces)
        return self.logits.shape, self.gradient.dtype, target, pieces


class Observer:
    """Turns passes of one kind into a `Batch`.

    Args:
        criterion: The loss, if it was passed in; None: cross-entropy is recognised.
    """

    def __init__(self, criterion: nn.Module | Callable[..., Tensor] | None) -> None:
        self._ignore_index = ignored_label(criterion)
        self._per_sample = per_sample_loss(criterion) if criterion is not None else None

    def __call__(self, passes: list[Pass]) -> Batch:
        """The batch; features and inputs only for a single pass."""
        # Autocast would round our products to half precision where the loop runs inside it.
        device = passes[0].logits.device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            logits = torch.stack([one.logits for one in passes])
            gradient = torch.stack([cast(Tensor, one.gradient) for one in passes])
            if self._per_sample is None:
                observed = recognise_cross_entropy(logits, gradient)
            else:
                target = torch.stack(_targets(passes)).to(device)
                observed = evaluate_criterion(
                    self._per_sample, self._ignore_index, logits, target, gradient
                )
        alone = passes[0] if len(passes) == 1 else None
        return Batch(
            **{field.name: getattr(observed, field.name) for field in fields(Observed)},
            features=alone.features if alone is not None else None,
            index=_positions(passes, observed.target),
            inputs=alone.inputs if alone is not None else None,
        )


def last(batch: Batch, passes: list[Pass]) -> Batch:
    """The part of a batch that comes from the passes observed last, with their features."""
    count, rows = len(passes), sum(len(one.logits) for one in passes)
    by_pass = {"finite", "in_range", "misfit"}
    parts = {}
    for field in fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            parts[field.name] = value[-count if field.name in by_pass else -rows :]
    features = [one.features for one in passes if one.features is not None]
    if len(features) == count:
        parts["features"] = torch.cat(features)
    return replace(batch, **parts)


def _positions(passes: list[Pass], target: Tensor) -> Tensor | None:
    """Positions `[B]` in the data set; −1 for the samples of a pass whose labels are others.

    A pass with fewer samples than the loader gave may be a piece of the batch, or what the loop
    picked out of it; only in the first case the labels agree.
    """
    found: Tensor | None = None
    for pieces in zip(*(one.pieces for one in passes), strict=True):
        known = [piece.index for piece in pieces if piece.index is not None]
        labels = [piece.labels for piece in pieces if piece.labels is not None]
        if not known:
            return None
        index = torch.stack(known).to(target.device, non_blocking=True)
        if not pieces[0].is_whole and labels and labels[0].ndim == 1:
            given = torch.stack(labels).to(target.device, non_blocking=True)
            agree = (given == target.view_as(given)).all(1, keepdim=True)
            index = torch.where(agree, index, -1)
        found = index if found is None else torch.where(found < 0, index, found)
    return None if found is None else found.flatten()


def _targets(passes: list[Pass]) -> list[Tensor]:
    targets = [one.target for one in passes if one.target is not None]
    if len(targets) < len(passes):
        raise ValueError(
            "no labels were found in the batches of train_loader; pass the criterion as an "
            "nn.Module, so that its call shows them"
        )
    return targets


def plain(logits: Tensor) -> Tensor:
    """A private copy in full precision; the user may go on to change the logits in place."""
    logits = logits.detach()
    return logits.clone() if logits.dtype == torch.float64 else logits.to(torch.float32, copy=True)


def flat(logits: Tensor) -> Tensor:
    """`[B, C]` from logits with trailing dimensions of size one."""
    flat = logits.flatten(1) if logits.ndim > 1 else logits
    if flat.ndim != 2 or logits.shape[1] != flat.shape[1] or flat.shape[1] < 2:
        raise ValueError(
            f"got logits of shape {list(logits.shape)}; one row of at least two class scores per "
            "sample, [batch, classes], can be measured"
        )
    return flat
