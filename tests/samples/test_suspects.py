"""How likely a label is wrong, and the suspects and groups that follow from it."""

import math

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor.samples.noisiness import chance_at_first_visit, wrong_label_chance
from prioritymonitor.stopping.kept_weights import AVERAGE_LAG
from tests.stopping.test_priority import watched
from tests.support.observed import observing


def test_a_label_is_a_suspect_from_a_mean_error_of_nine_tenths_on():
    error = torch.tensor([0.0, 0.8, 0.9, 1.0, 2**0.5, torch.nan])
    chance = chance_at_first_visit(error)
    assert chance.tolist() == pytest.approx([0, 1 / (1 + math.e), 0.5, 0.731, 1, 0.5], abs=0.01)
    pairs = torch.arange(6), torch.arange(6) + 1  # with one sample each, none tells anything
    found = wrong_label_chance(error, *pairs)
    torch.testing.assert_close(found[:5], chance[:5], atol=0.01, rtol=0)
    assert found[5].isnan()


def test_where_two_classes_were_confused_it_takes_less_to_be_wrong():
    """Twenty labels are as doubtful as twenty others, but many like them are clearly wrong."""
    given, rival = torch.full((2000,), 3), torch.full((2000,), 5)
    rival[1000:] = 7
    error = torch.full((2000,), 0.1)
    error[:500] = 1.2
    error[500:520] = error[1500:1520] = 0.87
    chance = wrong_label_chance(error, given, rival)
    assert (chance[500:520] > 0.5).all()
    assert (chance[1500:1520] < 0.3).all()
    assert chance[600:1000].max() < 0.01 < 0.9 < chance[:500].min()


def test_samples_with_several_labels_have_no_pair():
    torch.manual_seed(0)
    error, none = torch.rand(300) * 2**0.5, torch.full((300,), -1)
    chance = wrong_label_chance(error, none, none)
    torch.testing.assert_close(chance, chance_at_first_visit(error))


def test_the_chances_are_those_of_the_definition():
    torch.manual_seed(0)
    error = torch.rand(600).double() * 2**0.5
    given, rival = torch.randint(0, 3, (600,)), torch.randint(0, 4, (600,))
    error[given == rival] = torch.nan
    error[(given == 0) & (rival == 1)] += 0.2
    pairs = {(a, b): (given == a) & (rival == b) for a in range(3) for b in range(4) if a != b}
    seen = ~error.isnan()
    log_odds = (error - 0.9) / 0.1
    chance = log_odds.sigmoid()
    for _ in range(100):
        rate, before = chance[seen].mean(), chance.clone()
        for members in pairs.values():
            own = (before[members].sum() + 100 * rate) / (members.sum() + 100)
            chance[members] = (log_odds[members] + (own.logit() - rate.logit()) / 2).sigmoid()
    found = wrong_label_chance(error, given, rival)
    torch.testing.assert_close(found, chance, atol=1e-4, rtol=0, equal_nan=True)


def test_no_sample_visited_leaves_every_label_open():
    none = torch.full((3,), -1)
    assert wrong_label_chance(torch.full((3,), torch.nan), none, none).isnan().all()


def test_suspects_are_judged_by_all_visits_up_to_the_kept_weights():
    data, model, optimizer, loader, monitor = watched()
    errors, rival, expected = torch.zeros(400), torch.zeros(400, dtype=torch.int64), None
    for epoch in range(1, 41):
        for x, y, index in loader:
            optimizer.zero_grad()
            logits = model(x)
            F.cross_entropy(logits, y).backward()
            onehot = F.one_hot(y, 5)
            errors[index] += (logits.detach().softmax(1) - onehot).norm(dim=1)
            rival[index] = logits.detach().masked_fill(onehot.bool(), -torch.inf).argmax(1)
            optimizer.step()
        if epoch - AVERAGE_LAG <= monitor.best_epoch <= epoch:
            expected = wrong_label_chance(errors / epoch, data.given, rival)
    assert monitor.best_epoch < 40
    score = torch.empty(400)
    for suspect in monitor.suspects(min_score=0):
        score[suspect.index] = suspect.score
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=0)
    assert monitor.noise_rate == (expected > 0.5).double().mean().item()
    monitor.close()


def test_the_groups_of_a_step_are_those_of_the_suspects():
    """At a sample's first visit they come from the error of that visit."""
    _, model, optimizer, loader, monitor = watched(every=1)
    for epoch in range(2):
        score = {suspect.index: suspect.score for suspect in monitor.suspects(min_score=0)}
        with observing() as seen:
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        for step, weight in zip(seen.steps, seen.weights, strict=True):
            (visits,) = (one.visits for one in step.observations)
            past = torch.tensor([score.get(i, torch.nan) for i in visits.index.tolist()])
            expected = past if epoch else chance_at_first_visit(visits.error)
            torch.testing.assert_close(weight, expected)
    assert len(score) == 400
    monitor.close()
