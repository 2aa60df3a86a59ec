"""The clean priority, who is taken as noisy, and the decision that follows."""

import math

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import GradientMonitor, StopReason, StopRule
from prioritymonitor.decision import decide
from prioritymonitor.membership import consistent_noise_rate, noisy_weight
from prioritymonitor.statistics import clean_priority

from .cases import make_data, make_loader, mlp

RISES_THEN_FALLS = [0.0, 0.3, 0.5, 0.4, 0.35, 0.3, 0.2]


def test_priority_rises_while_clean_losses_fall_and_falls_while_noisy_ones_do():
    losses = torch.tensor([[2.0, 2.0], [1.0, 2.5], [0.5, 2.0], [0.5, 1.0]])  # clean, noisy
    priority = clean_priority(losses, torch.tensor([0.0, 1.0]))
    assert torch.allclose(priority, torch.tensor([0.0, 0.75, 0.75, 0.25], dtype=torch.float64))


def test_priority_weighs_samples_not_groups():
    """The sum over samples is the gradients' own weight: nine clean samples outweigh one noisy."""
    losses = torch.stack([torch.full((10,), 1.0), torch.full((10,), 0.9)])
    noisy = torch.tensor([1.0] + [0.0] * 9)
    assert clean_priority(losses, noisy)[1].item() == pytest.approx(0.08)


def test_samples_never_visited_do_not_count():
    nan = float("nan")
    losses = torch.tensor([[2.0, nan], [1.0, nan]])
    assert clean_priority(losses, torch.tensor([0.0, 0.5])).tolist() == [0.0, 1.0]


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
def test_it_stops_once_patience_has_passed_since_the_peak(epochs, stops):
    decision = decide(RISES_THEN_FALLS[:epochs], StopRule(patience=4), average_lag=2)
    assert decision.stop is stops
    assert decision.epoch == epochs
    assert decision.best_epoch == 5
    assert decision.reason is (StopReason.NOISY_DOMINATES if stops else StopReason.CLEAN_DOMINATES)


def test_the_message_names_the_epoch_at_which_noisy_labels_took_over():
    message = decide(RISES_THEN_FALLS, StopRule(patience=3), average_lag=2).message
    assert "noisy labels took over at epoch 3" in message
    assert "epoch 5" in message


def test_no_stop_before_min_epochs_nor_without_a_rule():
    assert not decide(RISES_THEN_FALLS, StopRule(patience=1, min_epochs=8), 0).stop
    measured = decide(RISES_THEN_FALLS, None, 0)
    assert not measured.stop
    assert measured.reason is StopReason.NO_RULE


def test_the_best_epoch_is_never_in_the_future():
    assert decide([0.0, 1.0], StopRule(), average_lag=2).best_epoch == 2


def separable():
    """Classes that a network can tell apart, so that only wrong labels are hard."""
    data = make_data(torch.float32, samples=400)
    data.inputs[torch.arange(400), data.true] += 2
    return data


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
    monitor, model, data = fit(60)
    assert monitor.should_stop
    assert monitor.decision.reason is StopReason.NOISY_DOMINATES
    at_the_stop = accuracy(model, data)
    assert monitor.restore_best() == monitor.best_epoch
    assert accuracy(model, data) > at_the_stop
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
    by_function, _, _ = fit(60, noisy=lambda inputs, targets, index: data.noisy[index])
    by_true_labels, _, _ = fit(60, true_labels=data.true)
    assert by_mask.history() == by_function.history() == by_true_labels.history()
    last = by_mask.history()[-1]
    loss = last["noise_rate"] * last["noisy_loss"] + (1 - last["noise_rate"]) * last["clean_loss"]
    assert loss == pytest.approx(last["train_loss"], rel=1e-3)
    for monitor in (by_mask, by_function, by_true_labels):
        monitor.close()


def test_the_priority_of_past_epochs_is_judged_by_todays_membership():
    monitor, _, data = fit(8)
    curve = [record["priority"] for record in monitor.history()]
    weight = {s.index: s.score for s in monitor.suspects()}
    path = monitor._watch.path
    todays = torch.tensor([weight[i] for i in range(len(data.given))])
    expected = clean_priority(path.history.losses, todays).tolist()
    assert curve == pytest.approx(expected, abs=1e-6)
    assert curve != [record["priority"] for record in monitor._watch.records]
    monitor.close()


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
