"""The suspects of a training run, and the groups that follow from them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from prioritymonitor.samples.noisiness import (
    chance_at_first_visit,
    is_plausible,
    wrong_label_chance,
)
from tests.support.observed import observing
from tests.support.separable import watched


def test_suspects_are_judged_by_all_visits_up_to_the_best_epoch():
    data, model, optimizer, loader, monitor = watched()
    errors, rival, expected = torch.zeros(400), torch.zeros(400, dtype=torch.int64), None
    chances = {}
    for epoch in range(1, 31):
        for x, y, index in loader:
            optimizer.zero_grad()
            logits = model(x)
            F.cross_entropy(logits, y).backward()
            onehot = F.one_hot(y, 5)
            errors[index] += (logits.detach().softmax(1) - onehot).norm(dim=1)
            rival[index] = logits.detach().masked_fill(onehot.bool(), -torch.inf).argmax(1)
            optimizer.step()
        peak = monitor.decision.peak_epochs[0]
        vote = torch.from_numpy(monitor.samples()["vote"])
        chance = wrong_label_chance(errors / epoch, data.given, rival, vote, 5)
        backed = torch.where(vote >= 0, (vote == data.given).float(), torch.nan)
        if is_plausible(chance, errors / epoch, backed, 5):
            chances[epoch] = chance
        if peak >= epoch - 1:
            expected = chances.get(peak, expected)
    assert peak < 20
    score = torch.empty(400)
    for suspect in monitor.suspects(min_score=0):
        score[suspect.index] = suspect.score
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=0)
    assert monitor.noise_rate == (expected > 0.5).double().mean().item()
    monitor.close()


def test_the_groups_of_a_step_are_those_of_the_suspects():
    """Before there are any, they come from the error of each visit."""
    _, model, optimizer, loader, monitor = watched(every=1)
    for _ in range(4):
        score = {suspect.index: suspect.score for suspect in monitor.suspects(min_score=0)}
        with observing() as seen:
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        for step, weight in zip(seen.steps, seen.weights, strict=True):
            (visits,) = (one.visits for one in step.observations)
            past = torch.tensor([score.get(i, torch.nan) for i in visits.index.tolist()])
            expected = past if score else chance_at_first_visit(visits.error, 5)
            torch.testing.assert_close(weight, expected)
    assert len(score) == 400
    monitor.close()


# Before much is learnt


def clusters(classes, samples=600, rate=0.2):
    """Classes that lie apart, a few given labels that are wrong, and the true ones."""
    generator = torch.Generator().manual_seed(2)
    true = torch.arange(samples) % classes
    inputs = torch.randn(samples, 12, generator=generator) + 4 * F.one_hot(true, 12)
    wrong = torch.rand(samples, generator=generator) < rate
    return inputs, torch.where(wrong, (true + 1) % classes, true), true


class Run:
    """A small network on them, trained epoch by epoch."""

    def __init__(self, inputs, targets, outputs, **options):
        self.model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, outputs))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        self.loader = DataLoader(TensorDataset(inputs, targets), 20, shuffle=True)
        self.monitor = GradientMonitor(
            self.model, self.optimizer, self.loader, stop=None, **options
        )
        self._criterion = options.get("criterion", F.cross_entropy)

    def epoch(self, rate, forward=None):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for x, y in self.loader:
            self.optimizer.zero_grad()
            self._criterion((forward or self.model)(x), y).backward()
            self.optimizer.step()


def assert_nothing_is_named(monitor):
    assert monitor.suspects() == monitor.suspects(min_score=0) == []
    assert math.isnan(monitor.noise_rate)
    assert monitor.history()[-1]["noise_rate"] is None
    samples = monitor.samples()
    assert torch.from_numpy(samples["score"]).isnan().all()
    assert (samples["predicted_label"] == -1).all()


def assert_found(monitor, is_wrong, least=0.9):
    """Most of the suspects are wrong labels, and most of those are suspects."""
    found = torch.zeros(len(is_wrong), dtype=torch.bool)
    found[[suspect.index for suspect in monitor.suspects()]] = True
    both = (found & is_wrong).sum()
    assert both / found.sum() > least, f"{both} of {found.sum()} that are named are wrong"
    assert both / is_wrong.sum() > least, f"{both} of {is_wrong.sum()} that are wrong are named"


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_an_untrained_network_names_nothing(classes):
    inputs, given, _ = clusters(classes)
    run = Run(inputs, given, classes)
    with run.monitor as monitor:
        for _ in range(3):
            run.epoch(rate=0.0)
            assert_nothing_is_named(monitor)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_an_untrained_network_whose_samples_have_no_neighbours_names_nothing(classes):
    """Nobody votes where a part that gets what others have learnt is all that is called."""
    inputs, given, _ = clusters(classes)
    run = Run(inputs, given, classes, criterion=nn.CrossEntropyLoss())
    first, *_, head = run.model
    with run.monitor as monitor:
        for _ in range(2):
            run.epoch(
                rate=0.0, forward=lambda x: head(F.linear(x, first.weight, first.bias).relu())
            )
            assert (monitor.samples()["vote"] == -1).all()
            assert_nothing_is_named(monitor)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_slow_network_names_nothing_until_it_has_learnt_and_the_wrong_labels_then(classes):
    inputs, given, true = clusters(classes)
    run = Run(inputs, given, classes)
    with run.monitor as monitor:
        for _ in range(5):
            run.epoch(rate=1e-6)
            assert_nothing_is_named(monitor)
        for _ in range(12):
            run.epoch(rate=0.01)
        assert_found(monitor, given != true, least=0.85)
        assert abs(monitor.noise_rate - 0.2) < 0.04


@pytest.mark.parametrize("known", ["noisy", "true_labels"])
def test_with_known_noise_there_is_a_verdict_at_once(known):
    inputs, given, true = clusters(3)
    run = Run(inputs, given, 3, **{known: given != true if known == "noisy" else true})
    with run.monitor as monitor:
        run.epoch(rate=0.0)
        assert_found(monitor, given != true, least=0.999)
        (record,) = monitor.history()
        assert record["noise_rate"] == pytest.approx((given != true).double().mean().item())


# Other targets


def test_wrong_labels_of_two_classes_are_found_by_a_single_logit_too():
    inputs, given, true = clusters(2)
    criterion = nn.BCEWithLogitsLoss()
    run = Run(inputs, given.float()[:, None], 1, criterion=criterion)
    with run.monitor as monitor:
        for _ in range(8):
            run.epoch(rate=0.02)
        assert_found(monitor, given != true)


def test_samples_with_several_labels_are_suspects_if_the_labels_are_wrong_on_the_whole():
    inputs, _, true = clusters(6)
    labels = torch.stack((true % 2, true // 2 % 2, true // 3), 1).float()
    wrong = torch.rand(len(true)) < 0.15
    labels[wrong] = 1 - labels[wrong]
    criterion = nn.BCEWithLogitsLoss()
    run = Run(inputs, labels, 3, criterion=criterion)
    with run.monitor as monitor:
        run.epoch(rate=0.0)
        for _ in range(15):
            run.epoch(rate=0.05)
        assert_found(monitor, wrong)
