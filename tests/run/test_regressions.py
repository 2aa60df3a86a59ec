"""One test per defect that was found, named after what the user saw."""

import copy
import functools
import gc
import json
import math
import os
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, StopReason, StopRule
from prioritymonitor.capture.health import Health
from prioritymonitor.report.saved_run import read_run
from prioritymonitor.samples.history import SampleHistory
from tests.capture.test_no_disturbance import assert_identical
from tests.support.cases import INPUTS, make_data, make_loader, mlp
from tests.support.observed import content_of
from tests.support.reference import (
    expected_statistics,
    head_parameters,
    head_update,
    sample_gradients,
)


def setup(loader=None, model=None, data=None, **options):
    data = data or make_data(torch.float32)
    model = model or mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loader = loader or make_loader(data, batch_size=10, shuffle=True)
    return model, optimizer, loader, GradientMonitor(model, optimizer, loader, **options)


def step(model, optimizer, x, y, loss=F.cross_entropy):
    optimizer.zero_grad()
    loss(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("batch_size", [1, 8, 128])
def test_a_batch_that_is_fit_to_the_last_bit_is_still_cross_entropy(batch_size, said):
    y = torch.arange(batch_size) % 2
    inputs = F.one_hot(y, 2).float()
    loader = DataLoader(TensorDataset(inputs, y), batch_size=batch_size)
    for scale in (10.0, 14.0, 16.0, 17.0, 18.0, 25.0, 60.0, 120.0):
        fit = nn.Linear(2, 2)
        with torch.no_grad():
            fit.weight.copy_(scale * torch.eye(2))
            fit.bias.zero_()
        optimizer = torch.optim.SGD(fit.parameters(), 1e-3)
        monitor = GradientMonitor(fit, optimizer, loader, every=1)
        for _ in range(5):
            for x, labels in loader:
                step(fit, optimizer, x, labels)
        assert monitor.decision.reason is not StopReason.FAILED, scale
        monitor.close()
    assert not said()


def test_a_failure_while_reading_the_decision_does_not_reach_the_loop(said, monkeypatch):
    model, optimizer, loader, monitor = setup()
    monkeypatch.setattr(Health, "end_epoch", lambda health, epoch: 1 / 0)
    for x, y, _ in loader:
        step(model, optimizer, x, y)
        assert not monitor.should_stop
    assert monitor.decision.reason is StopReason.FAILED
    assert len(said()) == 1
    monitor.close()


def test_a_failure_inside_a_step_hook_leaves_other_hooks_alone(said):
    def noisy(inputs, targets, index):
        raise RuntimeError("no such table")

    model, optimizer, loader, monitor = setup(noisy=noisy, every=1)
    calls = []
    optimizer.register_step_post_hook(lambda *arguments: calls.append(1))
    for x, y, _ in loader:
        step(model, optimizer, x, y)
    assert len(calls) == 6
    assert len(said()) == 1
    monitor.close()


def test_two_views_of_each_batch_never_stop_the_run(said):
    model, optimizer, loader, monitor = setup()
    for _ in range(10):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(torch.cat((x, x))), torch.cat((y, y))).backward()
            optimizer.step()
        assert not monitor.should_stop
    assert any("could not be traced" in message for message in said())
    monitor.close()


def test_a_run_that_learns_nothing_never_stops():
    model, optimizer, loader, monitor = setup()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(10):
        for x, y, _ in loader:
            step(model, optimizer, x, y)
    assert not monitor.should_stop
    monitor.close()


def test_many_classes_that_are_not_learnt_yet_are_no_noise():
    data = make_data(torch.float32)
    data.given = torch.randint(0, 300, (60,))
    model, optimizer, loader, monitor = setup(data=data, model=nn.Linear(INPUTS, 300))
    for _ in range(12):
        for x, y, _ in loader:
            step(model, optimizer, x, y)
    assert not monitor.should_stop
    assert monitor.suspects() == []
    assert math.isnan(monitor.noise_rate)
    monitor.close()


def test_two_forward_passes_with_one_backward_pass_are_one_step():
    data = make_data()
    model = mlp().double()
    model, optimizer, loader, monitor = setup(
        make_loader(data, batch_size=20), model, data, true_labels=data.true, every=1
    )
    head = model[2]
    for x, y, index in loader:
        before = head_parameters(head)
        rows = sample_gradients(
            model, head, lambda z, t: F.cross_entropy(z, t, reduction="none"), x, y
        )
        optimizer.zero_grad()
        (F.cross_entropy(model(x[:10]), y[:10]) + F.cross_entropy(model(x[10:]), y[10:])).backward()
        optimizer.step()
        update = head_update(head, before)
        expected = expected_statistics(rows, data.noisy[index], y, data.true[index], update)
        for name in ("noise_share", "contribution_clean", "coherence"):
            assert monitor.latest[name] == pytest.approx(expected[name], rel=1e-9), name
    monitor.close()


