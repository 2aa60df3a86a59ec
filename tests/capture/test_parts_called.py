"""A loop that calls parts of the model, or its `forward`, and never the model itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import GradientMonitor, StopReason
from tests.support.cases import CLASSES, INPUTS, make_data, make_loader, mlp
from tests.support.followed import Followed, Net
from tests.support.observed import labels_seen
from tests.support.separable import separable
from tests.support.small_run import SmallRun


class Whole(nn.Module):
    """Holds a network, as a module of Lightning's does."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.loss = nn.CrossEntropyLoss(reduction="none")

    def forward(self, x):
        return self.net(x)


class Split(nn.Module):
    """Its layers are called one after the other."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU())
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.body(x))


class LogSoftmax(Whole):
    def __init__(self, net):
        super().__init__(nn.Sequential(net, nn.LogSoftmax(-1)))


CALLS = {
    "its own forward": lambda model, x: model.forward(x),
    "its network": lambda model, x: model.net(x),
}


def wide():
    return nn.Sequential(nn.Linear(INPUTS, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def train(model, call, epochs, loss=F.cross_entropy, **options):
    data = separable()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(
        data, batch_size=20, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    monitor = GradientMonitor(model, optimizer, loader, **options)
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            loss(call(model, x), y).mean().backward()
            optimizer.step()
        if monitor.should_stop:
            break
    return monitor, data


def stopped(messages):
    return [message for message in messages if message.startswith("stop after")]


@pytest.mark.parametrize("call", CALLS)
def test_a_part_that_gets_the_data_is_followed_with_everything(call, said):
    torch.manual_seed(0)
    monitor, data = train(Whole(wide()), CALLS[call], epochs=60, noisy=separable().noisy)
    torch.manual_seed(0)
    called, _ = train(Whole(wide()), lambda model, x: model(x), epochs=60, noisy=separable().noisy)
    assert monitor.decision.stop
    assert called.decision.stop
    assert monitor.decision.epoch == called.decision.epoch
    assert (monitor.samples()["vote"] >= 0).all()
    assert set(monitor.samples()["visits"]) == {len(monitor.history())}
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert monitor.latest["contribution_clean"] != 0
    suspects = {suspect.index for suspect in monitor.suspects()}
    others = {suspect.index for suspect in called.suspects()}
    assert suspects == others
    assert said() == stopped(said())
    monitor.close()
    called.close()


def test_without_the_data_all_but_the_votes_works_and_that_is_said(said):
    torch.manual_seed(0)
    model = Split()
    first = model.body[0]
    monitor, data = train(
        model, lambda model, x: model.head(F.linear(x, first.weight).relu()), epochs=4
    )
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert monitor.history()[-1]["priority"] is not None
    assert (monitor.samples()["vote"] == -1).all()
    (message,) = said()
    assert message.startswith("neighbours don't vote: the loop calls parts of the model")
    monitor.close()


def test_log_probabilities_of_a_part_are_followed(said):
    monitor, data = train(LogSoftmax(wide()), CALLS["its network"], epochs=2, loss=F.nll_loss)
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert said() == []
    monitor.close()


@pytest.mark.parametrize("kind", ["passed in", "recognised"])
def test_a_criterion_inside_the_model_is_not_taken_for_it(kind, said):
    model = Whole(wide())
    options = {"criterion": model.loss} if kind == "passed in" else {}
    monitor, data = train(
        model, CALLS["its network"], epochs=2, loss=lambda z, y: model.loss(z, y), **options
    )
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert f"head={model.net[-1]}" in repr(monitor)
    assert said() == []
    monitor.close()


@pytest.mark.parametrize("kind", ["passed in", "recognised"])
def test_a_part_that_was_compiled_is_followed(kind, said):
    model = Whole(torch.compile(wide(), backend="eager"))
    options = {"criterion": model.loss} if kind == "passed in" else {}
    monitor, data = train(
        model, CALLS["its network"], epochs=2, loss=lambda z, y: model.loss(z, y), **options
    )
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert "coherence" in monitor.latest
    assert (monitor.samples()["vote"] >= 0).all()
    assert said() == []
    monitor.close()


def test_losses_go_on_where_no_part_can_be_seen_and_that_is_said(said):
    model = Whole(wide())
    model.net.compile(backend="eager")
    monitor, data = train(
        model,
        CALLS["its network"],
        epochs=4,
        loss=lambda z, y: model.loss(z, y),
        criterion=model.loss,
    )
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert len(monitor.history()) == 4
    assert sum("no linear layer was seen" in message for message in said()) == 1
    monitor.close()


def test_the_head_that_was_named_is_the_one_that_is_followed(said):
    model = Whole(wide())
    monitor, _ = train(model, CALLS["its network"], epochs=1, head=model.net[-1])
    assert "dominance_ratio_population" in monitor.latest or monitor.latest["coherence"] != 0
    assert said() == []
    monitor.close()


class Called(nn.Module):
    """Calls its network for the loop and its oracle."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.head = net.head

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("way", ["head", "closed_form", "func"])
def test_statistics_of_a_part_equal_the_oracle(way):
    model = Called(Net()).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    run = Followed(way, model, optimizer, dtype=torch.float64)
    for number, (x, y, index) in enumerate(run.loader):
        optimizer.zero_grad()
        run.take(x, y, index)
        F.cross_entropy(model.net(x), y).backward()
        run.before_step()
        optimizer.step()
        if number == 0 and way != "head":
            run.forget()  # whose layers were not followed yet
        else:
            run.check(1e-9)
    run.monitor.close()


