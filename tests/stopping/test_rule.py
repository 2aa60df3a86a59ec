"""The stop by the neighbours' votes: when, with which words, and which epoch is the best."""

import copy
from itertools import pairwise

import pytest
import torch

from prioritymonitor import StopReason, StopRule
from prioritymonitor.stopping.agreement import read_agreement
from prioritymonitor.stopping.reading import read_share
from prioritymonitor.stopping.rule import measure_only
from tests.support.histories import history_of

RISES_THEN_FALLS = [0.5, 0.7, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7]
"""Means over three epochs: 0.5, 0.6, 0.667, 0.767, 0.8 and from there on 0.767, 0.733, 0.7, 0.7."""


def decisions(agreement, rule=StopRule(), contradicted=0.0):  # noqa: B008
    """The decision at the end of each epoch."""
    if not isinstance(contradicted, list):
        contradicted = [contradicted] * len(agreement)
    history = history_of(agreement=agreement, contradicted=contradicted)
    return [rule(history[:now]) for now in range(1, len(history) + 1)]


def judge(agreement, rule=StopRule(), contradicted=0.0):  # noqa: B008
    return decisions(agreement, rule, contradicted)[-1]


# When


def test_it_stops_after_three_epochs_below_the_line_and_says_by_how_much():
    *before, last = decisions(RISES_THEN_FALLS)
    assert not any(decision.stop for decision in before)
    assert last.stop
    assert last.reason is StopReason.NOISY_DOMINATES
    assert (last.epoch, last.best_epoch) == (9, 4)
    assert last.message == (
        "noisy labels took over after epoch 4: the agreement with the neighbours has been below "
        "the stop line for 3 epochs (fell 0.100, line 0.040); restore_best() gives the weights of "
        "epoch 4"
    )


def test_before_the_stop_the_message_says_how_far_it_is():
    messages = [decision.message for decision in decisions(RISES_THEN_FALLS)]
    name = "the agreement with the neighbours"
    assert messages[:5] == [f"clean labels still dominate: {name} still rises"] * 5
    assert messages[5:8] == [
        f"clean labels still dominate: {name} peaked at epoch 4 of 6 and is above the stop line "
        "(fell 0.033, line 0.040)",
        f"noisy labels begin to dominate: {name} is below the stop line for 1 of 3 epochs "
        "(fell 0.067, line 0.040)",
        f"noisy labels begin to dominate: {name} is below the stop line for 2 of 3 epochs "
        "(fell 0.100, line 0.040)",
    ]
    reasons = {decision.reason for decision in decisions(RISES_THEN_FALLS)[:8]}
    assert reasons == {StopReason.CLEAN_DOMINATES}


@pytest.mark.parametrize(("patience", "stops_at"), [(1, 7), (2, 8), (3, 9)])
def test_patience_counts_the_epochs_below_the_line(patience, stops_at):
    found = decisions(RISES_THEN_FALLS, StopRule(patience=patience))
    assert next(decision.epoch for decision in found if decision.stop) == stops_at
    assert f"line for {patience} epoch" in found[stops_at - 1].message
    assert ("1 epoch (" in found[stops_at - 1].message) == (patience == 1)


def test_epochs_below_the_line_count_only_if_they_are_running():
    returns = [0.8] * 5 + [0.65, 0.8, 0.8, 0.8, 0.65, 0.8, 0.8, 0.8]
    lower = [decision.best_epoch < decision.epoch for decision in decisions(returns)]
    assert sum(lower) == 6
    assert not any(decision.stop for decision in decisions(returns, StopRule(patience=4)))


def test_there_is_no_stop_while_the_agreement_rises():
    rises = [0.1 + 0.02 * epoch for epoch in range(40)]
    for decision in decisions(rises, StopRule(patience=1, tolerance=0)):
        assert not decision.stop
        assert decision.best_epoch == decision.epoch


def test_a_slow_beginning_at_chance_is_no_stop():
    """Ten epochs in which nothing is learnt, as at a low learning rate, and then it is."""
    torch.manual_seed(0)
    for _ in range(100):
        at_chance = (0.1 + 0.002 * torch.randn(10)).tolist()
        learning = [0.1 + 0.05 * epoch for epoch in range(1, 13)]
        found = decisions(at_chance + learning, contradicted=0.09)
        assert not any(decision.stop for decision in found)
        assert found[-1].best_epoch == 22


@pytest.mark.parametrize("dip", [0.05, 0.1, 0.15, 0.3])
def test_one_bad_epoch_is_no_stop(dip):
    """One alone swings with the last steps of it, such as a spike of the loss."""
    dips = [0.5, 0.7, *[0.8] * 4, (1 - dip) * 0.8, *[0.8] * 6]
    found = decisions(dips)
    assert not any(decision.stop for decision in found)
    assert found[-1].best_epoch == len(dips)


def test_flat_is_no_stop_without_tolerance_either():
    assert not any(d.stop for d in decisions([0.8] * 20, StopRule(tolerance=0), contradicted=0.5))


def test_the_tolerance_is_the_share_of_the_highest_mean_that_must_be_lost():
    falls_an_eighth = RISES_THEN_FALLS
    assert judge(falls_an_eighth, StopRule(tolerance=0.12)).reason is StopReason.CLEAN_DOMINATES
    found = decisions([*falls_an_eighth, 0.7], StopRule(tolerance=0.12))
    assert [decision.stop for decision in found] == [False] * 9 + [True]
    assert not judge([0.7] * 10, StopRule(tolerance=0.13)).stop
    halved = [value / 2 for value in falls_an_eighth]
    assert [decision.stop for decision in decisions(halved)][-1]


