"""Forward passes of the model, and what their backward passes add to them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..records import Observation
from . import private
from .graph import Derivation
from .head import Layout, Logits
from .loader.handed_out import HandedOut, Piece
from .losses.criterion import through_log_softmax
from .losses.form import Form, class_count, form_of, has_value_per_logit
from .positions import Rows, by_position, choose_positions


@dataclass
class Forward:
    """A forward pass of the model; what is known before any loss."""

    samples: int
    shape: torch.Size
    """Of the logits."""
    layout: Layout
    features: Tensor | None
    """Input of the head, `[B, D]` or `[B, N, D]`; None unless the step is measured."""
    candidates: tuple[HandedOut, ...]
    """The batches that it may be of, the likeliest first."""
    labels: Tensor | None
    """What may be the labels."""
    inputs: Any = None
    representation: Tensor | None = None
    """What its samples look like to a model that saw no label, `[B, 2, 64]`."""
    seen_before: int = 0
    """How many samples of the same batch had gone through the model before these."""
    is_followed: bool = False
    """True if an engine measures all parameters in this pass."""
    call: Any = None
    """What the model was called with, for the engine."""
    logits_at: int = 0
    """Which of the model's outputs the logits are."""
    seen: object = None
    """What the engine wants to get back."""
    trial: Any = None
    """The `Trial` of a part of the model; None for the model itself, and once it is known."""
    is_of_model: bool = False
    """True for the model itself where it is not known whether the loop trains by its calls."""
    latest: tuple[weakref.ref[Tensor], weakref.ref[Pass]] | None = None
    """The logits that the criterion got last, and their pass."""

    @property
    def handed_out(self) -> HandedOut | None:
        """The batch that it is taken to be of; None without any."""
        return self.candidates[0] if self.candidates else None

    def was_of(self, batch: HandedOut) -> None:
        """It was of another batch than it was taken to be of."""
        if self.handed_out is not None:
            self.handed_out.seen -= self.samples
        batch.seen += self.samples

    @property
    def classes(self) -> int:
        """Number C of classes."""
        return class_count(self.shape, self.layout.class_dim)

    def pass_of(self, logits: Tensor) -> Pass | None:
        """The pass that began when the criterion was called on these logits before."""
        if self.latest is None or self.latest[0]() is not logits:
            return None
        return self.latest[1]()


@dataclass
class Pass:
    """A forward pass whose logits wait for their gradient, or have it.

    A row is a sample, or one of its P measured positions; all of a sample's rows follow each other.
    """

    source: Forward
    shape: torch.Size
    """Of the logits that the loss got."""
    rows: Rows
    logits: Tensor
    """`[B · P, C]`, float32 or float64."""
    features: Tensor | None
    """`[B · P, D]`."""
    is_log: bool
    """True if the logits are log-probabilities of the head's output."""
    form: Form | None = None
    """How the criterion takes a row."""
    target: Tensor | None = None
    """`[B · P]` or `[B · P, C]`."""
    more_targets: list[Tensor] = field(default_factory=list)
    """Of further calls of the criterion on the same logits, in the same shape."""
    has_labels_of_loader: bool = False
    """True if the target is what the loader gave, not what the criterion was called with."""
    gradient: Tensor | None = None
    """Of the head's output, `[B · P, C]`."""
    reached: Tensor | None = None
    """Positions that the gradient reached, measured or not, scalar; None where all are measured."""
    pieces: tuple[Piece, ...] = ()
    """Which samples they are: one piece, or two of which the labels tell the right one."""
    backward: int = -1
    """Which backward pass brought the gradient."""
    observation: Observation | None = None
    """What was observed, if it was observed at once."""

    @property
    def samples(self) -> int:
        """Number B of samples."""
        return self.rows.samples

    @property
    def positions(self) -> int:
        """Number P of measured positions of each sample."""
        return len(self.logits) // max(self.samples, 1)

    @property
    def representation(self) -> Tensor | None:
        """What its samples look like to a model that saw no label, `[B, 2, 64]`."""
        known = self.source.representation
        return known if known is not None and len(known) == self.samples else None

    @property
    def kind(self) -> tuple[Any, ...]:
        """Passes of one kind can be observed together."""
        target = None if self.target is None else (self.target.shape, self.target.dtype)
        calls = len(self.more_targets)
        assert self.gradient is not None
        pieces = tuple(
            (one.is_whole, one.index is None, None if one.labels is None else one.labels.shape)
            for one in self.pieces
        )
        shape = self.logits.shape, self.samples, self.is_log, self.form
        has_representation = self.representation is not None
        return *shape, self.gradient.dtype, target, calls, pieces, has_representation

    def take_target(self, target: Tensor, class_dim: int) -> None:
        """Keep the targets of the measured rows.

        Args:
            target: The criterion's target.
            class_dim: Dimension of the classes in the logits, as the criterion takes them.
        """
        self.form = form_of(self.shape, target, class_dim)
        self.target = self._of_rows(target, class_dim)

    def take_more(self, target: Tensor, class_dim: int) -> bool:
        """Keep the targets of another call of the criterion, if they are of the same kind."""
        more = self._of_rows(target, class_dim)
        known = self.target
        if known is None or (more.shape, more.dtype) != (known.shape, known.dtype):
            return False
        self.more_targets.append(more)
        return True

    def _of_rows(self, target: Tensor, class_dim: int) -> Tensor:
        """Targets of the measured rows, `[B · P]` or `[B · P, C]`."""
        if has_value_per_logit(self.shape, target, class_dim):
            return Rows(self.samples, class_dim, self.rows.chosen).of(target)
        if self.rows.chosen is None:
            return target.flatten()
        by_sample = target.reshape(self.samples, -1).to(self.rows.chosen.device)
        return by_sample.gather(1, self.rows.chosen).flatten()

    def take_labels(self, class_dim: int) -> None:
        """Keep the labels that the loader gave, where the criterion's call does not show them."""
        if self.pieces and self.pieces[0].labels is not None:
            self.take_target(self.pieces[0].labels, class_dim)
            self.has_labels_of_loader = True

    def shown_labels(self) -> Tensor | None:
        """The label of each sample `[B]` as the loss took it; None where there are several."""
        if self.positions != 1 or self.gradient is None or self.gradient.shape[1] < 2:
            return None
        if self.target is not None and self.target.ndim == 1:
            return self.target
        # A cross-entropy pulls the label up, and everything else down.
        return self.gradient.argmin(1)

    def take_gradient(self, gradient: Tensor) -> None:
        """Keep the gradient of the measured rows."""
        if self.rows.chosen is not None:
            largest = torch.linalg.vector_norm(gradient, torch.inf, dim=self.rows.class_dim)
            self.reached = (largest > 0).sum()
        gradient = self.rows.of(gradient)
        self.gradient = through_log_softmax(gradient, self.logits) if self.is_log else gradient
        self.backward = private.backward_pass()


