"""Compiled models: training goes on as without the monitor, and what is measured is right."""

import shutil

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from prioritymonitor import ArgumentValueError, GradientMonitor
from tests.support.cases import CLASSES, INPUTS, make_data, make_loader
from tests.support.followed import Followed

NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=NO_COMPILER)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = nn.Linear(INPUTS, 9)
        self.norm = nn.LayerNorm(9)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.first(x)).relu()))


def compiled(model, place, **options):
    if place == "in place":
        model.compile(**options)
        return model
    return torch.compile(model, **options)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def train(run, epochs=1, check=None):
    for _ in range(epochs):
        for x, y, index in run.loader:
            run.optimizer.zero_grad()
            run.take(x, y, index)
            F.cross_entropy(run.called(x), y).backward()
            run.before_step()
            run.optimizer.step()
            if check:
                run.check(check)


MEASURED = {
    "head": {"scope": "head"},
    "auto": {"scope": "all", "engine": "auto"},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", ["wrapped", "in place"])
@pytest.mark.parametrize("way", MEASURED)
def test_a_compiled_model_is_measured_as_the_oracle_says(way, place, backend, said):
    model = Net()
    called = compiled(model, place, backend=backend, fullgraph=True)
    run = Followed("head" if way == "head" else "func", model, sgd(model), called=called)
    train(run, check=1e-4)
    assert said() == []
    assert counters["stats"]["unique_graphs"] <= 1
    assert not counters["graph_break"]
    run.monitor.close()


@pytest.mark.parametrize("way", ["head", "closed_form"])
def test_a_model_that_is_compiled_later_is_measured_or_says_what_to_do(way, said):
    model = Net()
    run = Followed(way, model, sgd(model))
    train(run, check=1e-4)
    model.compile(backend="eager", fullgraph=True)
    train(run, check=1e-4 if way == "head" else None)
    train(run, check=1e-4 if way == "head" else None)
    if way == "closed_form":
        (problem,) = said()
        assert "compiled after the monitor was made" in problem
        assert 'engine="func"' in problem
        assert len(run.monitor.history()) == 3
    else:
        assert said() == []
    assert counters["stats"]["unique_graphs"] <= 1
    run.monitor.close()


def test_the_part_before_the_head_may_be_compiled_alone(said):
    model = Net()
    model.first = torch.compile(model.first, backend="eager", fullgraph=True)
    model.norm.compile(backend="eager")
    run = Followed("head", model, sgd(model))
    train(run, check=1e-4)
    assert said() == []
    run.monitor.close()


def test_a_compiled_head_in_a_model_that_is_not_is_measured(said):
    model = Net()
    model.head = torch.compile(model.head, backend="eager")
    run = Followed("head", model, sgd(model))
    train(run, check=1e-4)
    assert said() == []
    run.monitor.close()


def test_closed_form_on_a_compiled_model_is_refused_with_the_remedy():
    model = torch.compile(Net(), backend="eager")
    with pytest.raises(ArgumentValueError, match='engine="func"'):
        GradientMonitor(model, sgd(model), scope="all", engine="closed_form")


def test_a_compiled_model_that_nothing_can_measure_is_refused_with_the_remedy():
    inner = nn.Sequential(nn.Linear(INPUTS, 9), nn.BatchNorm1d(9), nn.Linear(9, CLASSES))
    model = torch.compile(inner, backend="eager")
    with pytest.raises(ArgumentValueError, match=r'compiled.*\(BatchNorm1d\).*scope="head"'):
        GradientMonitor(model, sgd(model), scope="all")


def test_dropout_falls_alike_in_a_pass_that_is_run_again(said):
    model = Net(dropout=0.5)
    called = torch.compile(model, backend="aot_eager")
    run = Followed("head", model, sgd(model), called=called)
    for x, y, _ in run.loader:
        run.optimizer.zero_grad()
        F.cross_entropy(called(x), y).backward()
        before = {name: p.detach().clone() for name, p in model.head.named_parameters()}
        gradients = {name: p.grad.clone() for name, p in model.head.named_parameters()}
        run.optimizer.step()
        latest = run.monitor.latest
        clean, noisy = latest["contribution_clean"], latest["contribution_noisy"]
        changes = {n: p.detach() - before[n] for n, p in model.head.named_parameters()}
        bought = -sum((gradients[name] * changes[name]).sum() for name in gradients)
        assert clean + noisy == pytest.approx(bought.item(), rel=1e-4)
    assert said() == []
    run.monitor.close()


@NO_COMPILER
def test_other_random_numbers_than_those_of_the_compiled_pass_are_found_out(said):
    model = Net(dropout=0.5)
    run = Followed("head", model, sgd(model), called=torch.compile(model))
    for x, y, _ in run.loader:
        run.optimizer.zero_grad()
        F.cross_entropy(run.called(x), y).backward()
        run.optimizer.step()
    assert "noise_share" not in run.monitor.latest
    (problem,) = said()
    assert "compile" in problem
    assert (run.monitor.samples()["visits"] > 0).all()
    run.monitor.close()


def states(way, backend, is_watched, *, monitor_first=False, compile_step=False):
    """What training gives, the losses of its steps included."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(dropout=0.3)
    optimizer = sgd(model)
    loader = make_loader(make_data(torch.float32), batch_size=12)
    monitor = None
    if is_watched and monitor_first:
        monitor = GradientMonitor(model, optimizer, loader, every=2, **MEASURED[way])
    called = compiled(model, "in place" if monitor_first else "wrapped", backend=backend)
    if is_watched and not monitor_first:
        monitor = GradientMonitor(called, optimizer, loader, every=2, **MEASURED[way])
    step = torch.compile(optimizer.step, backend="eager") if compile_step else optimizer.step
    losses = []
    for _ in range(2):
        for x, y, _ in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(called(x), y)
            loss.backward()
            step()
            losses.append(loss.item())
    if monitor is not None:
        assert "batch_loss" in monitor.latest
        monitor.close()
    return losses, [p.detach().clone() for p in model.parameters()], torch.get_rng_state()


def assert_same(alone, watched):
    assert alone[0] == watched[0]
    assert all(map(torch.equal, alone[1], watched[1]))
    assert torch.equal(alone[2], watched[2])


@pytest.mark.parametrize("backend", ["aot_eager", BACKENDS[2]])
@pytest.mark.parametrize("monitor_first", [False, True], ids=["compiled first", "monitor first"])
@pytest.mark.parametrize("way", MEASURED)
def test_compiled_training_is_bit_for_bit_what_it_is_alone(way, monitor_first, backend):
    alone = states(way, backend, False, monitor_first=monitor_first)
    assert_same(alone, states(way, backend, True, monitor_first=monitor_first))


def test_a_compiled_optimizer_step_is_followed():
    alone = states("head", "eager", False, compile_step=True)
    assert_same(alone, states("head", "eager", True, compile_step=True))


@pytest.mark.parametrize("way", MEASURED)
def test_nothing_is_compiled_anew_from_step_to_step(way):
    model = Net()
    counter = torch._dynamo.testing.CompileCounter()
    called = torch.compile(model, backend=counter)
    x = torch.randn(12, INPUTS)
    called(x)
    run = Followed("head" if way == "head" else "func", model, sgd(model), called=called)
    train(run, epochs=4)
    assert counter.frame_count == 1
    run.monitor.close()


def test_a_loss_compiled_with_the_model_in_one_graph_trains_on_and_the_remedy_is_said(said):
    model = Net()
    run = Followed("head", model, sgd(model))

    @torch.compile(backend="eager", fullgraph=True)
    def loss_of(x, y):
        return F.cross_entropy(model(x), y)

    for _ in range(6):
        for x, y, _ in run.loader:
            run.optimizer.zero_grad()
            loss_of(x, y).backward()
            run.optimizer.step()
    assert any("torch.compile" in problem for problem in said())
    run.monitor.close()
