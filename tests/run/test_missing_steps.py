"""An optimizer that makes no steps is said, with what to do, and nothing is concluded."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from prioritymonitor import GradientMonitor, StopReason
from tests.support.cases import make_data, make_loader, mlp
from tests.support.separable import separable


class Loop:
    """A loop with two optimizers of the same parameters, of which a monitor has one."""

    def __init__(self, with_loader=True, **options):
        torch.manual_seed(0)
        self.data = separable()
        self.model = mlp()
        self.watched = torch.optim.SGD(self.model.parameters(), 0.05)
        self.other = torch.optim.AdamW(self.model.parameters(), 0.01)
        self.loader = make_loader(self.data, batch_size=10, shuffle=True)
        loader = self.loader if with_loader else None
        self.monitor = GradientMonitor(self.model, self.watched, loader, **options)

    def train(self, epochs, step, accumulate=1, to_none=True, drop=True):
        batches = 0
        for _ in range(epochs):
            for x, y, _ in self.loader:
                if drop and batches % accumulate == 0:
                    self.model.zero_grad(set_to_none=to_none)
                F.cross_entropy(self.model(x), y).backward()
                batches += 1
                if batches % accumulate == 0:
                    step()


def no_steps(messages):
    return [message for message in messages if "has made no step" in message]


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("accumulate", [1, 8])
def test_another_optimizer_that_steps_instead_is_named(accumulate, to_none, said):
    loop = Loop()
    loop.train(2, loop.other.step, accumulate, to_none)
    (message,) = no_steps(said())
    assert message.startswith("the torch.optim.sgd.SGD that the monitor was made with")
    assert "in 50 batches" in message
    assert "torch.optim.adamw.AdamW stepped" in message
    assert "Make the monitor with the optimizer that the loop steps" in message
    loop.monitor.close()
    assert not _global_optimizer_post_hooks


def test_nothing_is_concluded_and_no_weights_are_promised_without_steps(said):
    loop = Loop()
    loop.train(12, loop.other.step)
    decision = loop.monitor.decision
    assert (decision.stop, decision.best_epoch, decision.reason) == (
        False,
        None,
        StopReason.TOO_EARLY,
    )
    assert loop.monitor.history() == []
    weights = [parameter.detach().clone() for parameter in loop.model.parameters()]
    assert loop.monitor.restore_best() is None
    assert all(map(torch.equal, weights, loop.model.parameters()))
    assert said()[-1].endswith("no epoch was closed")
    loop.monitor.close()


def test_it_is_said_within_50_batches(said):
    loop = Loop()
    for number, (x, y, _) in enumerate([*loop.loader, *loop.loader], 1):
        loop.model.zero_grad()
        F.cross_entropy(loop.model(x), y).backward()
        loop.other.step()
        assert len(no_steps(said())) == (number >= 50)
    loop.monitor.close()


def test_it_is_said_of_an_optimizer_that_torch_does_not_know(said):
    loop = Loop()

    @torch.no_grad()
    def by_hand():
        for parameter in loop.model.parameters():
            parameter -= 0.1 * parameter.grad

    loop.train(2, by_hand)
    assert len(no_steps(said())) == 1
    loop.monitor.close()


def test_gradients_that_add_up_for_ever_are_said_after_two_epochs(said):
    loop = Loop()
    loop.train(1, lambda: None, drop=False)
    loop.train(0, lambda: None)
    assert no_steps(said()) == []
    loop.train(2, lambda: None, drop=False)
    (message,) = no_steps(said())
    assert "in two epochs" in message
    loop.monitor.close()


@pytest.mark.parametrize("with_loader", [True, False])
def test_an_optimizer_that_is_replaced_is_said(with_loader, said):
    loop = Loop(with_loader)
    loop.train(2, loop.watched.step)
    assert no_steps(said()) == []
    epochs = len(loop.monitor.history())
    loop.train(3, loop.other.step)
    (message,) = no_steps(said())
    assert "AdamW" in message
    assert len(loop.monitor.history()) == epochs
    loop.monitor.close()


def test_an_optimizer_that_steps_again_is_measured_again(said):
    loop = Loop()
    loop.train(2, loop.other.step)
    loop.train(2, loop.watched.step)
    assert len(no_steps(said())) == 1
    assert len(loop.monitor.history()) == 2
    assert not _global_optimizer_post_hooks
    loop.monitor.close()


# Loops that are in order


def test_many_micro_batches_are_no_missing_steps(said):
    loop = Loop(stop=None)
    loop.train(16, loop.watched.step, accumulate=64)
    assert said() == []
    assert not _global_optimizer_post_hooks
    loop.monitor.close()


def test_one_step_an_epoch_made_after_it_is_in_order(said):
    loop = Loop(stop=None)
    for _ in range(4):
        loop.model.zero_grad()
        for x, y, _ in loop.loader:
            (F.cross_entropy(loop.model(x), y) / 40).backward()
        loop.watched.step()
    assert len(loop.monitor.history()) == 3  # the last step is followed by no end of an epoch
    assert [record["step"] for record in loop.monitor.history()] == [1, 2, 3]
    assert all(record["priority"] is not None for record in loop.monitor.history()[1:])
    assert said() == []
    loop.monitor.close()


def test_an_attack_of_many_passes_is_no_missing_step(said):
    loop = Loop()
    for x, y, _ in loop.loader:
        attacked = x.clone().requires_grad_()
        for _ in range(60):
            loop.model.zero_grad()
            F.cross_entropy(loop.model(attacked), y).backward()
        loop.model.zero_grad()
        F.cross_entropy(loop.model(attacked.detach()), y).backward()
        loop.watched.step()
        if len(no_steps(said())):
            break
    assert no_steps(said()) == []
    loop.monitor.close()


def test_a_step_of_many_passes_is_no_missing_step(said):
    data, model = make_data(torch.float32), mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=100)
    loader = make_loader(data, batch_size=30)
    monitor = GradientMonitor(model, optimizer, loader)
    for _ in range(2):
        for x, y, _ in loader:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert said() == []
    monitor.close()


def test_validation_with_gradients_between_steps_is_in_order(said):
    loop = Loop()
    held_out = make_loader(make_data(torch.float32), batch_size=1)
    for x, y, _ in loop.loader:
        loop.model.zero_grad()
        F.cross_entropy(loop.model(x), y).backward()
        loop.watched.step()
        for inputs, labels, _ in held_out:
            loop.model(inputs).argmax(1).eq(labels).sum()
    assert said() == []
    loop.monitor.close()


def test_steps_that_a_scaler_skips_at_first_are_in_order(said):
    loop = Loop()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10_000)
    for _ in range(3):
        for x, y, _ in loop.loader:
            loop.watched.zero_grad()
            scaler.scale(F.cross_entropy(loop.model(x), y)).backward()
            scaler.step(loop.watched)
            scaler.update()
    assert no_steps(said()) == []
    assert loop.monitor.history()
    loop.monitor.close()


def test_optimizers_that_take_turns_are_in_order(said):
    loop = Loop()
    turn = 0

    def step():
        nonlocal turn
        turn += 1
        (loop.watched if turn % 3 == 0 else loop.other).step()

    loop.train(4, step)
    assert said() == []
    loop.monitor.close()


# What is trained changes during the run


def test_parameters_that_are_thawed_and_added_are_followed(said):
    torch.manual_seed(0)
    data = separable()
    model = nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 5))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), 0.05)
    loader = make_loader(data, batch_size=20, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, scope="all", every=1)
    for epoch in range(3):
        if epoch == 1:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": model[0].parameters()})
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert moved == [epoch > 0] * 2 + [True] * 2
        assert monitor.latest["coverage"] == 1
    weights = model[0].weight.detach().clone()
    assert monitor.restore_best() is not None
    assert not torch.equal(weights, model[0].weight)
    assert said() == []
    monitor.close()