def test_a_part_that_is_trained_by_another_loss_first_is_not_taken_for_it(said):
    data = separable()
    torch.manual_seed(0)
    model = Whole(wide())
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader)
    for epoch in range(4):
        for x, y, _ in loader:
            optimizer.zero_grad()
            if epoch == 0:
                (model.net[0](x).square().mean() - 1).square().backward()
            else:
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert monitor.decision.reason is not StopReason.FAILED
    assert len(monitor.history()) == 3
    assert (monitor.samples()["visits"] == 3).all()
    assert [message for message in said() if "no gradient was seen at logits" in message] == said()
    monitor.close()


def test_parameters_before_the_part_are_said_to_be_left_out(said):
    model = Split()
    call = lambda model, x: model.head(model.body(x))  # noqa: E731
    monitor, _ = train(model, call, epochs=1, scope="all", every=1)
    assert monitor.latest["contribution_clean"] != 0
    assert sum("cover the torch.nn.modules.linear.Linear" in one for one in said()) == 1
    monitor.close()


def test_steps_inside_a_closure_are_followed(said):
    model = Whole(mlp())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = make_data(torch.float32)
    loader = make_loader(data, batch_size=10, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, every=1)
    for _ in range(2):
        for x, y, _ in loader:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model.net(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert labels_seen(monitor) == dict(enumerate(data.given.tolist()))
    assert said() == []
    monitor.close()


def test_a_model_that_is_called_is_looked_at_no_further():
    run = SmallRun()
    monitor = run.watched()
    run.optimizer.step()  # as some do before a scheduler
    x, y, _ = next(iter(run.loader))
    run.step(x, y)
    assert not any(module._forward_pre_hooks for module in run.model[:-1])
    run.train(1)
    assert (monitor.samples()["visits"] > 0).sum() >= 50
    monitor.close()


def test_nothing_is_left_on_a_model_whose_part_was_followed():
    model = Whole(mlp())
    monitor, _ = train(model, CALLS["its network"], epochs=1)
    monitor.close()
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_training_a_part_is_bit_identical_with_the_monitor():
    def weights(watch):
        torch.manual_seed(0)
        model = Whole(nn.Sequential(wide(), nn.Dropout(0.2)))
        data = separable()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        loader = make_loader(data, batch_size=20, shuffle=True)
        monitor = GradientMonitor(model, optimizer, loader, every=1) if watch else None
        for _ in range(2):
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model.net(x), y).backward()
                optimizer.step()
        if monitor is not None:
            monitor.close()
        return torch.cat([p.flatten() for p in model.parameters()]), torch.get_rng_state()

    with_it, without_it = weights(True), weights(False)
    assert all(map(torch.equal, with_it, without_it))


def test_a_loop_that_was_resumed_goes_on_with_the_part():
    model = Whole(wide())
    monitor, _ = train(model, CALLS["its network"], epochs=3)
    state = monitor.state_dict()
    monitor.close()
    resumed = Whole(wide())
    resumed.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(resumed.parameters(), 1e-2)
    loader = make_loader(separable(), batch_size=20, shuffle=True)
    again = GradientMonitor(resumed, optimizer, loader)
    again.load_state_dict(state)
    visits = again.samples()["visits"].copy()
    for x, y, _ in loader:
        optimizer.zero_grad()
        F.cross_entropy(resumed.net(x), y).backward()
        optimizer.step()
    assert ((again.samples()["visits"] - visits) == 1).all()
    assert again.history()[:3] == monitor.history()
    again.close()


def test_a_model_that_gives_no_logits_says_so_within_50_steps(said):
    class LossOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(INPUTS, CLASSES))

        def forward(self, x, y):
            return F.cross_entropy(x @ self.weight, y)

    model = LossOnly()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader)
    for _ in range(10):
        for x, y, _ in loader:
            optimizer.zero_grad()
            model(x, y).backward()
            optimizer.step()
    assert len(said()) == 1
    assert "no gradient was seen at logits" in said()[0]
    assert monitor.history() == []
    assert monitor.decision.reason is StopReason.TOO_EARLY
    monitor.close()
