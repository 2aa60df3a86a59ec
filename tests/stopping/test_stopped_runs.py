"""A training run with wrong labels: when it is stopped, and what is known of it then."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import StopReason, StopRule
from tests.support.cases import make_loader
from tests.support.separable import accuracy, fit, separable


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


def comparable(record):
    """What two runs of the same training share: all but the time, and what is not known."""
    return {k: v for k, v in record.items() if k not in ("time", "reason") and v is not None}


def test_known_noise_gives_the_same_rule_the_true_membership():
    by_mask, _, data = fit(60, noisy=separable().noisy)
    assert by_mask.should_stop
    assert by_mask.noise_rate == pytest.approx(data.noisy.float().mean().item())
    assert all(s.score == float(data.noisy[s.index]) for s in by_mask.suspects(min_score=0))
    by_function, _, _ = fit(60, noisy=lambda inputs, targets, index: data.noisy[index])
    by_true_labels, _, _ = fit(60, true_labels=data.true)
    for other in (by_function, by_true_labels):  # sums in another order: one micro-batch at a time
        assert len(other.history()) == len(by_mask.history())
        for record, its in zip(by_mask.history(), other.history(), strict=True):
            assert comparable(record) == pytest.approx(comparable(its), rel=1e-5)
    last = by_mask.history()[-1]
    loss = last["noise_rate"] * last["noisy_loss"] + (1 - last["noise_rate"]) * last["clean_loss"]
    assert loss == pytest.approx(last["train_loss"], rel=1e-3)
    for monitor in (by_mask, by_function, by_true_labels):
        monitor.close()


def held_out(samples=1000):
    """Samples of the same kind that are not trained on, with as many wrong labels."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 7, generator=generator)
    true = torch.arange(samples) % 5
    inputs[torch.arange(samples), true] += 4
    wrong = torch.rand(samples, generator=generator) < 0.4
    other = (true + torch.randint(1, 5, (samples,), generator=generator)) % 5
    return DataLoader(TensorDataset(inputs, torch.where(wrong, other, true)), 200)


def without_votes(history):
    """The rule as it is where neighbours can't vote."""
    return StopRule()([record | {"agreement": None, "contradicted": None} for record in history])


def test_where_neighbours_cannot_vote_held_out_labels_stop_it_with_better_weights():
    """However wrong they are themselves."""
    unstopped, trained_on, data = fit(60, stop=None)
    at_the_end = accuracy(trained_on, data)
    unstopped.close()
    monitor, model, _ = fit(60, stop=without_votes, validation=held_out())
    assert monitor.should_stop
    assert "the share of held-out labels predicted has been below" in monitor.decision.message
    assert monitor.restore_best() == monitor.best_epoch == monitor.decision.peak_epochs[0]
    assert accuracy(model, data) > at_the_end + 0.1
    monitor.close()


def test_the_advice_follows_from_the_history_with_held_out_labels_too():
    monitor, *_ = fit(60, validation=held_out())
    history, decision = monitor.history(), monitor.decision
    assert {record["validation_samples"] for record in history} == {1000}
    replayed = StopRule()(history)
    assert (replayed.stop, replayed.peak_epochs[0]) == (True, decision.peak_epochs[0])
    assert decision.message.startswith(replayed.message)
    monitor.close()


def test_measuring_only_never_stops():
    monitor, *_ = fit(40, stop=None)
    assert not monitor.should_stop
    assert monitor.decision.reason is StopReason.NO_RULE
    assert len(monitor.history()) == 40
    assert monitor.suspects(min_score=0)
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
