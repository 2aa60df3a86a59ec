"""Pure: how a sample fared so far, in; how noisy its label is taken to be, out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..records import MOST_NOISE

TEMPERATURE = 0.1
"""Width of the transition in units of the probability margin, which lies in [−1, 1]."""

EVEN_ERROR = 0.95
"""Mean error at which a label is as likely wrong as right, in units of the error of a network that
knows nothing and gives all C classes the same probability, `√(1 − 1/C)`."""

ERROR_WIDTH = 0.1
"""Width of the transition in units of the mean error."""

PRIOR_SAMPLES = 100
"""At the rate of all, added to each pair of classes: a pair with few of its own tells little."""

_SLACK = 1.1
_LEARNT = 0.75
_SHARED = 0.5
"""Part of what pair and neighbours say that counts: the error has seen some of it."""

_ROUNDS = 10
_LEAST_RATE = 1e-4
_TOLERANCE = 1e-6
_MOST_ROUNDS = 2000
_BINS = 2001


def noisy_weight(mean_margin: Tensor, noise_rate: float) -> Tensor:
    """How noisy the priority takes a label to be: `1 / (1 + exp(m / 0.1) (1 − π) / π)`.

    This is the posterior chance of a wrong label for a sample of mean margin m, at a noise rate π,
    if each tenth of margin makes a wrong label e times less likely. A label that the network mostly
    disagreed with has a negative margin. Where few labels are wrong, it takes more disagreement to
    be one of them: most samples with a slightly negative margin are then hard, not mislabelled.

    Args:
        mean_margin: Mean over visits of `p_y − max_{k≠y} p_k`, in [−1, 1], any shape; NaN, a sample
            never visited, gives the noise rate.
        noise_rate: Share π of noisy labels, in (0, 1).
    """
    prior_odds = math.log(noise_rate / (1 - noise_rate))
    return (prior_odds - mean_margin.nan_to_num(nan=0.0) / TEMPERATURE).sigmoid()


def consistent_noise_rate(mean_margin: Tensor) -> float:
    """The noise rate π that is the mean of the weights it leads to.

    Args:
        mean_margin: `[n]`; NaN for samples never visited, which are left out.

    Returns:
        π in [0.0001, 0.9999]; 0.5 if no sample was visited.
    """
    margin = mean_margin[~mean_margin.isnan()]
    if not len(margin):
        return 0.5
    # In bins far narrower than the temperature, so that many rounds cost little.
    count = torch.histc(margin.float().cpu(), _BINS, -1 - 1 / _BINS, 1 + 1 / _BINS).double()
    center = torch.linspace(-1, 1, _BINS, dtype=torch.float64)
    rate = 0.5
    for _ in range(_MOST_ROUNDS):
        before, rate = rate, (count @ noisy_weight(center, rate)).item() / len(margin)
        rate = min(max(rate, _LEAST_RATE), 1 - _LEAST_RATE)
        if abs(rate - before) < _TOLERANCE:
            break
    return rate


def noisy_part(mean_margin: Tensor) -> Tensor:
    """Part of what is learnt of each sample that counts as the noisy labels' gain.

    This is `noisy_weight` without the benefit of the doubt: where few labels are wrong, a label
    that the network disagrees with is most likely right and hard, and still what is learnt of it
    is mostly learnt by heart. So both sides are even at a margin of zero, unless more than half of
    the labels are wrong, and that is more than the network's ignorance.

    Args:
        mean_margin: `[n]`; NaN for samples never visited.
    """
    rate = consistent_noise_rate(mean_margin)
    return noisy_weight(mean_margin, rate if 0.5 < rate <= MOST_NOISE else 0.5)


def wrong_label_chance(
    mean_error: Tensor, given_label: Tensor, rival: Tensor, vote: Tensor, classes: int
) -> Tensor:
    """How likely each label is wrong: above 0.5 it is taken to be.

    `1 / (1 + exp(−L))` with `L = (e − 0.95 e₀) / 0.1 + ½ (logit π_pair − logit π) + ½ log λ`, where
    `e₀ = √(1 − 1/C)`. Labels of one class beside one rival make a pair. Where two classes were
    confused, a larger share of their pair is wrong, and it takes less to be one of them. The rates
    π are the means of the chances that they lead to, that of a pair taken together with 100 samples
    at the rate of all. λ says how much more often neighbours vote as they do, for the given label
    or against it, on wrong labels than on right ones, by the same chances.

    Args:
        mean_error: Mean over visits of `||p − y||`, in [0, √2], `[n]`; NaN before the first visit.
        given_label: Their labels, integers `[n]`; all −1 where a sample has several.
        rival: Most probable other class, integers `[n]`; likewise.
        vote: What the neighbours say, integers `[n]`; −1 where they were not asked.
        classes: How many there are, C.

    Returns:
        In [0, 1], `[n]`; NaN for samples never visited.
    """
    visited = ~mean_error.isnan()
    if not visited.any():
        return mean_error.clone()
    columns = (column[visited].long() for column in (given_label, rival, vote))
    given, other, voted = columns
    pairs = (given + 1) * (other.max() + 2) + other + 1
    _, pair, count = pairs.unique(return_inverse=True, return_counts=True)
    alone = _log_odds(mean_error[visited].double(), classes)
    asked, is_backed = voted >= 0, voted == given
    log_odds = alone
    for _ in range(_ROUNDS):
        chance = log_odds.sigmoid()
        by_pair = _of_pairs(chance, pair, count) - _logit(chance.mean())
        by_vote = torch.where(
            asked, _of_votes(chance[asked], is_backed[asked])[is_backed.long()], 0
        )
        log_odds = alone + _SHARED * (by_pair + by_vote)
    found = mean_error.clone()
    found[visited] = log_odds.sigmoid().to(found)
    return found


def is_plausible(chance: Tensor, error: Tensor, backed: Tensor, classes: int) -> bool:
    """Whether enough is learnt for the chances to mean anything.

    Few wrong labels have most of their neighbours behind them. So about as many are wrong, at most,
    as neighbours vote against; a network that contradicts more has not learnt much yet. Without
    votes, what it does not contradict must be learnt: half of these errors are below three quarters
    of what an untrained network errs. In any case, 90 % wrong labels are too many.

    Args:
        chance: How likely each label is wrong, `[n]`; NaN where it is not known.
        error: Mean over visits of `||p − y||`, `[n]`.
        backed: 1 where the neighbours vote for the given label, 0 where against it, NaN where they
            were not asked, `[n]`.
        classes: How many there are.
    """
    is_named = chance > 0.5
    named = is_named[~chance.isnan()].double().mean()
    if not named < MOST_NOISE:
        return False
    against = 1 - backed.double().nanmean()
    if against.isnan():
        others = error[~is_named & ~chance.isnan()]
        return bool(others.median() < _LEARNT * _untrained_error(classes))
    return bool(named <= _SLACK * against)


def _of_pairs(chance: Tensor, pair: Tensor, count: Tensor) -> Tensor:
    """Logit of the rate of wrong labels in each sample's pair, `[n]`; a pair counts so many."""
    wrong = chance.new_zeros(len(count)).index_add_(0, pair, chance)
    return _logit((wrong + PRIOR_SAMPLES * chance.mean()) / (count + PRIOR_SAMPLES))[pair]


def _of_votes(chance: Tensor, is_backed: Tensor) -> Tensor:
    """How much likelier wrong labels get a vote than right ones: against them, and for them, `[2]`.

    As logarithms; one more of each is taken to have been seen.
    """
    shares = [
        ((weight * is_backed).sum() + 1) / (weight.sum() + 2) for weight in (chance, 1 - chance)
    ]
    wrong, right = shares
    return torch.stack((((1 - wrong) / (1 - right)).log(), (wrong / right).log()))


def chance_at_first_visit(error: Tensor, classes: int) -> Tensor:
    """How likely a label is wrong by the error of a single visit, any shape; 0.5 for NaN."""
    return _log_odds(error, classes).sigmoid().nan_to_num(nan=0.5)


def _log_odds(error: Tensor, classes: int) -> Tensor:
    return (error - EVEN_ERROR * _untrained_error(classes)) / ERROR_WIDTH


def _untrained_error(classes: int) -> float:
    """Of a network that gives all classes the same probability."""
    return math.sqrt(1 - 1 / max(classes, 2))


def _logit(rate: Tensor) -> Tensor:
    return rate.logit(_LEAST_RATE)
