"""Pure: what the samples of a step add to its statistics, in a form that adds up.

Statistics of a step are ratios, which nobody can put together. What they are made of are sums over
samples: over micro-batches, and over the ranks that each have a part of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..capture.parameters import is_spread, own_part, whole
from ..records import GroupGradients, HeadUpdate, Step, TargetKind
from .blocks import block_products, diagonal
from .groups import HeadPass, Segments, group_gradients, segment_gradients, segment_squares


@dataclass(frozen=True)
class StepPart:
    """What some of the samples of a step add to it.

    Those of other ranks are added to `moments` and to `gradients`; `constants` are theirs too.
    """

    constants: dict[str, float]
    """What does not depend on samples: `eps` of the gradients' type, `coverage`."""
    moments: dict[str, Tensor]
    """Name -> sum over the samples; `count` is how many count."""
    gradients: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Parameter name -> clean and noisy sum, each in the shape of the parameter."""
    segments: Tensor | None = None
    """Summed gradients of single logits, `[2, C, D + 1]`: clean and noisy, by class."""
    changes: dict[str, Tensor] = field(default_factory=dict)
    """What the optimizer did to each parameter."""
    changes_add_up: bool = False
    """True where each rank knows the change of the rows that it holds, and has zeros elsewhere."""

    def added_up(self) -> dict[str, Tensor]:
        """The large tensors that ranks add up, in a fixed order."""
        named = {f"clean/{name}": clean for name, (clean, _) in self.gradients.items()}
        named |= {f"noisy/{name}": noisy for name, (_, noisy) in self.gradients.items()}
        if self.segments is not None:
            named["segments"] = self.segments
        if self.changes_add_up:
            named |= {f"change/{name}": change for name, change in self.changes.items()}
        return named

    def of_all(self, moments: dict[str, Tensor], named: dict[str, Tensor]) -> StepPart:
        """What all ranks add to the step.

        Args:
            moments: The sums of theirs.
            named: The sums of their `added_up()`, on the same device.
        """
        device = moments["count"].device
        changes = {
            name: named[f"change/{name}"] if self.changes_add_up else change.to(device)
            for name, change in self.changes.items()
        }
        return replace(
            self,
            moments=moments,
            gradients={n: (named[f"clean/{n}"], named[f"noisy/{n}"]) for n in self.gradients},
            segments=named.get("segments"),
            changes=changes,
            changes_add_up=False,
        )


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast would round products to half precision where the loop runs inside it."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def head_passes(step: Step, noisy_weight: Tensor) -> list[HeadPass]:
    """What each pass shows of the head; empty where it is not measured.

    Args:
        step: The step, with at least one micro-batch.
        noisy_weight: How noisy each label is taken to be, over all its micro-batches, `[B]`.
    """
    if step.head_update is None or any(one.head.features is None for one in step.observations):
        return []
    has_bias, passes, first = step.head_update.bias is not None, [], 0
    for head in [one.head for one in step.observations]:
        assert head.features is not None
        residual, last = head.residual, first + len(head.residual)
        weight = noisy_weight[first:last].to(residual.dtype)
        passes.append(HeadPass(residual, whole(head.features).to(residual.dtype), weight, has_bias))
        first = last
    return passes


def segments_of(step: Step, passes: Sequence[HeadPass], true_label: Tensor) -> list[Segments]:
    """The single-logit gradients of each pass; empty where targets are not one class each.

    Args:
        step: The step.
        passes: Its `head_passes`.
        true_label: Class of each sample if its label is noisy, `[B]`.
    """
    visits = [one.visits for one in step.observations]
    if not passes or any(some.targets is not TargetKind.ONE for some in visits):
        return []
    given_labels = [some.given_label for some in visits]
    true_labels = true_label.split([len(labels) for labels in given_labels])
    return list(map(Segments, passes, given_labels, true_labels))


def constants_of(step: Step) -> dict[str, float]:
    """What does not depend on the samples."""
    constants = {"eps": torch.finfo(step.observations[0].head.residual.dtype).eps}
    if step.is_of_all and step.parameters is not None:
        constants["coverage"] = step.parameters.coverage
    return constants


def counts_of(step: Step) -> dict[str, Tensor]:
    """How many samples count, and their loss; `broken` is NaN where numbers are not finite."""
    visits = [one.visits for one in step.observations]
    loss = torch.cat([some.sample_loss for some in visits])
    finite = torch.cat([one.health.finite for one in step.observations]).all()
    return {
        "loss": loss.sum(),
        "count": torch.cat([some.counted for some in visits]).sum().to(loss.dtype),
        "broken": torch.where(finite, 0.0, torch.nan),
    }


def part_of(step: Step, passes: Sequence[HeadPass], true_label: Tensor) -> StepPart:
    """What the samples of a step add to it.

    Args:
        step: The step.
        passes: Its `head_passes`.
        true_label: Class of each sample if its label is noisy, `[B]`.
    """
    moments, sums = counts_of(step), None
    segments = segments_of(step, passes, true_label)
    if segments:
        sums, moments["segment_diagonal"] = segment_gradients(segments)
    part = StepPart(constants_of(step), moments, segments=sums)
    update = step.head_update
    if step.is_of_all:
        return part if step.parameters is None else _with(part, step.parameters)
    if update is None or not passes:
        return part
    bias = None if update.bias is None else own_part(update.bias)
    head = group_gradients(passes, HeadUpdate(own_part(update.weight), bias))
    return replace(_with(part, head), changes_add_up=is_spread(update.weight))


def _with(part: StepPart, gradients: GroupGradients) -> StepPart:
    # Frozen between its backward pass and the step: the optimizer has left it alone.
    names = [name for name in gradients.sums if name in gradients.changes]
    moments = part.moments | {"diagonal": diagonal(gradients)}
    if gradients.is_mixed:
        moments["mixed"] = torch.full_like(part.moments["count"], torch.nan)
    return replace(
        part,
        moments=moments,
        gradients={name: gradients.sums[name] for name in names},
        changes={name: gradients.changes[name] for name in names},
    )


def moments_of(part: StepPart) -> dict[str, Tensor]:
    """What statistics are made of; the part stands for all samples of the step."""
    moments = dict(part.moments)
    if part.segments is not None:
        moments["segment_sums"] = segment_squares(part.segments)
    if "diagonal" not in moments:
        return moments
    blocks, products = block_products(part.gradients, part.changes)
    moments["sums"] = products.sum(0)[:, :2]
    if not part.changes_add_up:  # else what the optimizer did is known in part
        moments["contributions"] = -products.sum(0)[:, 2]
    named = zip(blocks, products, strict=True)
    return moments | {f"block/{name}": product[:, :2] for name, product in named}
