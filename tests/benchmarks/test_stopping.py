"""From a recording to the verdict on each rule, on runs of a few seconds."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.stopping import stop
from benchmarks.stopping.runs import record as recording
from benchmarks.stopping.runs.details import details
from benchmarks.stopping.runs.held_out import WITNESSED
from benchmarks.stopping.runs.kept import kept_of, records_of, text_of
from benchmarks.stopping.runs.replay import replay
from benchmarks.stopping.runs.scores import MONITOR, judge
from benchmarks.stopping.runs.settings import Setting
from benchmarks.stopping.runs.summaries import summarise
from benchmarks.stopping.runs.variants import VARIANTS
from prioritymonitor import GradientMonitor

SETTING = Setting("digits", "digits", rate=0.4, epochs=12)


@pytest.fixture(scope="module")
def recorded():
    return recording.record(SETTING, None)


def test_a_recording_shows_every_sample_once_an_epoch(recorded):
    samples = len(recorded["given"])
    for visits in recorded["visits"]:
        assert torch.equal(visits["index"].sort().values, torch.arange(samples).int())
    assert len(recorded["visits"]) == len(recorded["raw"]) == SETTING.epochs


def test_a_recording_has_as_many_wrong_labels_as_its_setting_says(recorded):
    wrong = recorded["given"] != recorded["true"]
    assert wrong.double().mean() == pytest.approx(SETTING.rate, abs=1e-3)


def test_rules_are_judged_by_what_is_kept_of_the_run(recorded):
    kept = json.loads(text_of(kept_of(SETTING, recorded, None)))
    judged = judge(kept)
    raw, averaged = recorded["raw"], recorded["averaged"]
    last = judged.of("last epoch")
    assert last.spent == SETTING.epochs
    assert last.gain == pytest.approx(averaged[-1] - max(raw), abs=0.01)
    assert last.regret == pytest.approx(max(averaged) - averaged[-1], abs=0.01)
    assert last.cost == 0
    decision = replay(recorded).decision
    ours = judged.of(MONITOR)
    assert (ours.view, ours.spent) == (decision.best_epoch, decision.epoch)
    assert ours.gain == pytest.approx(averaged[ours.view - 1] - max(raw), abs=0.01)
    assert VARIANTS["the rule"](SETTING, records_of(kept["history"])).view == ours.view


def test_a_run_that_held_nothing_out_is_judged_without_validation(recorded):
    run = judge(kept_of(SETTING, recorded, None))
    assert "noisy validation" not in run.outcomes
    found = summarise([run]) | details([run])
    assert "noisy validation" not in {row["rule"] for row in found["noisy"]}
    assert found["pattern"] == []
    assert found["worst"][0]["rivals"]["noisy validation"] is None


def test_a_run_that_held_samples_out_is_judged_beside_the_whole_one(recorded):
    held_out = recording.record_with_validation(SETTING, None)
    run = judge(kept_of(SETTING, recorded, held_out))
    assert run.kept["held_out"]["samples"] == round(0.1 * len(recorded["given"]))
    chosen = run.of("noisy validation, whole run")
    accuracy = held_out["averaged"][chosen.view - 1]
    assert chosen.regret == pytest.approx(max(recorded["averaged"]) - accuracy, abs=0.01)
    assert {name: rule(run) for name, rule in WITNESSED.items()}.keys() == WITNESSED.keys()


def test_the_averaged_weights_of_a_recording_are_those_that_the_monitor_keeps():
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(30)
    loader = DataLoader(TensorDataset(torch.eye(4)[labels], labels), batch_size=60, shuffle=True)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    average = recording.running_average(model, len(loader))
    averages = []
    with GradientMonitor(model, optimizer, loader, stop=None) as monitor:
        for _ in range(20):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                average.update_parameters(model)
            averages.append([p.detach().clone() for p in average.module.parameters()])
        best = monitor.restore_best()
    assert best > 10, "so early the average is still warming up"
    for kept, expected in zip(model.parameters(), averages[best - 1], strict=True):
        torch.testing.assert_close(kept, expected)


def test_the_two_lines_hand_back_the_average_of_the_epoch_they_name(monkeypatch):
    images, labels = torch.randn(300, 784), torch.randint(10, (300,))
    task = stop.Task(images, labels, torch.arange(300) < 100, images[:50], labels[:50])
    monkeypatch.setattr(stop, "load_task", lambda setting, folder: task)
    run = stop.make_run(stop.Setting(noise=0.4, optimizer="adam", seed=0, epochs=3), None)
    assert run["returned"] == pytest.approx(run["curves"]["averaged"][run["restored_epoch"] - 1])
    assert run["gain"] == pytest.approx(run["returned"] - max(run["curves"]["raw"]))
    assert len(run["priority"]) == 3
