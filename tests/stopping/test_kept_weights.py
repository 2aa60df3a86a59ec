"""The kept weights are the running average of the right epoch, buffers included."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import (
    ArgumentValueError,
    Decision,
    GradientMonitor,
    PriorityMonitorError,
    StopReason,
    StopRule,
)
from prioritymonitor.stopping.kept_weights import AVERAGED_EPOCHS, WeightKeeper
from tests.capture.test_no_disturbance import assert_identical
from tests.support.cases import INPUTS, make_data, make_loader, mlp
from tests.support.separable import watched


def with_batch_norm():
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


def train(
    model, epochs, monitored=True, after_step=lambda: None, after_epoch=lambda: None, **options
):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = make_loader(make_data(torch.float32), batch_size=12, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, **options) if monitored else None
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            after_step()
        after_epoch()
    return monitor


def each_epoch_is_the_best(history):
    return Decision(False, StopReason.CLEAN_DOMINATES, len(history), len(history), "so")


class Oracle:
    """The running average of a model's weights, and what it was after each epoch."""

    def __init__(self, model, steps_per_epoch):
        self._model = model
        self._decay = 1 - 1 / (AVERAGED_EPOCHS * steps_per_epoch)
        self._steps = 0
        self._average = {}
        self.after = []

    @torch.no_grad()
    def step(self):
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        for name, current in self._model.state_dict().items():
            average = self._average.get(name, current)
            mixes = current.is_floating_point()
            self._average[name] = decay * average + (1 - decay) * current if mixes else current
            self._average[name] = self._average[name].clone()
        self._steps += 1

    def end_epoch(self):
        self.after.append(dict(self._average))


def assert_weights(model, expected):
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_before_the_curve_falls_restoring_gives_the_average_at_the_end_of_the_present_epoch():
    model = with_batch_norm()
    oracle = Oracle(model, 5)
    monitor = train(
        model, 4, stop=each_epoch_is_the_best, after_step=oracle.step, after_epoch=oracle.end_epoch
    )
    assert monitor.restore_best() == 4
    assert_weights(model, oracle.after[3])
    monitor.close()


def test_restoring_the_weights_of_every_epoch_and_going_on_gives_each_its_own():
    model = with_batch_norm()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = make_loader(make_data(torch.float32), batch_size=12, shuffle=True)
    oracle = Oracle(model, 5)
    with GradientMonitor(model, optimizer, loader, stop=each_epoch_is_the_best) as monitor:
        for epoch in range(1, 5):
            for x, y, _ in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                oracle.step()
            oracle.end_epoch()
            trained = copy.deepcopy(model.state_dict())
            assert monitor.restore_best() == monitor.best_epoch == epoch
            assert_weights(model, oracle.after[-1])
            model.load_state_dict(trained)


def test_once_stopped_the_weights_are_the_average_at_the_end_of_the_named_epoch():
    _, model, optimizer, loader, monitor = watched(stop=StopRule())
    oracle = Oracle(model, 20)
    while not monitor.should_stop:
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            oracle.step()
        oracle.end_epoch()
        assert len(oracle.after) < 60
    decision = monitor.decision
    assert decision.best_epoch == decision.peak_epochs[0] < decision.epoch - 2
    assert monitor.restore_best() == decision.best_epoch
    assert_weights(model, oracle.after[decision.best_epoch - 1])
    monitor.close()


def test_last_keeps_the_weights_as_the_optimizer_left_them():
    model = with_batch_norm()
    kept = []
    monitor = train(
        model,
        4,
        keep_best="last",
        after_epoch=lambda: kept.append(copy.deepcopy(model.state_dict())),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    epoch = monitor.restore_best()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[epoch - 1][name]), name
    monitor.close()


def test_keeping_nothing_makes_restoring_an_error():
    monitor = train(mlp(), 1, keep_best=None)
    with pytest.raises(PriorityMonitorError, match="keep_best"):
        monitor.restore_best()
    monitor.close()


