"""One test per defect of the stop that was found, named after what the user saw."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from prioritymonitor import ArgumentValueError, GradientMonitor, StopReason
from tests.support.cases import make_data, make_loader, mlp


def train(loader, model, epochs, rate=0.05, loss=F.cross_entropy, **options):
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    monitor = GradientMonitor(model, optimizer, loader, **options)
    for _ in range(epochs):
        for x, y, *_ in loader:
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
        if monitor.should_stop:
            break
    return monitor


@pytest.mark.parametrize("rate", [0.01, 0.03])
def test_clean_data_with_many_classes_is_not_stopped_while_it_is_learnt(rate):
    """All margins are tiny and negative before anything is learnt, whatever the labels."""
    torch.manual_seed(0)
    classes = 200
    centers, labels = torch.randn(classes, 50), torch.arange(1600) % classes
    inputs = centers[labels] + 0.5 * torch.randn(1600, 50)
    model = nn.Sequential(nn.Linear(50, 256), nn.ReLU(), nn.Linear(256, classes))
    loader = DataLoader(TensorDataset(inputs, labels), 64, shuffle=True)
    monitor = train(loader, model, 20, rate)
    assert not monitor.should_stop
    monitor.close()


def test_a_first_batch_that_is_not_finite_does_not_end_the_measuring():
    torch.manual_seed(0)
    data = make_data(torch.float32)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    loader = make_loader(data, batch_size=10)
    monitor = GradientMonitor(model, optimizer, loader)
    for epoch in range(5):
        for number, (x, y, _) in enumerate(loader):
            optimizer.zero_grad()
            first = epoch == number == 0
            F.cross_entropy(model(x * torch.inf if first else x), y).backward()
            if not first:
                optimizer.step()
    assert monitor.decision.reason is not StopReason.FAILED
    assert monitor.restore_best() is not None
    assert torch.tensor([record["priority"] for record in monitor.history()]).isfinite().all()
    monitor.close()


def test_a_loss_below_zero_does_not_end_the_measuring():
    loader = make_loader(make_data(torch.float32), batch_size=10)

    def loss(logits, labels):
        return F.nll_loss(logits.softmax(1), labels)

    def criterion(logits, labels):
        return -logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)

    monitor = train(loader, mlp(), 4, loss=loss, criterion=criterion)
    assert monitor.decision.reason is not StopReason.FAILED
    monitor.close()


def test_epochs_over_part_of_the_data_add_up_to_the_priority_of_whole_ones():
    """The clean priority can't be more than the loss that the training began with."""
    torch.manual_seed(0)
    data = make_data(torch.float32, samples=200)
    data.inputs[torch.arange(200), data.true] += 3
    dataset = TensorDataset(data.inputs, data.true)
    loader = DataLoader(dataset, 10, sampler=RandomSampler(dataset, num_samples=20))
    monitor = train(loader, mlp(), 100, stop=None)
    first = monitor.history()[0]["train_loss"]
    assert 0 < monitor.history()[-1]["priority"] < first * 1.1
    monitor.close()


def test_a_single_first_sample_does_not_set_the_tolerance():
    """Its loss may be anything; 128 samples tell what the training began with."""
    data = make_data(torch.float32, samples=40)
    loader = make_loader(data, batch_size=1)
    monitor = train(loader, mlp(), 1, rate=1e-6)
    (record,) = monitor.history()
    assert record["initial_loss"] == pytest.approx(record["train_loss"], rel=1e-3)
    monitor.close()


def test_a_run_without_classes_is_resumed():
    inputs, targets = torch.randn(40, 7), torch.randn(40, 5)
    loader = DataLoader(TensorDataset(inputs, targets), 10)
    first, second = (
        train(loader, mlp(), epochs, loss=criterion, criterion=criterion)
        for epochs, criterion in ((2, nn.MSELoss()), (0, nn.MSELoss()))
    )
    second.load_state_dict(first.state_dict())
    assert second.decision.reason is StopReason.NO_CLASSES
    first.close()
    second.close()


def test_a_state_from_before_the_first_epoch_leaves_no_suspects_behind():
    data = make_data(torch.float32)
    loader = make_loader(data, batch_size=10)
    fresh = train(loader, mlp(), 0, noisy=data.noisy)
    state = fresh.state_dict()
    fresh.close()
    used = train(loader, mlp(), 3, stop=None, noisy=data.noisy)
    assert used.suspects(min_score=0)
    used.load_state_dict(state)
    assert used.suspects(min_score=0) == []
    used.close()


def test_a_state_of_another_version_is_refused_before_anything_changes():
    loader = make_loader(make_data(torch.float32), batch_size=10)
    monitor = train(loader, mlp(), 2, stop=None)
    before = monitor.history()
    with pytest.raises(ArgumentValueError, match="version 1"):
        monitor.load_state_dict(monitor.state_dict() | {"version": 1})
    assert monitor.history() == before
    monitor.close()