def test_a_criterion_finds_the_pass_that_gave_its_logits():
    values = []
    for disturbed in (False, True):
        torch.manual_seed(0)
        criterion = nn.CrossEntropyLoss()
        data = make_data(torch.float32)
        model, optimizer, loader, monitor = setup(
            make_loader(data, batch_size=20),
            data=data,
            criterion=criterion,
            noisy=data.noisy,
            every=1,
        )
        for x, y, _ in loader:
            optimizer.zero_grad()
            logits = model(x)
            if disturbed:
                model(torch.randn_like(x)).argmax(1)
            criterion(target=y, input=logits).backward()
            optimizer.step()
        values.append(monitor.latest | {"overhead_fraction": 0})
        monitor.close()
    assert_identical(*values)


def test_a_closure_that_cuts_a_batch_in_pieces_keeps_all_of_them():
    model, optimizer, loader, monitor = setup(make_loader(make_data(torch.float32), batch_size=20))
    for x, y, _ in loader:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            for part, labels in zip(x.split(5), y.split(5), strict=True):
                F.cross_entropy(model(part), labels).backward()

        optimizer.step(closure)
    assert (monitor.samples()["visits"] > 0).all()
    monitor.close()


def test_another_loader_and_passes_within_a_pass_make_no_epochs():
    model, optimizer, loader, monitor = setup()
    other = make_loader(make_data(torch.float32), batch_size=30)
    x, y, _ = next(iter(other))
    for _ in range(3):
        step(model, optimizer, x, y)  # warm-up steps belong to no epoch
    for epoch in range(4):
        for number, (x, y, _) in enumerate(loader):
            step(model, optimizer, x, y)
            if number == 2:  # accuracy on the training data, in the middle of the epoch
                with torch.no_grad():
                    for inputs, *_ in loader:
                        model(inputs)
        for x, y, _ in other:
            step(model, optimizer, x, y)
        assert len(monitor.history()) == epoch + 1
    assert all(math.isfinite(record["train_loss"]) for record in monitor.history())
    monitor.close()


def test_two_optimizer_steps_per_batch_make_no_more_epochs():
    model, optimizer, loader, monitor = setup(stop=StopRule(min_epochs=10))
    for _ in range(4):
        for x, y, _ in loader:
            for _ in range(2):
                step(model, optimizer, x, y)
                assert not monitor.should_stop
    assert len(monitor.history()) == 4
    monitor.close()


def test_a_loader_that_is_not_the_loops_is_said(said):
    model, optimizer, _, monitor = setup()
    batches = list(make_loader(make_data(torch.float32), batch_size=10))
    for number in range(60):
        x, y, _ = batches[number % 6]
        step(model, optimizer, x, y)
    assert sum("used no batch of train_loader" in message for message in said()) == 1
    monitor.close()


def test_weights_can_be_restored_after_a_failure(monkeypatch):
    model, optimizer, loader, monitor = setup()
    for epoch in range(3):
        if epoch == 2:
            monkeypatch.setattr(SampleHistory, "record", lambda *a: 1 / 0)
        for x, y, _ in loader:
            step(model, optimizer, x, y)
    assert monitor.decision.reason is StopReason.FAILED
    assert monitor.restore_best() == monitor.best_epoch == 2  # the last one that was closed
    monitor.close()


def test_an_optimizer_that_never_steps_keeps_no_weights():
    model, _, loader, monitor = setup()
    for x, y, _ in loader:
        F.cross_entropy(model(x), y).backward()
    assert monitor.restore_best() is None
    monitor.close()


def test_the_average_follows_parameters_whose_data_is_exchanged():
    model, optimizer, loader, monitor = setup()
    for _ in range(40):
        for x, y, _ in loader:
            step(model, optimizer, x, y)
            for parameter in model.parameters():
                parameter.data = torch.full_like(parameter.data, 0.5)
        if monitor.should_stop:
            break
    monitor.restore_best()
    assert all((parameter - 0.5).abs().max() < 0.3 for parameter in model.parameters())
    monitor.close()


def test_a_monitor_that_nobody_keeps_closes_itself(tmp_path):
    model, optimizer, loader, monitor = setup(log_dir=tmp_path)
    for x, y, _ in loader:
        step(model, optimizer, x, y)
    alive = weakref.ref(monitor)
    del monitor
    gc.collect()
    assert alive() is None
    assert not model._forward_hooks
    assert "_get_iterator" not in vars(loader)
    assert len(read_run(tmp_path).epochs) == 1


def test_a_forked_process_leaves_the_monitor_of_its_parent_alone(tmp_path):
    """A loader's worker that collects garbage once waited for ever for a writer's thread."""
    model, optimizer, loader, monitor = setup(log_dir=tmp_path)
    for x, y, _ in loader:
        step(model, optimizer, x, y)
    assert monitor.latest
    child = os.fork()
    if child == 0:
        monitor.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not (tmp_path / "suspects.csv").exists()
    monitor.close()
    assert (tmp_path / "suspects.csv").exists()


