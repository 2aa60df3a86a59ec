"""The clean priority, and the stop by it where neighbours don't vote."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import StopReason, StopRule
from prioritymonitor.samples.noisiness import noisy_part
from prioritymonitor.stopping.priority import priority_gain, read_priority
from prioritymonitor.stopping.rule import measure_only
from tests.support.histories import history_of
from tests.support.separable import watched

RISES_THEN_FALLS = [0.0, 0.3, 0.5, 0.4, 0.35, 0.3, 0.2, 0.1]
RESTLESS = [None, 0.4, 0.3, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]
"""Ever more predictions change from the fifth epoch on."""


def history(priority, initial_loss=1.0, first=1, changes=None, seen=100):
    """That of a training that began with a loss of one nat, and whose neighbours don't vote.

    Until the epoch `first`, most labels look wrong; None: always.
    """
    epochs = len(priority)
    changes = RESTLESS + [0.4] * 30 if changes is None else changes
    judged = math.inf if first is None else first
    return history_of(
        priority=priority,
        samples_seen=[seen] * epochs,
        initial_loss=[initial_loss] * epochs,
        noise_rate=[0.4 if epoch >= judged else 0.95 for epoch in range(1, epochs + 1)],
        prediction_changes=changes[:epochs],
    )


def judge(priority, rule=StopRule(), **known):  # noqa: B008
    return rule(history(priority, **known))


def test_priority_gains_by_clean_decrease_and_loses_by_noisy_decrease():
    decrease, noisy = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0])
    assert priority_gain(decrease, noisy) == pytest.approx(0.5)
    assert priority_gain(-decrease, noisy) == pytest.approx(-0.5)
    assert priority_gain(decrease, torch.tensor([0.5, 0.5])) == 0


def test_priority_weighs_samples_not_groups():
    """The sum over samples is the gradients' own weight: nine clean samples outweigh one noisy."""
    noisy = torch.tensor([1.0] + [0.0] * 9)
    assert priority_gain(torch.full((10,), 0.1), noisy) == pytest.approx(0.8)


def test_samples_that_an_epoch_left_out_gain_nothing_in_it():
    decrease = torch.tensor([1.0, torch.nan])
    assert priority_gain(decrease, torch.tensor([0.0, 0.5])) == 1.0
    assert priority_gain(torch.full((2,), torch.nan), torch.tensor([0.0, 0.5])) == 0


@pytest.mark.parametrize(("epochs", "stops"), [(7, False), (8, True)])
def test_it_stops_once_a_fall_that_lasted_has_been_there_for_the_patience(epochs, stops):
    """Epochs 6, 7 and 8 and the two before each of them are lower than the peak."""
    decision = judge(RISES_THEN_FALLS[:epochs])
    assert decision.stop is stops
    assert decision.epoch == epochs
    assert decision.best_epoch == decision.peak_epochs[0] == 3
    assert decision.reason is (StopReason.NOISY_DOMINATES if stops else StopReason.CLEAN_DOMINATES)


def test_the_message_names_the_priority_and_the_epoch_after_which_noisy_labels_took_over():
    assert judge(RISES_THEN_FALLS).message == (
        "noisy labels took over after epoch 3: the clean priority has been below the stop line for "
        "3 epochs (fell 0.200, line 0.010); restore_best() gives the weights of epoch 3"
    )


def test_it_goes_on_while_the_priority_has_lost_less_than_a_hundredth_of_the_initial_loss():
    slow = [0.5 - 0.002 * epoch for epoch in range(14)]
    stops = [judge(slow[:epochs]).stop for epochs in range(1, 15)]
    # Epochs 8, 9 and 10: their two epochs before have lost five times 0.002 and more.
    assert stops == [False] * 9 + [True] * 5
    assert judge(RISES_THEN_FALLS).stop
    assert not judge(RISES_THEN_FALLS, initial_loss=100.0).stop
    assert not judge([0.5] * 12).stop


def test_the_tolerance_of_the_agreement_is_not_that_of_the_priority():
    for tolerance in (0.0, 0.9):
        rule = StopRule(tolerance=tolerance)
        assert judge(RISES_THEN_FALLS, rule) == judge(RISES_THEN_FALLS)


def test_a_dip_is_no_stop():
    """At a high learning rate the losses of single epochs swing."""
    swings = [0.5, 0.4, 0.4, 0.499, 0.4, 0.4, 0.498]
    assert not any(judge(swings[:epochs]).stop for epochs in range(1, 8))


