"""What is observed of passes once the gradients of their logits are there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..records import HeadGradients, Observation
from .label_check import LabelCheck
from .loader.own_labels import own_labels
from .losses.criterion import Criterion, Loss
from .losses.cross_entropy import recognise_cross_entropy
from .losses.dense import of_samples
from .losses.soft_targets import Doubt
from .passes import Forward, Pass
from .traced import Traced


class Observer:
    """Turns passes of one kind into an `Observation`.

    Args:
        criterion: The loss, if it was passed in; None: cross-entropy is recognised.
        dataset: Gives the data set of the train loader; None where there is none.
    """

    def __init__(self, criterion: Loss | None, dataset: Callable[[], Any] = lambda: None) -> None:
        self.label_check = LabelCheck()
        """Compares what the loss sees with what the loader gave."""
        self._criterion = Criterion(criterion) if criterion is not None else None
        self._may_be_soft = Doubt()
        self._own_labels = functools.cache(lambda: own_labels(dataset()))

    @property
    def ignored(self) -> int | None:
        """The label that the loss leaves out; None if it is not known."""
        return self._criterion.ignored if self._criterion is not None else None

    def class_dim(self, shape: torch.Size, source: Forward) -> int:
        """Dimension of the classes in what the criterion gets: 1, or −1 for the last.

        Args:
            shape: Shape of what the criterion gets.
            source: The forward pass that it comes from.
        """
        if len(shape) < 3:
            return -1
        is_first = self._criterion is not None and self._criterion.takes_classes_first
        return 1 if is_first or shape != source.shape else source.layout.class_dim

    def __call__(self, passes: list[Pass]) -> Observation:
        """The observation; features and inputs only for a single pass."""
        # Autocast would round our products to half precision where the loop runs inside it.
        device = passes[0].logits.device
        traced = Traced(passes, self._own_labels, device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            observed = self._observe(passes, device, traced)
            positions = passes[0].positions
            if positions > 1:
                reached = [one.reached for one in passes if one.reached is not None]
                observed = of_samples(
                    observed, positions, torch.stack(reached) if reached else None
                )
            if passes[0].has_labels_of_loader:
                traced.check(observed.health.unexplained, passes[0].samples)
            self.label_check.add(traced, observed.visits.classes)
        seen = [one.representation for one in passes if one.representation is not None]
        visits = replace(
            observed.visits,
            index=traced.index,
            representation=torch.cat(seen) if len(seen) == len(passes) else None,
        )
        if len(passes) > 1:
            return replace(observed, visits=visits)
        (alone,) = passes
        return Observation(
            replace(visits, inputs=alone.source.inputs),
            observed.health,
            replace(observed.head, features=_by_sample(alone)),
        )

    def _observe(self, passes: list[Pass], device: torch.device, traced: Traced) -> Observation:
        logits = torch.stack([one.logits for one in passes])
        gradient = torch.stack([cast(Tensor, one.gradient) for one in passes])
        form = passes[0].form
        if self._criterion is None:
            if logits.shape[2] < 2:
                raise ValueError(
                    "got logits with one number per sample; a cross-entropy over classes needs at "
                    "least two: pass the loss as criterion="
                )
            return recognise_cross_entropy(logits, gradient, traced.judged_by, self._may_be_soft)
        given = [torch.stack(some).to(device) for some in zip(*map(_targets, passes), strict=True)]
        assert form is not None
        return self._criterion(logits, given, gradient, form, passes[0].is_log, traced.judged_by)


def last(observation: Observation, passes: list[Pass]) -> Observation:
    """The part that comes from the passes observed last, with their features."""
    count, samples = len(passes), sum(one.samples for one in passes)
    features = [rows for one in passes if (rows := _by_sample(one)) is not None]
    return Observation(
        observation.visits.last(samples),
        observation.health.last(count),
        HeadGradients(
            residual=observation.head.residual[-samples:],
            strength=observation.head.strength[-count:],
            features=torch.cat(features) if len(features) == count else None,
        ),
    )


def _by_sample(one: Pass) -> Tensor | None:
    """Input of the head, `[B, D]`, or `[B, P, D]` for several positions of a sample."""
    if one.features is None or one.positions == 1:
        return one.features
    return one.features.view(one.samples, one.positions, -1)


def _targets(one: Pass) -> list[Tensor]:
    if one.target is None:
        raise ValueError(
            "no labels were found in the batches of train_loader; pass the criterion as an "
            "nn.Module, so that its call shows them"
        )
    return [one.target, *one.more_targets]