def test_a_loader_is_let_go_by_its_last_reference():
    """Left to the garbage collector, a loader with persistent workers took ten seconds to end."""
    model, optimizer, loader, monitor = setup()
    for x, y, _ in loader:
        step(model, optimizer, x, y)
    alive = weakref.ref(loader)
    gc.disable()
    try:
        del loader, monitor
        assert alive() is None
    finally:
        gc.enable()


def test_a_state_saved_after_the_last_batch_ends_the_epoch_first():
    model, optimizer, loader, monitor = setup()
    state = None
    for number, (x, y, _) in enumerate(loader):
        step(model, optimizer, x, y)
        if number == 5:
            state = monitor.state_dict()
    assert content_of(state)["epoch"] == 1
    monitor.close()


def test_a_run_that_lost_identity_can_be_resumed():
    model, optimizer, loader, monitor = setup()
    for epoch in range(2):
        for x, y, _ in loader:
            step(model, optimizer, x, (y + epoch) % 5)
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    _, _, _, resumed = setup()
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.decision.reason is StopReason.NO_IDENTITY
    for one in (monitor, resumed):
        one.close()


@pytest.mark.parametrize(
    "criterion", [F.cross_entropy, functools.partial(F.cross_entropy, ignore_index=-100)]
)
def test_a_function_as_criterion_knows_the_label_it_ignores(criterion, said):
    data = make_data(torch.float32)
    data.given[::5] = -100
    model, optimizer, loader, monitor = setup(data=data, criterion=criterion, every=1)
    for _ in range(2):
        for x, y, _ in loader:
            step(model, optimizer, x, y, criterion)
    assert not said()
    assert monitor.samples()["visits"].tolist() == [0, 2, 2, 2, 2] * 12
    monitor.close()


class Wrapped(nn.Module):
    """A loss of the user's own, with other names and a reduction that it does not use."""

    reduction = "mean"

    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels) * 2


def test_a_criterion_with_names_of_its_own_is_followed(said):
    criterion = Wrapped()
    model, optimizer, loader, monitor = setup(criterion=criterion, every=1)
    for x, y, _ in loader:
        optimizer.zero_grad()
        loss = criterion(labels=y, logits=model(x))
        loss.backward()
        optimizer.step()
    assert not said()
    assert monitor.latest["batch_loss"] == pytest.approx(loss.item(), rel=1e-5)
    monitor.close()


def test_class_probabilities_as_targets_are_followed(said):
    criterion = nn.CrossEntropyLoss()
    model, optimizer, loader, monitor = setup(criterion=criterion, every=1)
    for x, y, _ in loader:
        optimizer.zero_grad()
        soft = 0.9 * F.one_hot(y, 5).float() + 0.02
        loss = criterion(model(x), soft)
        loss.backward()
        optimizer.step()
    assert not said()
    assert monitor.latest["batch_loss"] == pytest.approx(loss.item(), rel=1e-5)
    monitor.close()


def test_another_default_type_does_not_matter(said):
    torch.set_default_dtype(torch.float64)
    try:
        data = make_data()
        model, optimizer, loader, monitor = setup(data=data, noisy=data.noisy)
        for _ in range(2):
            for x, y, _ in loader:
                step(model, optimizer, x, y)
        assert not said()
        assert monitor.noise_rate == pytest.approx(data.noisy.double().mean().item())
        monitor.close()
    finally:
        torch.set_default_dtype(torch.float32)


def test_inputs_of_past_batches_are_let_go():
    model, optimizer, loader, monitor = setup()
    inputs = []
    for x, y, _ in loader:
        step(model, optimizer, x, y)
        inputs.append(weakref.ref(x))
    del x
    gc.collect()
    assert sum(reference() is not None for reference in inputs) == 0
    monitor.close()


def test_copies_of_an_attached_loader_are_loaders_of_their_own():
    model, _, loader, monitor = setup()
    for twin in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert len(list(twin)) == 6
        again = GradientMonitor(model, torch.optim.SGD(model.parameters(), 0.1), twin)
        assert len(list(twin)) == 6
        again.close()
    monitor.close()


def test_samples_picked_out_of_a_batch_do_not_take_the_places_of_others():
    data = make_data(torch.float32)
    model, optimizer, loader, monitor = setup(data=data)
    for x, y, _ in loader:
        keep = torch.rand(len(y)) < 0.6
        if keep.any():
            step(model, optimizer, x[keep], y[keep])
    assert all(s.given_label == data.given[s.index] for s in monitor.suspects(min_score=0))
    monitor.close()


def test_known_noise_without_a_wrong_label_gives_a_readable_history(tmp_path):
    data = make_data(torch.float32)
    clean = torch.zeros(60, dtype=torch.bool)
    model, optimizer, loader, monitor = setup(data=data, noisy=clean, log_dir=tmp_path)
    for x, y, _ in loader:
        step(model, optimizer, x, y)
    monitor.close()

    def refuse(name):
        raise ValueError(name)

    (line,) = (tmp_path / "epochs.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["noisy_loss"] is None
