"""The monitor's own code on a recorded run: what it would have said, without training again.

The monitor changes nothing in the training, so its decisions follow from what the samples showed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.stopping.runs.record import Recording
from benchmarks.stopping.runs.rivals import Choice
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor import StopRule
from prioritymonitor.records import Batch, Labels
from prioritymonitor.samples.table import PriorityPath

_RULE = StopRule()


def replay(recording: Recording, rule: StopRule | None = _RULE) -> PriorityPath:
    """Follow the epochs until the stop, or to the end.

    Args:
        recording: From `record`.
        rule: When to stop; None: never.
    """
    given = recording["given"].long()
    lag = (rule or StopRule()).average_lag
    path = PriorityPath(len(given), len(given), rule, lag)
    for visits in recording["visits"]:
        index = visits["index"].long()
        path.record(_batch(visits, index, given), None)
        path.end_epoch()
        if path.decision.stop:
            break
    return path


def monitor_choice(setting: Setting, recording: Recording) -> Choice:
    """The epoch that the monitor takes for the best one, before the lag of the averaged weights."""
    path = replay(recording, StopRule(average_lag=0))
    decision = path.decision
    assert decision.best_epoch is not None
    looks = decision.best_epoch * setting.views_per_epoch
    return Choice(looks, decision.epoch, decision.stop and decision.epoch < setting.epochs)


def _batch(visits: dict[str, Tensor], samples: Tensor, given: Tensor) -> Batch:
    always = torch.ones(len(samples), dtype=torch.bool)
    return Batch(
        target=given[samples],
        residual=torch.empty(0),
        sample_loss=visits["loss"].float(),
        margin=visits["margin"].float(),
        error=visits["el2n"].float(),
        rival=visits["rival"].long(),
        counted=always,
        finite=always[:1],
        in_range=always[:1],
        misfit=torch.zeros(1),
        strength=torch.ones(1),
        labels=Labels.ONE,
        features=None,
        index=samples,
    )