def test_restoring_before_the_first_epoch_changes_nothing_and_says_so(said):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    monitor = train(model, 0)
    assert monitor.restore_best() is None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert len(said()) == 1
    monitor.close()


def test_restoring_works_after_close():
    model = mlp()
    monitor = train(model, 3)
    monitor.close()
    assert monitor.restore_best() == monitor.best_epoch


def held(epochs, kept=()):
    """A keeper that has held the weights of so many epochs; weights are the epoch's number.

    Args:
        epochs: How many.
        kept: Pairs: in which epoch, which one was to be kept.
    """
    model = mlp()
    keeper = WeightKeeper(model, averaged=False)
    for epoch in range(1, epochs + 1):
        with torch.no_grad():
            model[0].weight.fill_(epoch)
        keeper.end_epoch()
        keeper.hold(epoch)
        for now, one in kept:
            if now == epoch:
                keeper.keep(one)
    return model, keeper


def test_the_weights_of_the_two_latest_epochs_and_of_the_kept_one_are_held():
    for epochs, kept, found, expected in (
        (0, (), (), []),
        (1, (), (), [1]),
        (5, (), (), [4, 5]),
        (3, [(3, 2)], (2,), [2, 3]),
        (6, [(3, 2)], (2,), [2, 5, 6]),
        (6, [(3, 2), (6, 5)], (5,), [2, 5, 6]),
        (7, [(3, 2), (6, 5)], (5,), [5, 6, 7]),
        (6, [(3, 2), (6, 3)], (2,), [2, 5, 6]),  # the third is held no more
    ):
        _, keeper = held(epochs, kept)
        assert keeper.kept == found
        assert [one for one in range(10) if keeper.has(one)] == expected
        assert not keeper.has(None)


def test_the_weights_of_each_epoch_that_may_be_the_best_are_kept():
    model, keeper = held(3, [(2, 1)])
    keeper.keep(3, 1)
    for epoch in (4, 5, 6):
        keeper.end_epoch()
        keeper.hold(epoch)
        keeper.keep(3, 1)
    assert [one for one in range(10) if keeper.has(one)] == [1, 3, 5, 6]
    keeper.restore(1)
    assert (model[0].weight == 1).all()
    keeper.keep(6)
    keeper.freeze()
    assert [*keeper.state_dict()["held"]] == [6]


@pytest.mark.parametrize("epoch", [2, 5, 6])
def test_each_epoch_that_is_held_can_be_restored(epoch):
    model, keeper = held(6, [(3, 2)])
    keeper.restore(epoch)
    assert (model[0].weight == epoch).all()


def test_what_is_held_does_not_change_with_the_model():
    model = nn.Linear(2, 2)
    keeper = WeightKeeper(model, averaged=False)
    before = model.weight.detach().clone()
    keeper.hold(1)
    with torch.no_grad():
        model.weight.zero_()
    keeper.restore(1)
    assert torch.equal(model.weight, before)


def test_after_the_stop_nothing_is_averaged_and_only_the_kept_weights_are_held():
    model = mlp()
    keeper = WeightKeeper(model, averaged=True)
    for epoch in (1, 2, 3):
        keeper.update(5)
        keeper.end_epoch()
        keeper.hold(epoch)
        if epoch == 2:
            keeper.keep(1)
    keeper.freeze()
    keeper.update(5)
    keeper.end_epoch()
    keeper.hold(4)
    keeper.keep(4)
    assert keeper.kept == (1,)
    assert [*keeper.state_dict()["held"]] == [1]
    assert keeper.state_dict()["average"] == {}