def forward_of(found: Logits, candidates: tuple[HandedOut, ...], labels: Any) -> Forward:
    """A forward pass of the model, on the next samples of a batch.

    Args:
        found: What it gave.
        candidates: The batches that it may be of, the likeliest first.
        labels: What the model was called with as labels.
    """
    shape, given = found.tensor.shape, None
    samples, seen = shape[0], 0
    if candidates:
        handed_out = candidates[0]
        given = handed_out.labels
        if given is not None and given.ndim > 1 and given.numel() == samples and len(shape) == 2:
            samples = handed_out.size or samples  # a row for each position: `logits.view(-1, C)`
        seen = handed_out.seen
        handed_out.seen += samples
    labels = labels if isinstance(labels, Tensor) else given
    return Forward(samples, shape, found.layout, None, candidates, labels, seen_before=seen)


def begin(source: Forward, logits: Tensor) -> Pass:
    """The pass whose loss is computed from the model's logits themselves."""
    return begin_from(Derivation(source), logits, source.layout.class_dim, source.labels, None)


def begin_from(
    derivation: Derivation,
    logits: Tensor,
    class_dim: int,
    labels: Tensor | None,
    ignored: int | None,
) -> Pass:
    """The pass whose loss is computed from logits that come from the model's.

    Args:
        derivation: How they come from which forward pass.
        logits: What the loss gets.
        class_dim: Dimension of the classes in it.
        labels: What may be the labels.
        ignored: The label that the loss ignores, besides negative ones.
    """
    source: Forward = derivation.mark
    classes = class_count(logits.shape, class_dim)
    samples = source.samples if len(logits) % max(source.samples, 1) == 0 else len(logits)
    positions = logits.numel() // max(classes * samples, 1)
    chosen = None
    if positions > 1:
        fitting = _fitting(labels, samples, positions, ignored)
        chosen = choose_positions(samples, positions, classes, logits.device, fitting)
    rows = Rows(samples, class_dim, chosen)
    has_features = derivation.is_exact and (classes, samples) == (source.classes, source.samples)
    return Pass(
        source=source,
        shape=logits.shape,
        rows=rows,
        # A private copy in full precision; the user may go on to change the logits in place.
        logits=rows.of(logits.detach()).to(_full(logits.dtype), copy=chosen is None),
        features=_features(source, rows, derivation.start, positions) if has_features else None,
        is_log=source.layout.is_log or derivation.has_log_softmax,
    )


def _features(source: Forward, rows: Rows, start: int, positions: int) -> Tensor | None:
    features = source.features
    if features is None or (features.ndim == 2 and positions == 1):
        return features
    taken = by_position(features, rows.samples, -1)[:, start : start + positions]
    if taken.shape[1] < positions:
        return None
    return Rows(rows.samples, -1, rows.chosen).of(taken)


def _fitting(
    labels: Tensor | None, samples: int, positions: int, ignored: int | None
) -> Tensor | None:
    """Labels `[B, N]`, negative where they are ignored; None unless there is one per position."""
    if labels is None or labels.is_floating_point() or labels.numel() != samples * positions:
        return None
    labels = labels.reshape(samples, positions)
    if ignored is not None and ignored >= 0:
        labels = labels.masked_fill(labels == ignored, -1)
    return labels


def _full(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
