"""The samples to go on with: those that are no suspects."""

import numpy as np
import pytest
import torch

from prioritymonitor import GradientMonitor
from prioritymonitor.samples import table
from tests.samples.test_suspects import Run, clusters


@pytest.fixture
def allowed(monkeypatch):
    """Going on is taken to help, whatever the suspects are."""
    monkeypatch.setattr(table, "why_not_go_on", lambda *columns: None)


def trained(epochs=8, rate=0.02, known=None, **options):
    """A monitor after some epochs, and which labels are wrong."""
    inputs, given, true = clusters(3)
    if known is not None:
        options[known] = {"noisy": given != true, "true_labels": true}[known]
    run = Run(inputs, given, 3, **options)
    for _ in range(epochs):
        run.epoch(rate)
    run.monitor.close()
    return run.monitor, given != true


def assert_places(indices):
    assert isinstance(indices, np.ndarray)
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()


@pytest.mark.parametrize(("epochs", "rate"), [(0, 0.02), (3, 0.0)], ids=["untrained", "unlearnt"])
def test_there_are_none_before_labels_could_be_judged_and_the_log_says_so(epochs, rate, said):
    monitor, _ = trained(epochs, rate)
    for _ in range(2):
        indices = monitor.clean_indices()
        assert_places(indices)
        assert len(indices) == 0
    assert said() == ["clean_indices() is empty: no label was judged yet"]


def test_they_are_those_that_are_no_suspects_sorted(allowed, said):
    monitor, is_wrong = trained()
    indices = monitor.clean_indices()
    assert_places(indices)
    suspects = [suspect.index for suspect in monitor.suspects()]
    assert len(suspects) > 0.9 * is_wrong.sum()
    assert sorted([*indices, *suspects]) == list(range(600))
    assert is_wrong[indices].double().mean() < 0.1 * is_wrong.double().mean()
    assert said() == []


def test_where_it_would_not_help_there_are_none_and_the_log_says_why(monkeypatch, said):
    monkeypatch.setattr(table, "why_not_go_on", lambda *columns: "too many would be lost")
    monitor, _ = trained()
    assert len(monitor.suspects()) > 0
    for _ in range(2):
        indices = monitor.clean_indices()
        assert_places(indices)
        assert len(indices) == 0
    assert said() == ["clean_indices() is empty: too many would be lost"]


@pytest.mark.parametrize("known", ["noisy", "true_labels"])
def test_with_known_noise_they_are_exactly_the_clean_samples(known, monkeypatch, said):
    """Whatever would be said against them otherwise."""
    monkeypatch.setattr(table, "why_not_go_on", lambda *columns: "nobody knows")
    monitor, is_wrong = trained(1, 0.0, known=known)
    indices = monitor.clean_indices()
    assert_places(indices)
    assert indices.tolist() == torch.where(~is_wrong)[0].tolist()
    assert said() == []


def test_they_are_places_in_the_data_set_where_only_some_samples_are_followed(allowed):
    monitor, is_wrong = trained(1, 0.0, known="noisy", max_tracked=200)
    indices = monitor.clean_indices()
    assert_places(indices)
    followed = monitor.samples()["index"]
    assert len(followed) == 200
    assert indices.tolist() == [place for place in followed if not is_wrong[place]]


def test_samples_that_were_never_visited_are_not_among_them(allowed):
    inputs, given, true = clusters(3)
    run = Run(inputs, given, 3, noisy=given != true)
    with run.monitor as monitor:
        for number, (x, y) in enumerate(run.loader):
            if number == 10:
                break
            torch.nn.functional.cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
        monitor.end_epoch()
        visited = monitor.samples()["visits"] > 0
        assert visited.sum() == 200
        clean = visited & (given == true).numpy()
        assert monitor.clean_indices().tolist() == np.flatnonzero(clean).tolist()


def test_without_samples_there_are_none():
    model = torch.nn.Linear(12, 3)
    with GradientMonitor(model, torch.optim.SGD(model.parameters(), 0.1)) as monitor:
        assert len(monitor.clean_indices()) == 0
