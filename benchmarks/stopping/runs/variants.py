"""The monitor's rule with one part changed at a time, to see what each part is worth.

What a part is changed to was either the rule of an earlier version or something tried on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.stopping.runs.record import Recording, in_order
from prioritymonitor import Decision, StopRule
from prioritymonitor.records import MOST_NOISE
from prioritymonitor.samples.noisiness import (
    TEMPERATURE,
    consistent_noise_rate,
    noisy_part,
    noisy_weight,
    wrong_label_chance,
)
from prioritymonitor.stopping.kept_weights import AVERAGE_LAG

ONE_NAT = 1.0
_FIRST_SAMPLES = 128
_RULE = StopRule()


@dataclass(frozen=True)
class Visits:
    """What each sample showed in each epoch, `[T, n]` each, in the order of the data set."""

    loss: Tensor
    margin: Tensor
    is_fitted: Tensor
    """True where the given label was predicted."""
    initial_loss: float
    first: int | None
    """The first epoch after which labels could be judged."""


def visits_of(recording: Recording) -> Visits:
    """Visits from a recording."""
    return Visits(
        loss=in_order(recording, "loss"),
        margin=in_order(recording, "margin"),
        is_fitted=in_order(recording, "predicted") == recording["given"],
        initial_loss=recording["visits"][0]["loss"][:_FIRST_SAMPLES].float().mean().item(),
        first=_first_judged(recording),
    )


def _first_judged(recording: Recording) -> int | None:
    errors, rivals = (in_order(recording, name) for name in ("el2n", "rival"))
    for epoch, rival in enumerate(rivals, 1):
        chance = wrong_label_chance(errors[:epoch].mean(0), recording["given"], rival)
        if (chance > 0.5).float().mean() < MOST_NOISE:
            return epoch
    return None


@dataclass(frozen=True)
class Variant:
    """How the rule differs.

    Attributes:
        part: How much of what was learnt of each sample counts as noisy, of its mean margin.
        recency: Visit k counts k^recency times in the mean margin.
        until: By how many epochs the margins reach beyond the end of the change that they judge.
        value: What is followed: the loss of each sample, or something else, `[T, n]`.
        rule: When to stop.
        lag: Epochs after the best one whose averaged weights are taken.
    """

    part: Callable[[Tensor], Tensor] = noisy_part
    recency: float = 0.0
    until: int = 0
    value: Callable[[Visits], Tensor] = lambda visits: visits.loss
    rule: StopRule = _RULE
    lag: int = AVERAGE_LAG


def judge(visits: Visits, variant: Variant) -> Decision:
    """The decision at the stop, or at the end of the run."""
    margins = _mean_margins(visits.margin, variant.recency)
    value = variant.value(visits)
    before = torch.full_like(value[0], visits.initial_loss)
    if value is not visits.loss:
        before = value[0].mean().expand_as(value[0])
    gains = torch.empty(len(value))
    for epoch, after in enumerate(value):
        margin = margins[min(max(epoch + variant.until, 0), len(margins) - 1)]
        gains[epoch] = ((1 - 2 * variant.part(margin)) * (before - after)).mean()
        before = after
    priority = gains.double().cumsum(0).tolist()
    scale = visits.initial_loss if value is visits.loss else ONE_NAT
    decision = _sequence(lambda now: priority[:now], visits, variant.rule, scale, variant.until)
    return _later(decision, variant.lag)


def judge_anew(
    visits: Visits, part: Callable[[Tensor], Tensor], delay: int, patience: int, lag: int
) -> Decision:
    """All epochs judged again at the end of each, by the margins up to `delay` epochs ago."""
    margins = _mean_margins(visits.margin, 0.0)

    def priority(now: int) -> list[float]:
        sign = 2 * part(margins[max(now - delay, 1) - 1]) - 1
        return (visits.loss[:now] @ sign / len(sign)).tolist()

    rule = StopRule(patience=patience, tolerance=0.0)
    return _later(_sequence(priority, visits, rule, ONE_NAT, 0), lag)


def _sequence(
    priority: Callable[[int], list[float]],
    visits: Visits,
    rule: StopRule,
    scale: float,
    wait: int,
) -> Decision:
    first = visits.first
    for now in range(1, len(visits.loss) + 1 - max(wait, 0)):
        decision = rule(
            [
                {
                    "priority": value,
                    "samples_seen": 1,
                    "initial_loss": scale,
                    "noise_rate": 0.0 if first is not None and epoch >= first else 1.0,
                }
                for epoch, value in enumerate(priority(now), 1)
            ]
        )
        if decision.stop:
            break
    return decision


def _later(decision: Decision, lag: int) -> Decision:
    """The decision with the epoch whose averaged weights are taken."""
    assert decision.best_epoch is not None
    return replace(decision, best_epoch=min(decision.best_epoch + lag, decision.epoch))


def _mean_margins(margin: Tensor, recency: float) -> Tensor:
    weight = torch.arange(1, len(margin) + 1).float().pow(recency).unsqueeze(1)
    return (margin * weight).cumsum(0) / weight.cumsum(0)


def even(temperature: float) -> Callable[[Tensor], Tensor]:
    """Both sides even at any noise rate."""
    return lambda margin: (-margin / temperature).sigmoid()


def consistent(margin: Tensor) -> Tensor:
    """With the benefit of the doubt where few labels are wrong."""
    return noisy_weight(margin, consistent_noise_rate(margin))


def sharper(factor: float) -> Callable[[Tensor], Tensor]:
    """The rule's part at another temperature."""
    return lambda margin: noisy_part(margin * factor)


_PATIENT = StopRule(patience=7, tolerance=0.0)
VARIANTS: dict[str, Callable[[Visits], Decision]] = {
    "the rule": lambda visits: judge(visits, Variant()),
    "past judged anew, as in the first version": lambda visits: judge_anew(
        visits, consistent, delay=3, patience=7, lag=2
    ),
    "past judged anew, even sides": lambda visits: judge_anew(
        visits, even(2 * TEMPERATURE), delay=3, patience=7, lag=2
    ),
} | {
    name: lambda visits, variant=variant: judge(visits, variant)
    for name, variant in {
        "judged by the margins before the change only": Variant(until=-1),
        "judged one epoch later": Variant(until=1),
        "late visits count more, k^½": Variant(recency=0.5),
        "early visits count more, k^−½": Variant(recency=-0.5),
        "benefit of the doubt where few labels are wrong": Variant(part=consistent),
        "even sides at any noise rate": Variant(part=even(TEMPERATURE)),
        "temperature 0.05": Variant(part=sharper(2)),
        "temperature 0.2": Variant(part=sharper(0.5)),
        "accuracy in place of loss": Variant(
            value=lambda visits: -visits.is_fitted.float(), rule=_PATIENT
        ),
        "probability in place of loss": Variant(
            value=lambda visits: -torch.exp(-visits.loss), rule=_PATIENT
        ),
        "tolerance 0, patience 7": Variant(rule=_PATIENT),
        "tolerance 0.5 %": Variant(rule=StopRule(tolerance=0.005)),
        "tolerance 2 %": Variant(rule=StopRule(tolerance=0.02)),
        "patience 1": Variant(rule=StopRule(patience=1)),
        "patience 7": Variant(rule=StopRule(patience=7)),
        "weights of the peak, no lag": Variant(lag=0),
        "lag 2": Variant(lag=2),
        "lag 3": Variant(lag=3),
    }.items()
}
