"""A plain loop that never calls the model itself; the oracle is the same training that does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import GradientMonitor
from tests.integrations import same_training as same


class OfTwo(nn.Module):
    """Gets two arguments."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, offset):
        return self.net(x + offset)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = same.model()
        self.encoder, self.head = self.net[:2], self.net[2]
        self.of_two = OfTwo(self.net)

    def forward(self, x):
        return self.head(F.relu(self.net[0](x)))


CALLS = {
    "forward": lambda model, x: model.forward(x),
    "a part": lambda model, x: model.net(x),
    "a part of two arguments": lambda model, x: model.of_two(x, torch.zeros(1)),
    "a part by keywords": lambda model, x: model.of_two(x=x, offset=torch.zeros(1)),
    "encoder and head": lambda model, x: model.head(model.encoder(x)),
    "with a view": lambda model, x: model.head(model.encoder(x).view(-1, 16, 16).flatten(1)),
    "all layers": lambda model, x: model.net[2](model.net[1](model.net[0](x))),
    "with a function": lambda model, x: model.head(F.relu(model.net[0](x))),
}


@pytest.fixture(scope="module")
def expected():
    return {accumulate: same.in_a_plain_loop(accumulate) for accumulate in (1, 2)}


def watched(call, accumulate=1, loss=F.cross_entropy, before=None, **options):
    model, loader = Whole(), same.loader_of(same.pairs())
    optimizer = same.optimizer_of(model)
    monitor = GradientMonitor(model, optimizer, loader, **options)
    if before is not None:
        before(model)
    for _ in range(same.MOST_EPOCHS):
        for number, (x, y) in enumerate(loader, start=1):
            (loss(call(model, x), y) / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if monitor.should_stop:
            break
    curve, visits = same.curve_of(monitor), set(monitor.samples()["visits"])
    assert visits == {len(monitor.history())}
    monitor.close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return curve


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_called_instead_of_the_model_equals_its_call(call, accumulate, expected):
    same.assert_same(watched(CALLS[call], accumulate), expected[accumulate])


@pytest.mark.parametrize("call", ["a part", "encoder and head"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy])
def test_so_it_does_with_the_loss_passed_in(call, loss, expected):
    same.assert_same(watched(CALLS[call], loss=loss, criterion=loss), expected[1])


BEFORE = {
    "the model itself": lambda model, x: model(x),
    "the part": lambda model, x: model.net(x),
    "another part": lambda model, x: model.encoder(x),
}


@pytest.mark.parametrize("before", BEFORE)
def test_passes_for_a_metric_before_the_training_change_nothing(before, expected):
    def tried(model):
        x, y = same.pairs()[:50]
        F.cross_entropy(BEFORE[before](model, x), y % same.CLASSES).item()

    same.assert_same(watched(CALLS["a part"], before=tried), expected[1])


def test_two_passes_for_one_backward_pass_are_both_counted():
    def both(model, x):
        return torch.cat([model.net(x[:20]), model.net(x[20:])])

    same.assert_same(watched(both), watched(lambda model, x: both(_Itself(model), x)))


class _Itself:
    """Its network is the model itself."""

    def __init__(self, model):
        self.net = model
