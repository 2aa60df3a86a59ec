"""The clean priority, who is taken as noisy, and the decision that follows."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import GradientMonitor, StopReason, StopRule
from prioritymonitor.gradients.statistics import priority_gain
from prioritymonitor.samples.noisiness import (
    MOST_NOISE,
    consistent_noise_rate,
    noisy_part,
    noisy_weight,
)
from prioritymonitor.stopping.rule import decide
from tests.support.cases import make_data, make_loader, mlp

RISES_THEN_FALLS = [0.0, 0.3, 0.5, 0.4, 0.35, 0.3, 0.2]


def judge(priority, rule=StopRule(), lag=1, first=1):  # noqa: B008
    """The decision in a training that began with a loss of one nat."""
    return decide(priority, rule, lag, initial_loss=1.0, first=first)


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


def test_hard_samples_count_against_the_priority_though_they_are_no_suspects():
    """Where few labels are wrong, what is learnt of a label that the network disagrees with is
    mostly learnt by heart, wrong or not."""
    margin = torch.cat((torch.full((930,), 0.8), torch.linspace(-0.4, -0.05, 70)))
    assert (noisy_part(margin)[930:] > 0.6).all()
    assert (noisy_weight(margin, consistent_noise_rate(margin))[930:] > 0.5).float().mean() < 0.5


def test_where_most_labels_are_wrong_the_noise_rate_decides_the_side():
    margin = torch.cat((torch.full((700,), -0.6), torch.full((300,), 0.6)))
    assert torch.equal(noisy_part(margin), noisy_weight(margin, consistent_noise_rate(margin)))


def test_the_noise_rate_is_found_however_slowly_it_is_approached():
    assert consistent_noise_rate(torch.full((50,), -2e-3)) > 0.99
    assert consistent_noise_rate(torch.full((50,), 2e-3)) < 0.01


def test_before_anything_is_learnt_both_sides_are_even():
    margin = torch.full((100,), -0.5)
    assert consistent_noise_rate(margin) > MOST_NOISE
    assert torch.equal(noisy_part(margin), noisy_weight(margin, 0.5))


def test_a_negative_mean_margin_makes_a_label_noisy():
    weight = noisy_weight(torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0, float("nan")]), noise_rate=0.5)
    assert weight[0] > 0.99
    assert weight[1].item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert weight[2] == weight[5] == 0.5
    assert weight[4] < 0.01


def test_where_few_labels_are_wrong_it_takes_more_disagreement_to_be_one_of_them():
    margin = torch.tensor([-0.1])
    assert noisy_weight(margin, 0.4) > 0.5 > noisy_weight(margin, 0.1)


def test_the_noise_rate_is_the_mean_of_the_weights_it_leads_to():
    torch.manual_seed(0)
    margin = torch.cat((torch.full((400,), -0.6), torch.full((600,), 0.6))) + torch.randn(1000) / 5
    rate = consistent_noise_rate(torch.cat((margin.clamp(-1, 1), torch.tensor([torch.nan]))))
    assert rate == pytest.approx(0.4, abs=0.02)
    assert noisy_weight(margin.clamp(-1, 1), rate).mean().item() == pytest.approx(rate, abs=1e-3)


def test_a_few_hard_samples_are_no_noise():
    """A tail of slightly negative margins is what clean data looks like while it is learnt."""
    margin = torch.cat((torch.full((930,), 0.8), torch.linspace(-0.4, 0.2, 70)))
    assert (noisy_weight(margin, consistent_noise_rate(margin)) > 0.5).float().mean() < 0.03


def test_no_sample_visited_leaves_the_noise_rate_open():
    assert consistent_noise_rate(torch.full((3,), torch.nan)) == 0.5


@pytest.mark.parametrize(("epochs", "stops"), [(6, False), (7, True)])
def test_it_stops_once_the_priority_has_been_lower_for_the_patience(epochs, stops):
    decision = judge(RISES_THEN_FALLS[:epochs], StopRule(patience=4), lag=2)
    assert decision.stop is stops
    assert decision.epoch == epochs
    assert decision.best_epoch == 5
    assert decision.reason is (StopReason.NOISY_DOMINATES if stops else StopReason.CLEAN_DOMINATES)


def test_it_goes_on_while_the_priority_has_lost_less_than_the_tolerance():
    slow = [0.5 - 0.002 * epoch for epoch in range(12)]
    stops = [judge(slow[:epochs], StopRule(tolerance=0.01)).stop for epochs in range(1, 13)]
    assert stops.index(True) == 7  # epochs 6, 7 and 8 have lost five times 0.002 and more
    assert not judge(slow, StopRule(tolerance=0.1)).stop
    flat = [0.5] * 12
    assert not judge(flat, StopRule(tolerance=0)).stop


def test_a_dip_is_no_stop():
    """At a high learning rate the losses of single epochs swing."""
    swings = [0.5, 0.4, 0.4, 0.499, 0.4, 0.4, 0.498]
    assert not any(judge(swings[:epochs]).stop for epochs in range(1, 8))


@pytest.mark.parametrize("initial_loss", [float("nan"), 0.0, -0.5])
def test_without_a_positive_initial_loss_any_fall_that_lasts_is_enough(initial_loss):
    assert decide(RISES_THEN_FALLS, StopRule(), 1, initial_loss).stop
    assert not decide(RISES_THEN_FALLS[:4], StopRule(), 1, initial_loss).stop


def test_the_tolerance_is_a_share_of_the_initial_loss():
    assert judge(RISES_THEN_FALLS).stop
    assert not decide(RISES_THEN_FALLS, StopRule(), 1, initial_loss=100.0).stop


def test_the_best_epoch_is_the_last_that_is_as_good_as_the_peak():
    plateau = [0.0, 0.5, 0.498, 0.499, 0.3, 0.2, 0.1]
    assert judge(plateau, lag=0).best_epoch == 4
    assert judge(plateau, lag=2).best_epoch == 6


def test_the_best_epoch_is_now_or_what_it_was_before():
    """So it is enough to keep the weights of one epoch."""
    torch.manual_seed(0)
    for _ in range(50):
        priority = (torch.randn(30) / 100).cumsum(0).tolist()
        best = [judge(priority[:now], None).best_epoch for now in range(1, 31)]
        assert all(b in (now, before) for now, (before, b) in enumerate(pairwise(best), 2))


def test_epochs_before_anything_was_learnt_are_no_peak():
    falls_then_rises = [0.9, 0.1, 0.2, 0.3, 0.4]
    assert judge(falls_then_rises, first=2).best_epoch == 5
    unlearnt = judge(falls_then_rises, first=None)
    assert unlearnt.reason is StopReason.TOO_EARLY
    assert unlearnt.best_epoch == 5


def test_the_message_names_the_epoch_at_which_noisy_labels_took_over():
    message = judge(RISES_THEN_FALLS, lag=2).message
    assert "noisy labels took over at epoch 3" in message
    assert "epoch 5" in message


def test_no_stop_before_min_epochs_nor_without_a_rule():
    assert not judge(RISES_THEN_FALLS, StopRule(patience=1, min_epochs=8)).stop
    measured = judge(RISES_THEN_FALLS, None)
    assert not measured.stop
    assert measured.reason is StopReason.NO_RULE


def test_the_best_epoch_is_never_in_the_future():
    assert judge([0.0, 1.0], lag=2).best_epoch == 2


def separable():
    """Classes that a network can tell apart, so that only wrong labels are hard."""
    data = make_data(torch.float32, samples=400)
    data.inputs[torch.arange(400), data.true] += 2
    return data


def watched(**options):
    """A small network on them, and a monitor that never stops it."""
    data = separable()
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, stop=None, **options)
    return data, model, optimizer, loader, monitor


def fit(epochs, *, width=128, stop=StopRule(), noise=True, **options):  # noqa: B008
    """A network that is large enough to learn 40 % wrong labels by heart."""
    data = separable()
    given = data.given if noise else data.true
    data.given = given
    torch.manual_seed(0)
    model = mlp()
    model[0] = torch.nn.Linear(7, width)
    model[2] = torch.nn.Linear(width, 5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, stop=stop, **options)
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if monitor.should_stop:
            break
    return monitor, model, data


def accuracy(model, data):
    return (model(data.inputs).argmax(1) == data.true).float().mean().item()


def test_it_stops_when_wrong_labels_are_learnt_and_gives_better_weights_back():
    unstopped, trained_on, data = fit(60, stop=None)
    at_the_end = accuracy(trained_on, data)
    unstopped.close()
    monitor, model, _ = fit(60)
    assert monitor.should_stop
    assert monitor.decision.reason is StopReason.NOISY_DOMINATES
    assert monitor.restore_best() == monitor.best_epoch
    assert accuracy(model, data) > at_the_end + 0.1
    monitor.close()


def test_it_names_the_wrong_labels_and_their_rate():
    monitor, _, data = fit(60)
    found = [suspect for suspect in monitor.suspects() if suspect.score > 0.5]
    hits = [bool(data.noisy[suspect.index]) for suspect in found]
    assert sum(hits) / len(hits) > 0.85
    assert sum(hits) / int(data.noisy.sum()) > 0.85
    assert abs(monitor.noise_rate - data.noisy.float().mean().item()) < 0.1
    best = monitor.suspects(10)
    assert [suspect.score for suspect in best] == sorted((s.score for s in best), reverse=True)
    assert all(s.given_label == data.given[s.index] for s in best)
    assert sum(s.predicted_label == data.true[s.index] for s in best) >= 9
    monitor.close()


def test_known_noise_gives_the_same_rule_the_true_membership():
    by_mask, _, data = fit(60, noisy=separable().noisy)
    assert by_mask.should_stop
    assert by_mask.noise_rate == pytest.approx(data.noisy.float().mean().item())
    assert all(s.score == float(data.noisy[s.index]) for s in by_mask.suspects())
    by_function, _, _ = fit(60, noisy=lambda inputs, targets, index: data.noisy[index])
    by_true_labels, _, _ = fit(60, true_labels=data.true)
    for other in (by_function, by_true_labels):  # sums in another order: one micro-batch at a time
        assert len(other.history()) == len(by_mask.history())
        for record, its in zip(by_mask.history(), other.history(), strict=True):
            assert record.pop("reason") == its.pop("reason")
            assert record == pytest.approx(its, rel=1e-5)
    last = by_mask.history()[-1]
    loss = last["noise_rate"] * last["noisy_loss"] + (1 - last["noise_rate"]) * last["clean_loss"]
    assert loss == pytest.approx(last["train_loss"], rel=1e-3)
    for monitor in (by_mask, by_function, by_true_labels):
        monitor.close()


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


def test_measuring_only_never_stops():
    monitor, *_ = fit(40, stop=None)
    assert not monitor.should_stop
    assert monitor.decision.reason is StopReason.NO_RULE
    assert len(monitor.history()) == 40
    assert monitor.suspects()
    monitor.close()


def test_a_stop_stays_and_so_does_what_was_known_then():
    monitor, model, data = fit(60)
    stopped = monitor.decision
    suspects = monitor.suspects()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for x, y, _ in make_loader(data, batch_size=20):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert monitor.decision == stopped
    assert monitor.suspects() == suspects
    monitor.close()


def test_statistics_with_unknown_noise_use_the_membership_of_past_epochs():
    monitor, *_ = fit(4, every=1)
    latest = monitor.latest
    assert 0 < latest["dominance_ratio"] < math.inf
    assert latest["contribution_clean"] != latest["contribution_noisy"]
    monitor.close()
