"""The stop rules that the monitor is compared with, on short sequences made by hand."""

from dataclasses import replace

import pytest
import torch

from benchmarks.stopping.runs.rivals import RIVALS, VALIDATION, Choice, Watched, signals_of
from benchmarks.stopping.runs.settings import Setting

DISPARITY = "gradient disparity, 5 increases"
DISPARITY_IN_A_ROW = "gradient disparity, 5 in a row"


def choose(rule, views_per_epoch=1, epochs=None, **signals):
    """What a rival says of a run with this signal."""
    epochs = epochs or len(next(iter(signals.values())))
    return RIVALS[rule](Watched(epochs, views_per_epoch, signals))


def validate(accuracy, rule="noisy validation", views_per_epoch=1):
    run = Watched(len(accuracy) // views_per_epoch, views_per_epoch, {}, {"raw": accuracy})
    return VALIDATION[rule](run, "raw")


def test_label_wave_takes_the_first_minimum_and_sees_it_an_epoch_later():
    changes = [90.0, 50.0, 60.0, 20.0, 70.0]  # from the second epoch on
    assert choose("Label Wave, k = 1", epochs=6, changes=changes) == Choice(3, 4, True)


def test_label_wave_over_three_epochs_passes_over_a_short_dip():
    changes = [90.0, 50.0, 60.0, 20.0, 70.0, 80.0]  # averages 90, 70, 67, 43, 50, 57
    assert choose("Label Wave, k = 3", epochs=7, changes=changes) == Choice(5, 6, True)


def test_label_wave_goes_to_the_end_while_ever_fewer_predictions_change():
    changes = [9.0, 5.0, 5.0, 3.0]
    assert choose("Label Wave, k = 1", epochs=5, changes=changes) == Choice(5, 5, False)


def test_gradient_disparity_stops_at_its_fifth_increase():
    values = [1.0, 2.0, 1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert choose(DISPARITY, gradient_disparity=values) == Choice(8, 8, True)
    assert choose(DISPARITY_IN_A_ROW, gradient_disparity=values) == Choice(11, 11, False)


def test_a_fall_starts_the_count_of_increases_in_a_row_anew():
    values = [3.0, 4.0, 5.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert choose(DISPARITY_IN_A_ROW, gradient_disparity=values).spent == 9


def test_the_evidence_criterion_stops_as_soon_as_it_is_positive():
    assert choose("evidence-based", evidence=[-1.0, 0.0, 0.1, -1.0]) == Choice(3, 3, True)
    assert not choose("evidence-based", evidence=[-1.0, -0.1]).stopped


def test_gwa_is_sought_after_the_first_tenth_of_a_whole_run():
    values = [9.0, 9.0, 1.0, 2.0, 5.0] + [3.0] * 15
    assert choose("GWA", gwa=values) == Choice(5, 20, False)


def test_coherence_waits_seven_epochs_for_a_lower_minimum():
    falls_again = [5.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5] + [2.0] * 7
    assert choose("m-coherence", coherence=falls_again) == Choice(9, 16, False)
    rises = [5.0, 1.0] + [2.0] * 9
    assert choose("m-coherence", coherence=rises) == Choice(2, 9, True)


def test_the_turning_point_is_where_losses_fall_farthest_apart():
    assert choose("SELC's turning point", separation=[0.2, 0.6, 0.5]) == Choice(2, 3, False)


def test_validation_by_loss_takes_the_lowest_of_the_whole_run():
    run = Watched(3, 1, {}, {"raw": [1.0, 2.0, 3.0], "raw_loss": [0.5, 0.4, 0.6]})
    assert VALIDATION["noisy validation by loss"](run, "raw") == Choice(2, 3, False)


def test_true_groups_stop_where_noisy_gradients_draw_level():
    ratio = [2.0, 1.2, 1.0, 1.5]
    assert choose("true ratio at most 1", ratio=ratio) == Choice(3, 3, True)
    share = [0.3, 0.49, 0.45, 0.6, 0.2]
    assert choose("true share at least 1/2", share=share) == Choice(4, 4, True)


@pytest.mark.parametrize("rule", ["true ratio at most 1", "true share at least 1/2"])
def test_true_groups_never_stop_a_run_without_noise(rule):
    assert choose(rule, coherence=[1.0] * 4) == Choice(4, 4, False)


def test_validation_hands_back_the_first_of_its_best_and_waits_seven_epochs():
    accuracy = [50.0, 60.0, 60.0, 55.0, 55.0, 55.0, 55.0, 55.0, 55.0, 70.0]
    assert validate(accuracy) == Choice(2, 9, True)
    assert validate(accuracy, "noisy validation, whole run") == Choice(10, 10, False)


def test_several_looks_an_epoch_make_patience_no_shorter():
    accuracy = [50.0, 60.0] + [55.0] * 18  # the best is at the end of the first epoch
    assert validate(accuracy, views_per_epoch=2) == Choice(2, 8, True)


def test_an_epoch_is_handed_back_as_of_its_last_look():
    chosen = choose("evidence-based", views_per_epoch=5, evidence=[-1.0, 1.0, 1.0])
    assert chosen == Choice(10, 2, True)


def recording():
    """Two epochs of four samples in another order, two steps each; the last label is wrong."""
    orders, predicted = [[0, 1, 2, 3], [3, 2, 1, 0]], [[0, 1, 2, 3], [4, 2, 1, 0]]
    visits = [
        {
            "index": torch.tensor(order, dtype=torch.int32),
            "predicted": torch.tensor(guess, dtype=torch.int8),
            "alignment": torch.tensor([0.1, 0.2, 0.4, torch.inf], dtype=torch.float16),
            "loss": torch.tensor([0.1, 0.2, 0.1, 4.0], dtype=torch.float16),
        }
        for order, guess in zip(orders, predicted, strict=True)
    ]
    both, only_clean = [4.0, -1.0, 1.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0, 0.0]
    groups = torch.tensor([both, only_clean, both, both])
    end = {"gradient_disparity": 1.0, "evidence": 0.5, "coherence": 2.0}
    return {"visits": visits, "groups": groups, "epochs": [end, end]}


def test_prediction_changes_are_told_sample_by_sample():
    setting = Setting(rate=0.25, epochs=2)
    assert signals_of(setting, recording())["changes"] == [1.0]  # only sample 3, from 3 to 4


def test_steps_without_noisy_samples_leave_ratio_and_share_alone():
    signals = signals_of(Setting(rate=0.25, epochs=2), recording())
    assert signals["ratio"] == pytest.approx([2, 2])
    assert signals["share"] == pytest.approx([0, 0])


def test_where_all_features_are_zero_the_alignment_is_zero():
    without, with_zero = recording(), recording()
    for epoch in without["visits"]:
        epoch["alignment"] = torch.tensor([0.1, 0.2, 0.4, 0.0], dtype=torch.float16)
    setting = Setting(rate=0.25, epochs=2)
    assert signals_of(setting, with_zero)["gwa"] == signals_of(setting, without)["gwa"]


def test_without_noise_there_are_no_true_groups():
    clean = replace(Setting(epochs=2), rate=0.0)
    assert not {"ratio", "share"} & signals_of(clean, recording()).keys()
