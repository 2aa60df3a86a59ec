"""The monitor's own code on a recorded run: what it would have said, without training again.

The monitor changes nothing in the training, so its decisions follow from what the samples showed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.stopping.runs.record import HELD_OUT, Recording
from benchmarks.stopping.runs.rivals import Choice
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor import Decision, StopRule
from prioritymonitor.judge import Judge
from prioritymonitor.records import NOTHING_YET, Record, TargetKind, Visits
from prioritymonitor.samples.table import SampleTable
from prioritymonitor.stopping.kept_weights import WeightKeeper
from prioritymonitor.stopping.rule import Rule
from prioritymonitor.tags import RECORD_KEYS

_RULE = StopRule()


@dataclass(frozen=True)
class Replay:
    """What the monitor would have known at the end."""

    table: SampleTable
    history: tuple[Record, ...]
    decision: Decision


def replay(recording: Recording, rule: Rule = _RULE) -> Replay:
    """Follow the epochs until the stop, or to the end.

    Args:
        recording: From `record` or `record_with_validation`.
        rule: When to stop.
    """
    given = recording["given"].long()
    table = SampleTable(len(given), None)
    judge = Judge(table, WeightKeeper(nn.Linear(1, 1), averaged=True), rule, print)
    validation = recording.get("averaged_validation", [])
    views = len(validation) // len(recording["visits"])
    history: tuple[Record, ...] = ()
    decision = NOTHING_YET
    for epoch, visits in enumerate(recording["visits"], 1):
        table.record(_visits(visits, given, recording["representation"]), None)
        record: Record = dict.fromkeys(RECORD_KEYS) | {"epoch": epoch}
        if validation:
            record["validation"] = validation[epoch * views - 1] / 100
            record["validation_samples"] = round(len(given) * HELD_OUT / (1 - HELD_OUT))
        judge.step_made(1)
        judge.count_steps(1)
        decision = judge.end_epoch(record, history, decision)
        history = (*history, record)
        if decision.stop:
            break
    return Replay(table, history, decision)


def choice_of(setting: Setting, history: Sequence[Record], rule: Rule = _RULE) -> Choice:
    """What a rule takes for the best epoch, at its stop or at the end.

    Args:
        setting: The run.
        history: Its records, of all epochs.
        rule: When to stop.
    """
    for now in range(1, len(history) + 1):
        decision = rule(history[:now])
        if decision.stop:
            break
    assert decision.best_epoch is not None
    looks = decision.best_epoch * setting.views_per_epoch
    return Choice(looks, decision.epoch, decision.stop and decision.epoch < setting.epochs)


def _visits(columns: dict[str, Tensor], given: Tensor, representation: Tensor) -> Visits:
    index = columns["index"].long()
    return Visits(
        given_label=given[index],
        sample_loss=columns["loss"].float(),
        margin=columns["margin"].float(),
        error=columns["el2n"].float(),
        rival=columns["rival"].long(),
        counted=torch.ones(len(index), dtype=torch.bool),
        targets=TargetKind.ONE,
        classes=int(given.max()) + 1,
        index=index,
        representation=representation[index],
    )