def test_a_resumed_keeper_holds_and_averages_the_same():
    def train_one(model, keeper, epoch):
        for step in range(5):
            with torch.no_grad():
                model[0].weight.fill_(epoch + step / 5)
            keeper.update(5)
        keeper.end_epoch()
        keeper.hold(epoch)
        keeper.keep(min(epoch, 2))

    models = [mlp()]
    models.append(copy.deepcopy(models[0]))
    keepers = [WeightKeeper(model, averaged=True) for model in models]
    for epoch in range(1, 5):
        train_one(models[0], keepers[0], epoch)
    keepers[1].resuming(copy.deepcopy(keepers[0].state_dict()))()
    for epoch in (5, 6):
        for model, keeper in zip(models, keepers, strict=True):
            train_one(model, keeper, epoch)
    assert [*keepers[0].state_dict()["held"]] == [2, 5, 6]
    assert_identical(*(keeper.state_dict() for keeper in keepers))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update(held={}), "the kept weights are missing"),
        (lambda state: state.update(kept=[7]), "the kept weights are missing"),
        (lambda state: state.update(kept=[2.0]), "damaged"),
        (lambda state: state["held"].update({"2": state["held"][2]}), "damaged"),
        (
            lambda state: state["held"][2].update({"0.bias": torch.zeros(3)}),
            r"0\.bias of shape \[3\]",
        ),
        (lambda state: state["held"][3].update(new=torch.zeros(3)), "a weight new of shape"),
        (lambda state: state["held"][3].pop("0.bias"), "some of the kept weights are missing"),
        (lambda state: state["average_names"].append("0.bias"), "some of the kept weights"),
        (
            lambda state: state["held"][2].update({"0.bias": torch.zeros(8, dtype=torch.int64)}),
            r"0\.bias of shape \[8\] and torch\.int64",
        ),
    ],
)
def test_a_damaged_state_is_refused(damage, message):
    _, keeper = held(3, [(3, 2)])
    state = copy.deepcopy(keeper.state_dict())
    damage(state)
    fresh = WeightKeeper(mlp(), averaged=False)
    with pytest.raises(ArgumentValueError, match=message):
        fresh.resuming(state)()


def test_half_precision_weights_are_averaged_in_single_precision():
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    keeper = WeightKeeper(model, averaged=True)
    with torch.no_grad():
        model.weight.fill_(1.0)
        for _ in range(400):
            keeper.update(1000)
        model.weight.fill_(1.01)
        for _ in range(100):
            keeper.update(1000)
    average = keeper.state_dict()["average"]["weight"]
    assert average.dtype == torch.float32
    assert 1.0 < average.item() < 1.01


def test_a_long_epoch_is_averaged_in_strides_to_the_same_end():
    ends = []
    for strides in (1, 5):
        model = nn.Linear(1, 1, bias=False)
        keeper = WeightKeeper(model, averaged=True)
        with torch.no_grad():
            for step in range(500):
                model.weight.fill_(step // strides * strides / 500)
                keeper.update(100 if strides == 5 else 20 * 5)
        ends.append(keeper.state_dict()["average"]["weight"].item())
    assert ends[0] == pytest.approx(ends[1], abs=0.02)


def test_frozen_parameters_are_left_alone():
    model = mlp()
    model[0].weight.requires_grad_(False)
    keeper = WeightKeeper(model, averaged=True)
    keeper.update(5)
    assert "2.weight" in keeper.state_dict()["average"]
    assert "0.weight" not in keeper.state_dict()["average"]


def test_an_infinite_buffer_stays_as_it_is():
    model = mlp()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    keeper = WeightKeeper(model, averaged=True)
    for _ in range(3):
        keeper.update(5)
    keeper.end_epoch()
    keeper.hold(1)
    keeper.restore(1)
    assert model.mask.tolist() == [0.0, float("-inf")]


def test_a_head_that_was_replaced_is_named_and_no_layer_is_overwritten():
    model = mlp()
    monitor = train(model, 3)
    model[2] = nn.Sequential(nn.Linear(8, 5))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PriorityMonitorError, match=r"2\.weight.*left as it is"):
        monitor.restore_best()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    monitor.close()