@pytest.mark.parametrize("initial_loss", [None, 0.0, -0.5])
def test_without_a_positive_initial_loss_any_fall_that_lasts_is_enough(initial_loss):
    slightly = [0.5, *[0.4999] * 7]
    assert judge(slightly, initial_loss=initial_loss).stop
    assert not judge(slightly[:7], initial_loss=initial_loss).stop
    assert not judge(slightly).stop


@pytest.mark.parametrize(
    "changes",
    [
        [None] * 8,
        [None, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1],
        [None, 0.4, 0.3, 0.2, 0.2, 0.21, 0.21, 0.21],
    ],
    ids=["unknown", "fewer and fewer", "hardly more"],
)
def test_a_fall_of_the_priority_alone_is_no_stop_while_predictions_are_calm(changes):
    """On hard data the priority falls while much is still learnt."""
    decision = judge(RISES_THEN_FALLS, changes=changes)
    assert not decision.stop
    assert decision.reason is StopReason.CLEAN_DOMINATES
    assert (decision.best_epoch, decision.peak_epochs[0]) == (8, 3)


def test_predictions_are_restless_once_a_tenth_more_of_them_change_than_when_fewest_did():
    """By means over three epochs."""
    for more, stops in ((0.32, False), (0.34, True)):
        changes = [None, *[0.3] * 4, *[more] * 5]
        assert judge([*RISES_THEN_FALLS, 0.0, 0.0], changes=changes).stop is stops


def test_it_decides_only_where_the_votes_are_not_known():
    falling = history(RISES_THEN_FALLS)
    assert StopRule()(falling).stop
    for record in falling:
        record |= {"agreement": 0.5 + record["epoch"] / 100, "contradicted": 0.2}
    assert not StopRule()(falling).stop


def test_a_record_counts_by_the_samples_visited_up_to_its_epoch():
    """Epochs over part of the data: the priority of half of them is worth half."""
    priority = [0.4, 0.5, 0.4, 0.3, 0.2]
    records = history(priority)
    for record, seen in zip(records, (50, 50, 100, 100, 100), strict=True):
        record["samples_seen"] = seen
    reading = read_priority(records)
    assert (reading.peak, reading.highest, reading.fall) == (3, 0.4, 0.0)


def test_the_peak_is_now_or_what_it_was_before():
    """So it is enough to keep the weights of one epoch."""
    torch.manual_seed(0)
    for _ in range(50):
        priority = (torch.randn(30) / 100).cumsum(0).tolist()
        found = [judge(priority[:now], measure_only) for now in range(1, 31)]
        for before, now in pairwise(found):
            assert now.peak_epochs[0] in (now.epoch, before.peak_epochs[0])
            assert now.best_epoch in (now.epoch, now.peak_epochs[0])


def test_epochs_before_anything_was_learnt_are_no_peak():
    falls_then_rises = [0.9, 0.1, 0.2, 0.3, 0.4]
    assert judge(falls_then_rises, first=2).peak_epochs[0] == 5
    unlearnt = judge(falls_then_rises, first=None)
    assert unlearnt.reason is StopReason.TOO_EARLY
    assert unlearnt.best_epoch == 5


def test_no_stop_before_min_epochs_nor_without_a_rule():
    assert not judge(RISES_THEN_FALLS, StopRule(patience=1, min_epochs=9)).stop
    measured = judge(RISES_THEN_FALLS, measure_only)
    assert not measured.stop
    assert measured.reason is StopReason.NO_RULE
    assert measured.best_epoch == 3


def test_the_priority_is_what_each_epoch_taught_judged_by_all_visits_so_far():
    _, model, optimizer, loader, monitor = watched()
    losses, before, margins, priority = [], None, torch.zeros(400), 0.0
    for epoch in range(1, 6):
        after = torch.zeros(400)
        for x, y, index in loader:
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y, reduction="none")
            losses += loss.tolist()
            after[index] = loss.detach()
            margins[index] += margin_of(logits.detach(), y)
            loss.mean().backward()
            optimizer.step()
        decrease = (torch.tensor(losses[:128]).mean() if before is None else before) - after
        priority += ((1 - 2 * noisy_part(margins / epoch)) * decrease).mean().item()
        before = after
        assert monitor.history()[-1]["priority"] == pytest.approx(priority, abs=1e-5)
    monitor.close()


def margin_of(logits, labels):
    probability = logits.softmax(1)
    own = probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - probability.scatter(1, labels.unsqueeze(1), -1).amax(1)