def test_no_stop_before_min_epochs():
    found = decisions(RISES_THEN_FALLS + [0.7] * 3, StopRule(min_epochs=11))
    assert [decision.epoch for decision in found if decision.stop] == [11, 12]
    assert found[8].reason is StopReason.TOO_EARLY
    assert found[8].message == "too early to judge: epoch 9 of at least 11"
    assert found[8].best_epoch == 4


# How much of a fall


@pytest.mark.parametrize(
    ("contradicted", "part"), [(0.0, 1), (0.05, 1), (0.075, 1), (0.15, 1 / 2), (0.3, 1 / 4)]
)
def test_the_line_is_nearer_the_more_labels_are_contradicted(contradicted, part):
    history = history_of(agreement=RISES_THEN_FALLS, contradicted=[contradicted] * 9)
    reading = read_agreement(history, 0.05)
    assert reading.line == pytest.approx(0.05 * 0.8 * part)
    assert (reading.peak, reading.highest) == (4, pytest.approx(0.8))
    assert reading.fall == pytest.approx(0.1)


def test_a_smaller_fall_is_enough_where_many_labels_are_contradicted():
    falls_little = [0.5, 0.7, *[0.8] * 4, *[0.78] * 6]
    assert not any(decision.stop for decision in decisions(falls_little, contradicted=0.07))
    found = decisions(falls_little, contradicted=0.3)
    assert next(decision.epoch for decision in found if decision.stop) == 10


def test_it_is_those_at_the_peak_that_count():
    """Later ones are fewer, because they were learnt by heart."""
    learnt_by_heart = [0.3] * 5 + [0.2, 0.1, 0.0, 0.0]
    history = history_of(agreement=RISES_THEN_FALLS, contradicted=learnt_by_heart)
    assert read_agreement(history, 0.05).line == pytest.approx(0.05 * 0.8 / 4)


# The best epoch


def test_the_best_epoch_is_now_until_the_curve_is_below_the_line_and_the_peak_then():
    found = decisions(RISES_THEN_FALLS)
    assert [decision.best_epoch for decision in found] == [1, 2, 3, 4, 5, 6, 4, 4, 4]
    assert [decision.peak_epoch for decision in found] == [1, 1, 2, 3, 4, 4, 4, 4, 4]


def test_the_peak_is_in_the_middle_of_the_last_three_epochs_that_are_as_good_as_any():
    curve = [0.5, 0.7, 0.81, 0.81, 0.81, 0.808, 0.808, 0.7, 0.7, 0.7]
    reading = read_share(history_of(agreement=curve), "agreement", "it", 0.05)
    assert reading.peak == 6  # the mean of epochs 5 to 7 is lower by less than 0.3 %
    assert reading.highest == pytest.approx(0.81)
    lower = [value - 0.01 * (epoch >= 5) for epoch, value in enumerate(curve)]
    assert read_share(history_of(agreement=lower), "agreement", "it", 0.05).peak == 4


def test_a_higher_peak_after_a_fall_is_the_new_one():
    again = [*RISES_THEN_FALLS[:8], 0.9, 0.9, 0.9]
    last = judge(again)
    assert not last.stop
    assert (last.best_epoch, last.peak_epoch) == (11, 10)


def test_the_peak_is_the_epoch_before_or_what_it_was():
    """So it is enough to hold the weights of two epochs beside those that are kept."""
    torch.manual_seed(0)
    for _ in range(50):
        curve = (0.5 + (torch.randn(40) / 50).cumsum(0)).clamp(0, 1).tolist()
        found = decisions(curve, measure_only)
        for before, now in pairwise(found):
            assert now.peak_epoch in (now.epoch, now.epoch - 1, before.peak_epoch)
            assert now.best_epoch in (now.epoch, now.peak_epoch)


# Where little is known


def test_votes_that_come_later_count_from_then_on():
    found = decisions([None] * 4 + RISES_THEN_FALLS)
    assert [decision.reason for decision in found[:4]] == [StopReason.TOO_EARLY] * 4
    assert [decision.epoch for decision in found if decision.stop] == [13]
    assert found[-1].best_epoch == 8


def test_where_nothing_tells_anything_nothing_is_judged():
    last = judge([None] * 9)
    assert last.reason is StopReason.TOO_EARLY
    assert last.best_epoch == last.epoch == 9
    assert last.message.startswith("not judged yet: neither the neighbours nor the clean priority")


def test_measuring_only_knows_the_best_epoch_and_never_stops():
    found = decisions([*RISES_THEN_FALLS, 0.1, 0.1, 0.1], measure_only)
    assert not any(decision.stop for decision in found)
    assert {decision.reason for decision in found} == {StopReason.NO_RULE}
    assert found[-1].best_epoch == found[-1].peak_epoch == 4
    assert found[-1].message == "measuring only: epoch 4 of 12 is the best so far"


def test_a_rule_changes_nothing_in_the_history():
    history = history_of(agreement=RISES_THEN_FALLS, contradicted=[0.2] * 9)
    before = copy.deepcopy(history)
    assert StopRule()(history) == StopRule()(history)
    assert history == before
