"""What is known of each sample after an epoch, and what can't be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..loaded import within

_MOST_VISITS = 2**24
"""Whole numbers up to here are exact in single precision."""

_ROUNDING = 1e-3
"""Of sums in single precision, relative."""


@dataclass(frozen=True)
class Past:
    """What is known of each sample followed after the last epoch, on the host, `[n]` each.

    It is replaced as a whole, so that another thread may read it at any time.
    """

    loss: Tensor
    """In the latest epoch that visited the sample; NaN before the first."""
    decrease: Tensor
    """By how much the latest epoch brought it down: since the epoch of the visit before, at a first
    visit since the start of the training; NaN where the epoch made no visit."""
    margin_sum: Tensor
    error_sum: Tensor
    visits: Tensor
    """How many."""
    given_label: Tensor
    """As the loss saw it, int32; −1 before the first visit."""
    rival: Tensor
    """Most probable class other than the given label at the latest visit, int32."""
    predicted: Tensor
    """The class predicted at the latest visit, int32; −1 before the first."""

    @property
    def mean_margin(self) -> Tensor:
        """Over all visits; NaN before the first."""
        return self.margin_sum / self.visits

    @property
    def mean_error(self) -> Tensor:
        """Over all visits; NaN before the first."""
        return self.error_sum / self.visits

    @property
    def samples_seen(self) -> int:
        """How many samples were visited."""
        return int((self.visits > 0).sum())

    def check(self, classes: int) -> None:
        """Refuse what no visits can have led to.

        Args:
            classes: How many each label is one of.

        Raises:
            ArgumentValueError: It can't be the past of a run.
        """
        _check_sums(self.margin_sum, self.error_sum, self.visits)
        for loss in (self.loss, self.decrease):
            within(loss, -torch.inf, torch.inf, or_nan=True)
        for labels in (self.given_label, self.rival, self.predicted):
            within(labels, -1, classes - 1)


def check_first(initial: Tensor) -> None:
    """Refuse what can't be the sum of the first losses and their number.

    Raises:
        ArgumentValueError: It can't be.
    """
    within(initial, -torch.inf, torch.inf)
    within(initial[1], 0, _MOST_VISITS)


def check_running(epoch: Tensor, labels: Tensor, classes: int) -> None:
    """Refuse what no visits of an epoch add up to; the last rows hold what must not count.

    Args:
        epoch: Sums of losses, margins and errors, and how many there are, `[n + 1, 4]`.
        labels: Given, rival and predicted, integers `[n + 1, 3]`.
        classes: How many each label is one of.

    Raises:
        ArgumentValueError: It can't be the epoch of a run.
    """
    loss, margin, error, visits = epoch[:-1].unbind(1)
    within(loss, -torch.inf, torch.inf)
    _check_sums(margin, error, visits)
    within(labels[:-1], -1, classes - 1)


def _check_sums(margin: Tensor, error: Tensor, visits: Tensor) -> None:
    """Sums of margins and errors over so many visits of each sample."""
    within(visits, 0, _MOST_VISITS)
    within(visits.frac(), 0, 0)
    most = visits * (1 + _ROUNDING)
    within(margin.abs() - most, -torch.inf, 0)
    within(error, 0, torch.inf)
    within(error - 2**0.5 * most, -torch.inf, 0)
