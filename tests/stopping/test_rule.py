"""The stop by the neighbours' votes: when, with which words, and which epoch is the best."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from prioritymonitor import StopReason, StopRule
from prioritymonitor.stopping.agreement import read_agreement
from prioritymonitor.stopping.reading import read_share
from prioritymonitor.stopping.rule import measure_only
from prioritymonitor.stopping.validation import read_validation
from tests.support.histories import history_of

RISES_THEN_FALLS = [0.5, 0.7, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7]
"""Means over three epochs: 0.5, 0.6, 0.667, 0.767, 0.8 and from there on 0.767, 0.733, 0.7, 0.7."""


def history_with(agreement, **others):
    """Of many samples, some of whose labels were judged to be wrong, if nothing else is said."""
    others = {"contradicted": 0.0, "noise_rate": 0.2, "samples_seen": 50_000} | others
    count = len(agreement)
    curves = {
        name: value if isinstance(value, list) else [value] * count
        for name, value in others.items()
    }
    return history_of(agreement=agreement, **curves)


def decisions(agreement, rule=StopRule(), **others):  # noqa: B008
    """The decision at the end of each epoch."""
    history = history_with(agreement, **others)
    return [rule(history[:now]) for now in range(1, len(history) + 1)]


def judge(agreement, rule=StopRule(), **others):  # noqa: B008
    return decisions(agreement, rule, **others)[-1]


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
        "(fell 0.025, line 0.040)",
        f"noisy labels begin to dominate: {name} is below the stop line for 1 of 3 epochs "
        "(fell 0.075, line 0.040)",
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
    returns = [0.8] * 5 + [0.65, 0.65, 0.8, 0.8, 0.8, 0.65, 0.65, 0.8, 0.8]
    found = decisions(returns)
    lower = [decision.epoch for decision in found if decision.best_epoch < decision.epoch]
    assert lower == [7, 12]
    assert not any(decision.stop for decision in found)
    once = decisions(returns, StopRule(patience=1))
    assert [decision.epoch for decision in once if decision.stop] == [7, 12]
    assert not any(decision.stop for decision in decisions(returns, StopRule(patience=2)))


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


def test_after_one_bad_epoch_the_present_one_is_the_best_again_at_once():
    """The means of the two epochs after it are low, but not their own values."""
    dips = [*[0.8] * 6, 0.4, 0.8, 0.8, 0.8]
    found = decisions(dips, StopRule(patience=2))
    assert not any(decision.stop for decision in found)
    assert [decision.best_epoch for decision in found[6:]] == [5, 8, 9, 10]


def test_the_mean_and_the_last_value_must_both_be_low():
    stays_low = [0.8] * 5 + [0.7] * 4
    history = history_with(stays_low)
    # The means of epochs 6 and 7 are 0.775 and 0.725; what is lower alone does not count.
    falls = [read_agreement(history[:now], 0.05).fall for now in (6, 7, 8)]
    assert falls == [pytest.approx(one) for one in (0.025, 0.075, 0.1)]
    comes_back = history_with([0.8] * 5 + [0.5, 0.5, 0.79])
    assert read_agreement(comes_back, 0.05).fall == pytest.approx(0.01)


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
    ("contradicted", "part"), [(0.0, 1), (0.03, 1), (0.05, 1), (0.1, 1 / 2), (0.2, 1 / 4)]
)
def test_the_line_is_nearer_the_more_labels_are_contradicted(contradicted, part):
    history = history_with(RISES_THEN_FALLS, contradicted=contradicted)
    reading = read_agreement(history, 0.05)
    assert reading.line == pytest.approx(0.05 * 0.8 * part)
    assert (reading.peak, reading.highest) == (4, pytest.approx(0.8))
    assert reading.fall == pytest.approx(0.1)


def test_a_smaller_fall_is_enough_where_many_labels_are_contradicted():
    falls_little = [0.5, 0.7, *[0.8] * 4, *[0.78] * 6]
    assert not any(decision.stop for decision in decisions(falls_little, contradicted=0.09))
    found = decisions(falls_little, contradicted=0.2)
    assert next(decision.epoch for decision in found if decision.stop) == 10


def test_it_is_those_at_the_peak_that_count():
    """Later ones are fewer, because they were learnt by heart."""
    learnt_by_heart = [0.2] * 5 + [0.1, 0.05, 0.0, 0.0]
    history = history_with(RISES_THEN_FALLS, contradicted=learnt_by_heart)
    assert read_agreement(history, 0.05).line == pytest.approx(0.05 * 0.8 / 4)


@pytest.mark.parametrize(
    ("samples_seen", "voted"), [(500, 500), (5_000, 5_000), (50_000, 5_000), (1_000_000, 5_000)]
)
def test_it_takes_as_much_as_chance_makes_of_so_many_samples(samples_seen, voted):
    """However many labels are contradicted; of large data 5,000 samples have votes."""
    history = history_with(RISES_THEN_FALLS, contradicted=0.9, samples_seen=samples_seen)
    by_chance = math.sqrt(0.8 * 0.2 / voted + 0.8 * 0.2 / voted)
    assert by_chance > 0.05 * 0.8 * 0.05 / 0.9
    assert read_agreement(history, 0.05).line == pytest.approx(by_chance)


def test_chance_makes_nothing_of_many_samples_where_few_labels_are_contradicted():
    history = history_with(RISES_THEN_FALLS, samples_seen=5_000)
    assert read_agreement(history, 0.05).line == pytest.approx(0.05 * 0.8)


def test_a_fall_that_chance_can_make_is_no_stop():
    falls_little = [0.5, 0.7, *[0.8] * 4, *[0.78] * 8]
    few, many = (
        decisions(falls_little, contradicted=0.3, samples_seen=seen) for seen in (600, 50_000)
    )
    assert not any(decision.stop for decision in few)
    assert [decision.epoch for decision in few if decision.best_epoch < decision.epoch] == []
    assert many[-1].stop


# Ready


def test_before_labels_can_be_judged_no_fall_tells_anything():
    found = decisions(RISES_THEN_FALLS + [0.3] * 9, noise_rate=None)
    assert not any(decision.stop for decision in found)
    assert [decision.best_epoch for decision in found] == list(range(1, 19))
    messages = {decision.message for decision in found}
    assert messages == {
        "not judged yet by the agreement with the neighbours: too little is learnt to name labels"
    }
    assert found[-1].peak_epochs[0] == 4  # its weights are kept in case


def test_epochs_below_the_line_count_from_the_first_one_on_in_which_labels_could_be_judged():
    curve = [*RISES_THEN_FALLS, 0.7, 0.7]
    known_late = [None] * 8 + [0.2] * 3
    assert [d.epoch for d in decisions(curve, noise_rate=known_late) if d.stop] == [11]
    assert [d.epoch for d in decisions(curve) if d.stop] == [9, 10, 11]


def test_labels_that_could_be_judged_once_can_be_for_good():
    known_once = [None, None, 0.2, *[None] * 6]
    assert judge(RISES_THEN_FALLS, noise_rate=known_once).stop


def test_no_wrong_label_is_a_judgement_too():
    assert judge(RISES_THEN_FALLS, noise_rate=0.0).stop


# The best epoch


def test_the_best_epoch_is_now_until_the_curve_is_below_the_line_and_the_peak_then():
    found = decisions(RISES_THEN_FALLS)
    assert [decision.best_epoch for decision in found] == [1, 2, 3, 4, 5, 6, 4, 4, 4]
    assert [decision.peak_epochs[0] for decision in found] == [1, 2, 2, 3, 4, 4, 4, 4, 4]


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
    assert (last.best_epoch, last.peak_epochs[0]) == (11, 10)


def test_the_peak_is_the_epoch_before_or_what_it_was():
    """So it is enough to hold the weights of two epochs beside those that are kept."""
    torch.manual_seed(0)
    for _ in range(50):
        curve = (0.5 + (torch.randn(40) / 50).cumsum(0)).clamp(0, 1).tolist()
        found = decisions(curve, measure_only)
        for before, now in pairwise(found):
            assert now.peak_epochs[0] in (now.epoch, now.epoch - 1, before.peak_epochs[0])
            assert now.best_epoch in (now.epoch, now.peak_epochs[0])


# Held-out labels

FLAT = [0.8] * 9
HELD_OUT = {"validation": RISES_THEN_FALLS, "validation_samples": 2000}
BY_CHANCE = math.sqrt(0.8 * 0.2 / 2000)


@pytest.mark.parametrize("count", [200, 2000])
def test_the_line_of_held_out_labels_is_one_and_a_half_standard_errors(count):
    reading = read_validation(history_with(FLAT, **HELD_OUT | {"validation_samples": count}))
    assert reading.line == pytest.approx(1.5 * math.sqrt(0.8 * 0.2 / count))
    assert (reading.peak, reading.highest) == (4, pytest.approx(0.8))
    assert reading.fall == pytest.approx(0.1)


def test_held_out_labels_stop_where_the_agreement_does_not_fall():
    assert not judge(FLAT).stop
    *before, last = decisions(FLAT, **HELD_OUT)
    assert not any(decision.stop for decision in before[:7])
    # A fall by 0.033 is enough here, one epoch before it would be for the agreement.
    assert [decision.stop for decision in before] == [False] * 7 + [True]
    assert (last.best_epoch, last.peak_epochs[0]) == (4, 4)
    assert last.reason is StopReason.NOISY_DOMINATES
    assert last.message == (
        "noisy labels took over after epoch 4: the share of held-out labels predicted has been "
        f"below the stop line for 3 epochs (fell 0.100, line {1.5 * BY_CHANCE:.3f}); "
        "restore_best() gives the weights of epoch 4"
    )


def test_the_agreement_stops_where_held_out_labels_do_not_fall():
    found = decisions(RISES_THEN_FALLS, validation=FLAT, validation_samples=2000)
    assert [decision.epoch for decision in found if decision.stop] == [9]
    assert "the agreement with the neighbours has been" in found[-1].message


def test_a_few_held_out_labels_that_fall_by_chance_are_no_stop():
    few = HELD_OUT | {"validation_samples": 20}
    found = decisions(FLAT, **few)
    assert not any(decision.stop for decision in found)
    assert found[-1].best_epoch == 9


def test_one_bad_epoch_of_held_out_labels_is_no_stop():
    dips = [0.5, 0.7, 0.8, 0.8, 0.5, 0.8, 0.8, 0.8, 0.8]
    found = decisions(FLAT, validation=dips, validation_samples=2000)
    assert not any(decision.stop for decision in found)


@pytest.mark.parametrize("earlier", ["agreement", "validation"])
def test_of_two_witnesses_below_their_lines_the_one_with_the_earlier_peak_counts(earlier):
    early, late = [*RISES_THEN_FALLS, 0.7, 0.7], [0.4, 0.5, *RISES_THEN_FALLS]
    curves = (early, late) if earlier == "agreement" else (late, early)
    found = decisions(curves[0], validation=curves[1], validation_samples=2000)
    assert found[-1].stop
    assert found[-1].best_epoch == found[-1].peak_epochs[0] == 4
    names = {"agreement": "the agreement with", "validation": "the share of held-out labels"}
    assert names[earlier] in found[-1].message
    alone = (
        judge(late)
        if earlier == "validation"
        else judge(late, **HELD_OUT | {"validation": [0.8] * 11})
    )
    assert alone.best_epoch == 6


def test_of_two_witnesses_one_below_its_line_counts_whenever_the_other_had_its_peak():
    rises = [0.1 * epoch for epoch in range(1, 10)]
    assert judge(rises, **HELD_OUT).best_epoch == 4
    early_but_above = [0.8, 0.8, 0.8, *[0.79] * 6]
    assert judge(early_but_above, **HELD_OUT).best_epoch == 4
    assert judge(early_but_above).peak_epochs[0] < 4


def test_while_neither_is_below_its_line_the_agreement_says_which_weights_to_keep():
    rises = [0.1 * epoch for epoch in range(1, 8)]
    peaked = [0.8, 0.8, 0.8, *[0.795] * 4]
    last = judge(rises, validation=peaked, validation_samples=2000)
    assert (last.best_epoch, last.peak_epochs[0]) == (7, 6)
    assert last.message.endswith("the agreement with the neighbours still rises")


def test_held_out_labels_need_no_judgement_of_labels():
    assert judge(FLAT, noise_rate=None, **HELD_OUT).stop


@pytest.mark.parametrize("priority_falls", [False, True])
def test_held_out_labels_decide_where_neighbours_cannot_vote(priority_falls):
    priority = [0.5, 1, *[0.2] * 7] if priority_falls else [0.1 * epoch for epoch in range(9)]
    others = {
        "priority": priority,
        "initial_loss": 2.0,
        "prediction_changes": [0.5, 0.2, 0.2, *[0.9] * 6],
    }
    without = judge([None] * 9, **others)
    assert without.stop is priority_falls
    last = judge([None] * 9, **others, **HELD_OUT)
    assert last.stop
    assert last.best_epoch == 4
    assert "held-out labels" in last.message
    rising = HELD_OUT | {"validation": [0.1 * epoch for epoch in range(9)]}
    assert not judge([None] * 9, **others, **rising).stop


@pytest.mark.parametrize("unknown", [{"validation": None}, {"validation_samples": None}])
def test_without_held_out_labels_the_agreement_alone_decides(unknown):
    held_out = HELD_OUT | unknown
    assert read_validation(history_with(FLAT, **held_out)) is None
    assert decisions(FLAT, **held_out) == decisions(FLAT)
    assert decisions(RISES_THEN_FALLS, **held_out) == decisions(RISES_THEN_FALLS)


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
    assert found[-1].best_epoch == found[-1].peak_epochs[0] == 4
    assert found[-1].message == "measuring only: epoch 4 of 12 is the best so far"


def test_a_rule_changes_nothing_in_the_history():
    history = history_with(RISES_THEN_FALLS, contradicted=0.2)
    before = copy.deepcopy(history)
    assert StopRule()(history) == StopRule()(history)
    assert history == before
