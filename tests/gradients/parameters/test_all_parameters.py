"""What a critical reading found wrong in the measurement of all parameters, one test each."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from prioritymonitor import GradientMonitor
from prioritymonitor.gradients.parameters.calls import Call
from prioritymonitor.gradients.parameters.closed_form import ClosedFormEngine
from tests.support.engine_driver import Driver, by_hand, largest_difference, train

X, Y = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
NOISY = torch.tensor([True, False, False, True, False, False])


def mlp(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def monitored(model, optimizer=None, scope="all", noisy=NOISY, **options):
    optimizer = optimizer or SGD(model.parameters(), lr=0.1)
    monitor = GradientMonitor(
        model, optimizer, scope=scope, every=1, noisy=lambda *_: noisy, **options
    )
    return monitor, optimizer


@pytest.mark.parametrize("change", [lambda z: F.log_softmax(z, 1), lambda z: z.view(6, 3) * 1])
def test_logits_that_the_loop_lets_go_are_followed(change):
    model, criterion = mlp(), nn.NLLLoss()
    monitor, optimizer = monitored(model, criterion=criterion)
    criterion(change(model(X)), Y).backward()
    optimizer.step()
    assert monitor.latest["coverage"] == 1
    monitor.close()


def test_the_head_never_stands_for_all_parameters(caplog):
    model = mlp()
    monitor, optimizer = monitored(model, criterion=(criterion := nn.CrossEntropyLoss()))
    criterion(model[2](model[1](model[0](X))), Y).backward()  # not through the model
    optimizer.step()
    assert "dominance_ratio" not in monitor.latest
    monitor.close()


class Collects(nn.Module):
    """Gathers a loss of its own in a list, as routers do."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5).double())
        self.gathered = []

    def forward(self, x):
        self.gathered.append((x * self.scale).square().mean())
        return x * self.scale


def test_a_layer_that_gathers_what_it_computes_gathers_nothing_of_ours():
    layer = Collects()
    model = nn.Sequential(layer, mlp())
    monitor, optimizer = monitored(model)
    for step in range(3):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        assert len(layer.gathered) == step + 1
    sum(layer.gathered).item()
    monitor.close()


class Hidden(nn.Module):
    """Uses the weight of a layer behind the layer's back; its head may begin with zeros."""

    def __init__(self, zero):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)
        if zero:
            nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(self.first(x).tanh() @ self.first.weight)


@pytest.mark.parametrize("zero", [True, False])
def test_a_layer_is_checked_once_it_has_a_gradient(zero):
    torch.manual_seed(0)
    model = Hidden(zero).double()
    monitor, optimizer = monitored(model)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    assert monitor.latest["coverage"] == pytest.approx(18 / 48)
    monitor.close()


def test_a_hook_on_a_parameter_changes_nothing_that_is_measured():
    limits = {"now": 1e9}

    def clamp(gradient):
        return gradient.clamp(-limits["now"], limits["now"])

    latest = []
    for tight in (1e9, 1e-3):
        model = mlp()
        model[0].weight.register_hook(clamp)
        monitor, optimizer = monitored(model, SGD(model.parameters(), lr=0.0))
        for limits["now"] in (1e9, tight):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
        latest.append(monitor.latest)
        monitor.close()
    assert latest[0]["noise_share"] == pytest.approx(latest[1]["noise_share"], rel=1e-9)


class Checkpointed(nn.Module):
    """ALBERT's way: one block, several times, each time computed once more."""

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=self.reentrant).tanh()
        return self.head(x)


def calls_alive():
    """Those that something holds, if only the traceback of another test's failure."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is Call]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_leave_nothing_behind(reentrant):
    torch.manual_seed(0)
    model = Checkpointed(reentrant).double()
    monitor, optimizer = monitored(model)
    before = None
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        before = before if before is not None else len(calls_alive())
    assert len(calls_alive()) <= before
    monitor.close()


def test_a_block_used_in_several_reentrant_checkpoints_is_left_out():
    torch.manual_seed(0)
    model = Checkpointed(True).double()
    optimizer = SGD(model.parameters(), lr=0.1)
    driver = Driver(ClosedFormEngine, model, optimizer)
    train(model, optimizer, [(X, Y)])
    driver.close()
    assert not any(name.startswith("block") for name in driver.records[0].sums)
    assert any("block.weight" in problem for problem in driver.problems)


def test_parts_of_a_model_called_on_their_own_are_not_held():
    model, before = mlp(), len(calls_alive())
    monitor, _ = monitored(model)
    kept = [weakref.ref(model[0](X)) for _ in range(3)]
    assert len(calls_alive()) == before
    assert all(reference() is None for reference in kept)
    monitor.close()


def test_gradients_of_layers_are_let_go_in_the_backward_pass():
    model, before = mlp(), [id(call) for call in calls_alive()]
    monitor, _ = monitored(model)
    loss = F.cross_entropy(model(X), Y)
    loss.backward()
    calls = [call for call in calls_alive() if id(call) not in before]
    assert calls
    assert all(gradient is None for call in calls for gradient in call.gradients)
    monitor.close()


def test_two_passes_of_unequal_size_in_one_backward_pass_are_told_apart():
    torch.manual_seed(0)
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.0)
    driver = Driver(ClosedFormEngine, model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        first, second = (X[:4], Y[:4]), (X[4:], Y[4:])
        loss = sum(F.cross_entropy(model(x), y) for x, y in (first, second))
        loss.backward()
        optimizer.step()
    driver.close()
    record, weights = driver.records[0], driver.weights[:2]
    batches = [second, first] if len(weights[0]) == 2 else [first, second]
    expected = by_hand(model, optimizer, batches, weights)
    assert driver.errors == []
    assert largest_difference(record, *expected) < 1e-9


def test_a_micro_batch_without_any_label_does_no_harm():
    model = mlp()
    monitor, optimizer = monitored(model, noisy=NOISY[:3])
    labels = torch.cat((Y[:3], torch.full((3,), -100)))
    for part in (slice(0, 3), slice(3, 6)):
        (F.cross_entropy(model(X[part]), labels[part], reduction="sum") / 3).backward()
    optimizer.step()
    assert monitor.latest["dominance_ratio"] > 0
    monitor.close()


def test_a_layer_is_followed_in_the_mode_of_its_forward_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    monitor, optimizer = monitored(model)
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.train()(X), Y)
        model.eval()
        loss.backward()
        optimizer.step()
    assert monitor.latest["coverage"] == 1
    monitor.close()


def test_freezing_a_layer_before_the_step_does_no_harm():
    model = mlp()
    monitor, optimizer = monitored(model)
    F.cross_entropy(model(X), Y).backward()
    model[0].requires_grad_(False)
    optimizer.step()
    assert monitor.latest["batch_loss"] > 0
    assert monitor.decision.reason.name != "FAILED"
    monitor.close()


@pytest.mark.parametrize("scope", ["head", "all"])
def test_transforms_of_the_users_over_the_model_are_let_be(scope):
    model = mlp()
    monitor, optimizer = monitored(model, scope=scope)
    parameters = dict(model.named_parameters())
    for _ in range(2):
        torch.func.jacrev(lambda p: torch.func.functional_call(model, p, X).sum())(parameters)
        torch.func.vmap(model)(X.unsqueeze(1))
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    assert monitor.decision.reason.name != "FAILED"
    assert monitor.latest["dominance_ratio"] > 0
    monitor.close()
