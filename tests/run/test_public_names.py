"""The public names of a monitor, as users call them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import Decision, GradientMonitor, StopReason, StopRule
from prioritymonitor.errors import ArgumentTypeError, ArgumentValueError
from prioritymonitor.tags import RECORD_KEYS
from tests.support.cases import make_data, make_loader, mlp

COLUMNS = (
    *("index", "visits", "given_label", "predicted_label", "loss", "mean_margin", "mean_error"),
    *("score", "vote"),
)


def trained(epochs, **options):
    torch.manual_seed(0)
    data = make_data(torch.float32)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=10, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, **options)
    for _ in range(epochs):
        train_epoch(model, optimizer, loader)
    monitor.close()
    return monitor, data


def train_epoch(model, optimizer, loader):
    for x, y, _ in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_the_table_of_samples_has_a_row_for_each_in_the_order_of_the_data_set():
    monitor, data = trained(12)
    table = monitor.samples()
    assert tuple(table) == COLUMNS
    assert {len(column) for column in table.values()} == {60}
    assert all(isinstance(column, np.ndarray) for column in table.values())
    assert table["index"].tolist() == list(range(60))
    assert table["visits"].tolist() == [12] * 60
    assert table["given_label"].tolist() == data.given.tolist()
    assert set(table["vote"]) <= set(table["given_label"])
    assert not np.isnan(table["score"]).any()
    by_index = {suspect.index: suspect for suspect in monitor.suspects(min_score=0)}
    for place, score, label in zip(
        table["index"], table["score"], table["predicted_label"], strict=True
    ):
        assert by_index[place].score == score
        assert by_index[place].predicted_label == label


def test_the_table_of_samples_before_the_first_epoch_knows_nothing():
    monitor, _ = trained(0)
    table = monitor.samples()
    assert table["visits"].tolist() == [0] * 60
    assert np.isnan(table["loss"]).all()
    assert np.isnan(table["score"]).all()
    assert (table["predicted_label"] == -1).all()
    assert (table["vote"] == -1).all()


def test_without_a_loader_there_are_no_samples_and_the_decision_says_why():
    model = mlp()
    monitor = GradientMonitor(model, torch.optim.SGD(model.parameters(), 0.1))
    assert {len(column) for column in monitor.samples().values()} == {0}
    assert monitor.suspects() == []
    assert np.isnan(monitor.noise_rate)
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    monitor.close()


def test_suspects_are_those_above_a_score_and_no_more_than_asked_for():
    monitor, _ = trained(12)
    everyone = monitor.suspects(min_score=0)
    assert len(everyone) == 60
    assert monitor.suspects() == [suspect for suspect in everyone if suspect.score > 0.5]
    assert len(monitor.suspects()) == round(monitor.noise_rate * 60)
    assert monitor.suspects(5, min_score=0) == everyone[:5]
    assert monitor.suspects(0) == []


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"k": -1}, ArgumentValueError, "k=-1"),
        ({"k": 1.5}, ArgumentTypeError, "k=1.5"),
        ({"min_score": 2}, ArgumentValueError, "min_score=2"),
        ({"min_score": "high"}, ArgumentTypeError, "min_score='high'"),
    ],
)
def test_suspects_refuses_nonsense(arguments, error, named):
    monitor, _ = trained(1)
    with pytest.raises(error, match=named):
        monitor.suspects(**arguments)


def test_the_records_of_all_epochs_have_the_same_keys_also_after_the_stop():
    monitor, _ = trained(
        12, stop=lambda history: replace(StopRule()(history), stop=len(history) == 8)
    )
    assert monitor.should_stop
    history = monitor.history()
    assert len(history) == 12
    assert all(tuple(record) == RECORD_KEYS for record in history)
    after = [record for record in history if record["epoch"] > monitor.decision.epoch]
    assert after
    assert all(record["stop"] and record["train_loss"] is not None for record in after)
    assert history[0]["validation"] is history[0]["prediction_changes"] is None


def test_a_rule_replayed_on_the_history_comes_to_the_same_decision():
    monitor, _ = trained(8)
    decision = monitor.decision
    assert StopRule()(monitor.history()[: decision.epoch]) == decision


def test_any_function_of_the_history_may_decide():
    asked = []

    def rule(history):
        asked.append([record["epoch"] for record in history])
        stops = len(history) == 3
        return Decision(stops, StopReason.NOISY_DOMINATES, len(history), min(len(history), 2), "so")

    monitor, _ = trained(4, stop=rule)
    assert asked == [[1], [1, 2], [1, 2, 3]]
    assert monitor.decision == Decision(True, StopReason.NOISY_DOMINATES, 3, 2, "so")
    assert monitor.restore_best() == monitor.best_epoch == 2


def test_a_rule_may_name_an_epoch_that_may_be_the_best_and_get_its_weights_later():
    """As `peak_epochs`, while the present epoch's weights are those that would be restored."""

    def rule(history):
        now = len(history)
        best = now if now < 6 else 3
        return Decision(False, StopReason.CLEAN_DOMINATES, now, best, "so", (min(now, 3),))

    monitor, _ = trained(5, stop=rule)
    assert monitor.best_epoch == monitor.restore_best() == 5
    monitor, _ = trained(6, stop=rule)
    assert monitor.best_epoch == monitor.restore_best() == 3
    assert monitor.decision.message == "so"


def test_a_rule_that_names_an_epoch_too_late_gets_the_weights_there_are():
    def rule(history):
        best = len(history) if len(history) < 4 else 1
        return Decision(False, StopReason.CLEAN_DOMINATES, len(history), best, "so")

    monitor, _ = trained(4, stop=rule, keep_best="last")
    assert monitor.best_epoch == monitor.restore_best() == 3
    assert "weights kept are those of epoch 3" in monitor.decision.message


@pytest.mark.parametrize("rule", [lambda history: 1 / 0, lambda history: True])
def test_a_rule_that_fails_stops_nothing_and_is_said_once(rule, said):
    monitor, _ = trained(3, stop=rule)
    assert monitor.decision.reason is StopReason.RULE_FAILED
    assert not monitor.should_stop
    assert len(monitor.history()) == 3
    assert len(said()) == 1
    assert monitor.restore_best() is not None


def test_an_epoch_can_be_ended_before_the_loader_does_and_once_more_does_nothing():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader)
    for number, (x, y, _) in enumerate(loader):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if number == 2:
            monitor.end_epoch()
            monitor.end_epoch()
    assert [record["samples_seen"] for record in monitor.history()] == [30, 60]
    monitor.end_epoch()
    assert len(monitor.history()) == 2
    monitor.close()


def test_without_a_loader_epochs_end_when_they_are_said_to():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monitor = GradientMonitor(model, optimizer)
    train_epoch(model, optimizer, make_loader(make_data(torch.float32), batch_size=10))
    monitor.end_epoch()
    monitor.end_epoch()
    (record,) = monitor.history()
    assert (record["epoch"], record["step"], record["reason"]) == (1, 6, "NO_IDENTITY")
    monitor.close()


def test_reading_changes_nothing():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader)
    for number, (x, y, _) in enumerate(loader):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if number == 5:  # all batches were used, and the loader was not asked for another
            break
    for _ in range(2):
        readings = monitor.latest, monitor.noise_rate, monitor.suspects(), monitor.best_epoch
        assert repr(readings) == repr(({**monitor.latest}, monitor.noise_rate, [], None))
        assert monitor.history() == []
        assert "epochs=0" in repr(monitor)
    assert monitor.decision.epoch == 1  # this does end it, read by the thread that trains
    assert len(monitor.history()) == 1
    monitor.close()
