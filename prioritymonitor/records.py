"""The records that the rooms exchange.

Capture makes an `Observation` of passes that were trained on and a `Step` of each optimizer step;
gradients makes moments of it; stopping makes a `Decision`.

Letters in shapes: B samples of a micro-batch, K micro-batches, C classes, D features of the head,
n samples of the data set. Where the logits are dense, P positions of each sample are measured:
pixels or tokens. Gradients of a sample are those of its own loss before reduction, never divided
by B. What a record holds by sample is joined over micro-batches and over ranks; sums are added up;
nothing else is ever combined.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:  # so that what reads a run folder loads no torch
    from numpy.typing import NDArray
    from torch import Tensor

Columns: TypeAlias = "dict[str, NDArray[Any]]"
"""A table as arrays of one length by name of the column."""

REPRESENTATION = (2, 64)
"""Of a sample that was not learnt yet: its input and its features, so many numbers of each."""

Record = dict[str, Any]
"""What is known of an epoch at its end, by `tags.RECORD_KEYS`; None where a value is not known."""


class TargetKind(Enum):
    """What the targets of a sample are."""

    ONE = "one class"
    SEVERAL = "several classes: a label for each position, or yes and no for each class"
    NUMBERS = "numbers without classes"


@dataclass(frozen=True)
class Visits:
    """What passes found of their samples before the update; B counts those of all K micro-batches.

    Only samples whose logits have received their gradient, so that they are part of an update.
    """

    given_label: Tensor
    """Label in the data, int64 `[B]`; −1 for a sample without a single one."""
    sample_loss: Tensor
    """Loss of each sample before reduction, `[B]`."""
    margin: Tensor
    """`p_y − max_{k≠y} p_k`, in [−1, 1], `[B]`; the mean over several labels, NaN where there are
    no classes."""
    error: Tensor
    """Norm `||p − y||` of the error in the probabilities, in [0, √2], `[B]`; the mean over several
    labels, NaN where there are no classes."""
    rival: Tensor
    """Most probable class other than the given label, int64 `[B]`; −1 where the label is −1."""
    counted: Tensor
    """False where the loss ignores the sample or its numbers are not finite, bool `[B]`."""
    targets: TargetKind
    """The same in all visits of a run."""
    classes: int
    """How many each label is one of: of yes and no two."""
    index: Tensor | None = None
    """Place of each sample in the data set, int64 `[B]`; −1 or None where it is not known."""
    inputs: Any = None
    """First argument of the model's forward pass, for a `noisy` callable; None for K > 1."""
    is_own: Tensor | None = None
    """False where a row is mostly another sample, as after mixup, bool `[B]`; None for no row."""
    representation: Tensor | None = None
    """What samples look like to a model that saw no label, `[B, 2, 64]`; NaN or None: unknown."""

    def flat(self) -> Visits:
        """The same with `[K, R]` turned into `[K · R]`."""
        own = {name: value.flatten() for name, value in self._tensors()}
        return replace(self, **own)

    def last(self, samples: int) -> Visits:
        """Those of the last so many samples."""
        own = {name: value[len(value) - samples :] for name, value in self._tensors()}
        return replace(self, **own)

    def _tensors(self) -> list[tuple[str, Any]]:
        names = [
            one.name for one in fields(self) if one.name not in ("targets", "classes", "inputs")
        ]
        return [(n, value) for n in names if (value := getattr(self, n)) is not None]


@dataclass(frozen=True)
class PassHealth:
    """What may be wrong with K passes."""

    finite: Tensor
    """False if any logit or any gradient of a logit is NaN or infinite, bool `[K]`."""
    in_range: Tensor
    """False if a label is none of the classes, bool `[K]`."""
    unexplained: Tensor
    """Share of the logits' gradient that the recognised loss does not explain, in [0, 1], `[K]`."""

    def last(self, passes: int) -> PassHealth:
        """That of the last so many passes."""
        first = len(self.finite) - passes
        return PassHealth(self.finite[first:], self.in_range[first:], self.unexplained[first:])


@dataclass(frozen=True)
class HeadGradients:
    """What the samples' gradients at the head are made of: `g_i = r_i ⊗ [h_i, 1]`."""

    residual: Tensor
    """`d l_i / d z_i`, `[B, C]`, or `[B, P, C]` for dense logits; zero where the loss ignores."""
    strength: Tensor
    """`s` of `d loss / d z_i = s · d l_i / d z_i`, `[K]`: what reduction, gradient accumulation and
    mixed precision make of a sample's own gradient, over all its positions, measured or not."""
    features: Tensor | None = None
    """Input of the head, `[B, D]` or `[B, P, D]`; None where the head is not measured."""


