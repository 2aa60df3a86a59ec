"""What the witnesses say of an epoch, beside what the loop itself sees."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import GradientMonitor
from prioritymonitor.records import EpochOfSamples
from prioritymonitor.stopping.witnesses import WITNESSES
from tests.support.cases import CLASSES, INPUTS, make_data, make_loader, mlp

EPOCH = EpochOfSamples(
    decrease=torch.zeros(6),
    noisy_part=torch.zeros(6),
    samples_seen=6,
    relabelled=0,
    predicted=torch.tensor([0, 1, 2, 3, -1, 1]),
    predicted_before=torch.tensor([0, 2, -1, 3, 0, 0]),
    given_label=torch.zeros(6),
    vote=torch.tensor([0, 0, 2, -1, 4, 0]),
)


def test_agreement_is_among_the_samples_with_a_vote_that_the_epoch_visited():
    assert WITNESSES["agreement"](EPOCH, []) == 0.5  # rows 0, 1, 2 and 5
    nobody = replace(EPOCH, vote=torch.full((6,), -1))
    assert math.isnan(WITNESSES["agreement"](nobody, []))


def test_contradicted_are_the_labels_against_which_prediction_and_neighbours_agree():
    assert WITNESSES["contradicted"](EPOCH, []) == 0.25  # row 2 of rows 0, 1, 2 and 5
    others = replace(EPOCH, given_label=torch.tensor([1, 0, 2, 0, 0, 0]))
    assert WITNESSES["contradicted"](others, []) == 0.25  # row 0
    nobody = replace(EPOCH, vote=torch.full((6,), -1))
    assert math.isnan(WITNESSES["contradicted"](nobody, []))


def test_prediction_changes_are_among_the_samples_visited_now_and_before():
    assert WITNESSES["prediction_changes"](EPOCH, []) == 0.5  # rows 0, 1, 3 and 5
    first = replace(EPOCH, predicted_before=torch.full((6,), -1))
    assert math.isnan(WITNESSES["prediction_changes"](first, []))


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_the_record_of_each_epoch_says_what_the_loop_saw(share):
    data = make_data(torch.float32, samples=300)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    before, epochs = torch.full((300,), -1), []
    with GradientMonitor(model, optimizer, loader) as monitor:
        for _ in range(5):
            now = torch.full((300,), -1)
            for number, (x, y, index) in enumerate(loader):
                if number == int(share * len(loader)):
                    break
                logits = model(x)
                now[index] = logits.argmax(1)
                optimizer.zero_grad()
                F.cross_entropy(logits, y).backward()
                optimizer.step()
            epochs.append((now, before))
            before = torch.where(now >= 0, now, before)
        monitor.end_epoch()
        vote, history = torch.from_numpy(monitor.samples()["vote"]), monitor.history()
    assert len(history) == len(epochs) == 5
    assert (vote >= 0).sum() == int(share * 15) * 20
    for record, (now, earlier) in zip(history, epochs, strict=True):
        asked, both = (now >= 0) & (vote >= 0), (now >= 0) & (earlier >= 0)
        agreement = (now == vote)[asked].double().mean().item()
        assert record["agreement"] == pytest.approx(agreement)
        contradicted = (now == vote) & (vote != data.given)
        share = contradicted[asked].double().mean().item()
        assert record["contradicted"] == pytest.approx(share)
        if both.any():
            changed = (now != earlier)[both].double().mean().item()
            assert record["prediction_changes"] == pytest.approx(changed)
        else:
            assert record["prediction_changes"] is None


def test_agreement_falls_as_wrong_labels_are_learnt_by_heart():
    torch.manual_seed(0)
    data = make_data(torch.float32, samples=300)
    model = torch.nn.Sequential(
        torch.nn.Linear(INPUTS, 256), torch.nn.ReLU(), torch.nn.Linear(256, CLASSES)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    with GradientMonitor(model, optimizer, loader, stop=None) as monitor:
        for _ in range(60):
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        curve = [record["agreement"] for record in monitor.history()]
    assert max(curve[1:10]) > curve[0]
    assert max(curve[1:10]) > curve[-1] + 0.1
