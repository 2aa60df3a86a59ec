"""The records that the stages hand to one another.

Stages meet only here: capture makes a `Batch` per micro-batch and a `Step` per optimizer step,
attribution turns them into `GroupMoments` and `SegmentMoments`, the decision is a `Decision`.

Letters in shapes: B samples of a micro-batch, C classes, D features of the head, n samples of the
data set. Where the logits are dense, P positions of each sample are measured: pixels or tokens.
Gradients of a sample are those of its own loss before reduction, never divided by B.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # so that what reads a run folder loads no torch
    from torch import Tensor


class Labels(Enum):
    """What the targets of a sample are."""

    ONE = "one class"
    SEVERAL = "several classes: a label for each position, or yes and no for each class"
    NUMBERS = "numbers without classes"


@dataclass(frozen=True)
class Batch:
    """Samples whose logits have received their gradient, so they are part of an update.

    One micro-batch, or K micro-batches of one shape one after the other; B counts all samples.
    """

    target: Tensor
    """Given label of each sample, int64 `[B]`; −1 for a sample without a single one."""
    residual: Tensor
    """`d l_i / d z_i`, `[B, C]`, or `[B, P, C]` for dense logits; zero where the loss ignores."""
    sample_loss: Tensor
    """Loss of each sample before reduction, `[B]`."""
    margin: Tensor
    """`p_y − max_{k≠y} p_k` before the update, in [−1, 1], `[B]`; the mean over several labels, NaN
    where there are no classes."""
    error: Tensor
    """Norm `||p − y||` of the error in the probabilities before the update, in [0, √2], `[B]`; the
    mean over several labels, NaN where there are no classes."""
    rival: Tensor
    """Most probable class other than the given label, int64 `[B]`; −1 where the label is −1."""
    counted: Tensor
    """False where the loss ignores the sample or its numbers are not finite, bool `[B]`."""
    finite: Tensor
    """False if any logit or any gradient of a logit is NaN or infinite, bool `[K]`."""
    in_range: Tensor
    """False if a label is none of the classes, bool `[K]`."""
    misfit: Tensor
    """Share of the logits' gradient that the recognised loss does not explain, in [0, 1], `[K]`."""
    strength: Tensor
    """`s` of `d loss / d z_i = s · d l_i / d z_i`, `[K]`: what reduction, gradient accumulation and
    mixed precision make of a sample's own gradient, over all its positions, measured or not."""
    labels: Labels
    """What the targets are; the same for all batches of a run."""
    features: Tensor | None
    """Input of the head, `[B, D]` or `[B, P, D]`; None where the head is not measured."""
    index: Tensor | None
    """Position of each sample in the data set, int64 `[B]`; None where it is not known."""
    inputs: Any = None
    """First argument of the model's forward pass, for a `noisy` callable; None for K > 1."""


@dataclass(frozen=True)
class Update:
    """What one optimizer step did to the head: parameters after minus parameters before."""

    weight: Tensor
    """`[C, D]`."""
    bias: Tensor | None
    """`[C]`; None for a head without bias."""


@dataclass(frozen=True)
class Step:
    """One optimizer step with the micro-batches whose gradients it used."""

    batches: tuple[Batch, ...]
    update: Update | None
    """None where no head is measured."""
    gradients: GroupGradients | None = None
    """Of all parameters; None where only the head is measured."""
    changes: dict[str, Tensor] | None = None
    """What the step did to each parameter in `gradients`."""
    is_of_all: bool = False
    """True where all parameters are to be measured, so that the head does not stand for them."""


@dataclass(frozen=True)
class GroupGradients:
    """What the samples of one step did to each measured parameter, B samples of all micro-batches.

    Gradients are those of the samples' own losses, as everywhere: not divided by B, and without the
    factor that reduction, accumulation and mixed precision bring in.
    """

    sums: dict[str, tuple[Tensor, Tensor]]
    """Parameter name -> clean and noisy sum, `sum_i (1 − w_i) g_i` and `sum_i w_i g_i`, each in the
    shape of the parameter."""
    square: Tensor
    """`||g_i||²` over all measured parameters, `[B]`."""
    noisy_weight: Tensor
    """`w_i`, `[B]`."""
    coverage: float
    """Share of the trainable parameters that is measured, in [0, 1]."""
    is_mixed: bool = False
    """True where a layer mixes the samples, as BatchNorm does in training: `g_i` is then the row of
    sample i in the gradient of the batch, and rows of one batch are not independent."""


@dataclass(frozen=True)
class GroupMoments:
    """Sums over pairs of samples, from which every group statistic follows.

    Row and column 0 stand for the clean group, 1 for the noisy one. A leading dimension counts
    steps where there are several.
    """

    sums: Tensor
    """`sum_ij a_ik a_jl <g_i, g_j>`, `[..., 2, 2]`, with `a_i = (1 − w_i, w_i)`."""
    diagonal: Tensor
    """The part of `sums` with i = j, `[..., 2, 2]`."""
    count: Tensor
    """Number of samples, `[...]`."""


@dataclass(frozen=True)
class SegmentMoments:
    """Squared norms of the single-logit segment gradients, per class."""

    sums: Tensor
    """Squared norm of the summed gradients, `[..., 2, C]`: clean, noisy."""
    diagonal: Tensor
    """Sum of the squared norms of the single gradients, `[..., 2, C]`."""


class StopReason(Enum):
    """Why the monitor says stop, or why it does not."""

    CLEAN_DOMINATES = "clean labels still dominate the updates"
    NOISY_DOMINATES = "noisy labels took over"
    TOO_EARLY = "too few epochs to judge"
    NO_CLASSES = "the targets are numbers without classes, so no margin tells a wrong one"
    NO_RULE = "measuring only, stop=None"
    NO_IDENTITY = "samples have no identity, so what was memorised cannot be seen"
    FAILED = "measuring is off after a failure"


@dataclass(frozen=True)
class Decision:
    """What the monitor advises, with a reason for a person.

    Attributes:
        stop: True once training should end.
        reason: Why, as a fixed set of values.
        epoch: The epoch (counted from 1) at whose end this was decided; 0 before the first.
        best_epoch: The epoch whose kept weights are the ones to use; None before the first.
        message: The same in a sentence.
    """

    stop: bool
    reason: StopReason
    epoch: int
    best_epoch: int | None
    message: str


class Suspect(NamedTuple):
    """A training sample whose label may be wrong.

    Attributes:
        index: Position in the data set of the train loader.
        score: How likely the label is wrong, in [0, 1]; above 0.5 it is taken to be. That comes
            from the mean error of the network at this label before noise was fitted, and from how
            many labels of its class were as doubtful beside the same other class.
        given_label: The label in the data.
        predicted_label: The class the network held most probable instead, at that time.
    """

    index: int  # type: ignore[assignment]  # the name hides tuple.index, which no one needs here
    score: float
    given_label: int
    predicted_label: int