@dataclass(frozen=True)
class Observation:
    """K micro-batches of one shape that were trained on, one after the other."""

    visits: Visits
    health: PassHealth
    head: HeadGradients


@dataclass(frozen=True)
class HeadUpdate:
    """What one optimizer step did to the head: parameters after minus parameters before."""

    weight: Tensor
    """`[C, D]`."""
    bias: Tensor | None
    """`[C]`; None for a head without bias."""


@dataclass(frozen=True)
class Step:
    """One optimizer step with the micro-batches whose gradients it used, if it is measured."""

    observations: tuple[Observation, ...]
    head_update: HeadUpdate | None
    """None where no head is measured."""
    parameters: GroupGradients | None = None
    """Of all parameters; None where only the head is measured, or the step could not be."""
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
    changes: dict[str, Tensor] = field(default_factory=dict)
    """What the optimizer step did to each parameter; empty before it."""
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


@dataclass(frozen=True)
class EpochOfSamples:
    """What an epoch did to the samples that are followed, on the host; what witnesses look at."""

    decrease: Tensor
    """By how much the loss of each sample went down, `[n]`; NaN where the epoch made no visit."""
    noisy_part: Tensor
    """Part of it that counts as the noisy labels' gain, in [0, 1], `[n]`."""
    samples_seen: int
    """How many samples were visited so far."""
    relabelled: int
    """How many visits showed another label than an earlier visit of the same sample."""
    predicted: Tensor
    """The class predicted at the latest visit, integers `[n]`; −1 where the epoch made none."""
    predicted_before: Tensor
    """The same at the latest visit of the epochs before; −1 where they made none."""
    given_label: Tensor
    """Integers `[n]`; −1 where it is not known."""
    vote: Tensor
    """What the sample's neighbours say, integers `[n]`; −1 where they were not asked."""


class Phase(Enum):
    """Where a run stands. What is known stays readable in each of them."""

    NOT_BEGUN = "no optimizer step was made yet"
    MEASURING = "samples are followed, or steps alone where samples have no identity"
    STOPPED = "the stop has been advised; measuring goes on"
    IDENTITY_LOST = "samples are followed no more; steps are measured"
    FAILED = "measuring is off"
    CLOSED = "all hooks are off"


MOST_VOTES = 5_000
"""Samples that neighbours vote on, of a larger data set."""

MOST_NOISE = 0.9
"""Noise rate above which labels look wrong because little has been learnt yet."""


class StopReason(Enum):
    """Why the monitor says stop, or why it does not."""

    CLEAN_DOMINATES = "clean labels still dominate the updates"
    NOISY_DOMINATES = "noisy labels took over"
    TOO_EARLY = "too few epochs to judge"
    NO_CLASSES = "the targets are numbers without classes, so no margin tells a wrong one"
    NO_RULE = "measuring only, stop=None"
    NO_IDENTITY = "samples have no identity, so what was memorised cannot be seen"
    FAILED = "measuring is off after a failure"
    OUT_OF_TOUCH = "other ranks can't be reached, or went on without this one"
    RULE_FAILED = "the rule passed as stop= failed"


@dataclass(frozen=True)
class Decision:
    """What the monitor advises, with a reason for a person.

    Attributes:
        stop: True once training should end.
        reason: Why, as a fixed set of values.
        epoch: The epoch (counted from 1) at whose end this was decided; 0 before the first.
        best_epoch: The epoch whose weights `restore_best()` gives, counted from 1; None before the
            first.
        message: The same in a sentence.
        peak_epochs: Epochs that may turn out to be the best; empty: `best_epoch` alone.
    """

    stop: bool
    reason: StopReason
    epoch: int
    best_epoch: int | None
    message: str
    peak_epochs: tuple[int, ...] = ()


NOTHING_YET = Decision(False, StopReason.TOO_EARLY, 0, None, "no epoch has been completed yet")
"""The decision that a run begins with."""


class Suspect(NamedTuple):
    """A training sample whose label may be wrong.

    Attributes:
        index: Place in the data set of the train loader.
        score: How likely the label is wrong, in [0, 1]; above 0.5 it is taken to be. That comes
            from the mean error of the network at this label before noise was fitted, from how many
            labels of its class were as doubtful beside the same other class, and from whether its
            neighbours vote for it.
        given_label: The label in the data; −1 for a sample with several.
        predicted_label: The class the network held most probable instead, at that time; likewise.
    """

    index: int  # type: ignore[assignment]  # the name hides tuple.index, which no one needs here
    score: float
    given_label: int
    predicted_label: int
