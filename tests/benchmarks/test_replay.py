"""What the monitor says in the loop is what its code says of the recorded visits."""

import copy

import pytest
import torch
import torch.nn.functional as F

from benchmarks.stopping.runs.replay import choice_of, replay
from benchmarks.stopping.runs.rivals import Choice
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor import GradientMonitor, StopRule
from prioritymonitor.capture.projection import Projection
from prioritymonitor.stopping.rule import measure_only
from tests.support.cases import make_data, make_loader, mlp

BATCH = 20


def of_visit(logits, labels):
    onehot = F.one_hot(labels, logits.shape[1])
    probability = logits.softmax(1)
    rival = logits.masked_fill(onehot.bool(), -torch.inf).argmax(1)
    own = probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    return {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "margin": own - probability.gather(1, rival.unsqueeze(1)).squeeze(1),
        "el2n": (probability - onehot).norm(dim=1),
        "rival": rival,
        "predicted": logits.argmax(1),
    }


@torch.no_grad()
def representation_of(model, inputs, order):
    """Inputs and features of the initial weights, by the batches of the first epoch."""
    both = Projection(), Projection()
    rows = torch.empty(len(inputs), 2, 64)
    for index in order.split(BATCH):
        some = inputs[index], model[:-1](inputs[index])
        rows[index] = torch.stack([project(x) for project, x in zip(both, some, strict=True)], 1)
    return rows


@pytest.mark.parametrize("rule", [StopRule(patience=1, tolerance=0.0), measure_only])
def test_a_replay_of_the_visits_comes_to_the_decision_of_the_loop(rule):
    data = make_data(torch.float32, samples=300)
    torch.manual_seed(0)
    model = mlp()
    initial = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=BATCH, shuffle=True)
    visits = []
    with GradientMonitor(model, optimizer, loader, stop=rule) as monitor:
        while not monitor.should_stop and len(visits) < 15:
            seen = []
            for x, y, index in loader:
                optimizer.zero_grad()
                logits = model(x)
                F.cross_entropy(logits, y).backward()
                optimizer.step()
                seen.append({"index": index} | of_visit(logits.detach(), y))
            visits.append({name: torch.cat([one[name] for one in seen]) for name in seen[0]})
    representation = representation_of(initial, data.inputs, visits[0]["index"])
    recording = {"given": data.given, "visits": visits, "representation": representation}
    replayed = replay(recording, rule=rule)
    assert replayed.decision == monitor.decision
    assert replayed.history[-1]["agreement"] is not None
    for name in ("priority", "noise_rate", "train_loss", "agreement", "contradicted"):
        expected = [record[name] for record in monitor.history()]
        assert [record[name] for record in replayed.history] == pytest.approx(expected, abs=1e-5)
    assert replayed.table.suspects(None, 0.0) == [
        (index, pytest.approx(score, abs=1e-5), given, predicted)
        for index, score, given, predicted in monitor.suspects(min_score=0)
    ]


def test_a_choice_is_made_by_the_records_up_to_the_stop():
    agreement = [0.5, 0.8, 0.9, 0.9, 0.6, 0.5, 0.4, 0.3, 0.9]
    names = ("priority", "initial_loss", "prediction_changes", "validation", "validation_samples")
    history = [
        dict.fromkeys(names)
        | {"agreement": one, "contradicted": 0.0, "noise_rate": 0.1, "samples_seen": 1_000}
        for one in agreement
    ]
    setting = Setting(extra="pretrained", epochs=len(agreement))
    assert choice_of(setting, history, StopRule(patience=2)) == Choice(5 * 3, 6, True)
    assert choice_of(setting, history, measure_only).stopped is False
