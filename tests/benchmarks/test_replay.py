"""What the monitor says in the loop is what its code says of the recorded visits."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.stopping.runs.replay import replay
from prioritymonitor import GradientMonitor, StopRule
from prioritymonitor.stopping.rule import measure_only
from tests.stopping.test_priority import margin_of
from tests.support.cases import make_data, make_loader, mlp


@pytest.mark.parametrize("rule", [StopRule(patience=1, tolerance=0.0), measure_only])
def test_a_replay_of_the_visits_comes_to_the_decision_of_the_loop(rule):
    data = make_data(torch.float32, samples=120)
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    visits = []
    with GradientMonitor(model, optimizer, loader, stop=rule) as monitor:
        while not monitor.should_stop and len(visits) < 40:
            seen = []
            for x, y, index in loader:
                optimizer.zero_grad()
                logits = model(x)
                F.cross_entropy(logits, y).backward()
                optimizer.step()
                seen.append((index, *of_visit(logits.detach(), y)))
            names = ("index", "loss", "margin", "el2n", "rival")
            columns = (torch.cat(column) for column in zip(*seen, strict=True))
            visits.append(dict(zip(names, columns, strict=True)))
    replayed = replay({"given": data.given, "visits": visits}, rule=rule)
    assert replayed.decision == monitor.decision
    for name in ("priority", "noise_rate", "train_loss"):
        expected = [record[name] for record in monitor.history()]
        assert [record[name] for record in replayed.history] == pytest.approx(expected, abs=1e-5)
    assert replayed.table.suspects(None, 0.0) == [
        (index, pytest.approx(score, abs=1e-5), given, predicted)
        for index, score, given, predicted in monitor.suspects(min_score=0)
    ]


def of_visit(logits, labels):
    onehot = F.one_hot(labels, logits.shape[1])
    error = (logits.softmax(1) - onehot).norm(dim=1)
    rival = logits.masked_fill(onehot.bool(), -torch.inf).argmax(1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return loss, margin_of(logits, labels), error, rival
