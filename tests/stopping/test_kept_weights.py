"""The kept weights are the running average of the right epoch, buffers included."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from prioritymonitor import GradientMonitor, PriorityMonitorError
from prioritymonitor.stopping.kept_weights import AVERAGE_LAG, AVERAGED_EPOCHS, WeightKeeper
from tests.support.cases import INPUTS, make_data, make_loader, mlp


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


def test_the_average_equals_torchs_averaged_model_with_the_same_decay():
    model = with_batch_norm()
    horizon = AVERAGED_EPOCHS * 5

    def decayed(averages, currents, count):
        count = int(count)
        decay = min(1 - 1 / horizon, (1 + count) / (10 + count))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)

    reference = AveragedModel(model, multi_avg_fn=decayed, use_buffers=True)

    def averaging():
        with torch.no_grad():
            reference.update_parameters(model)

    kept = []
    monitor = train(
        model,
        4,
        after_step=averaging,
        after_epoch=lambda: kept.append(copy.deepcopy(reference.module.state_dict())),
    )
    epoch = monitor.restore_best()
    # Torch's class starts from the first step's weights, ours from the weights before it.
    taken = kept[min(epoch + AVERAGE_LAG, 4) - 1]
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor.float(), taken[name].float(), atol=2e-3), name
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


def test_the_weights_of_one_epoch_are_kept():
    model = mlp()
    keeper = WeightKeeper(model, averaged=False)
    assert keeper.epoch is None
    for epoch in (1, 2, 3):
        with torch.no_grad():
            model[0].weight.fill_(epoch)
        keeper.end_epoch()
        if epoch < 3:
            keeper.keep(epoch)
    assert keeper.epoch == 2
    keeper.restore()
    assert (model[0].weight == 2).all()


def test_after_the_stop_nothing_is_averaged():
    model = mlp()
    keeper = WeightKeeper(model, averaged=True)
    keeper.update(5)
    keeper.end_epoch()
    keeper.keep(1)
    keeper.freeze()
    keeper.update(5)
    keeper.end_epoch()
    assert keeper.epoch == 1
    assert keeper.state_dict()["average"] == {}


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
    keeper.keep(1)
    keeper.restore()
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
