"""The observer does not disturb: training is bit for bit what it is without the monitor."""

import copy
import io
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor, StopRule
from tests.support.cases import INPUTS, make_data, make_loader, mlp
from tests.support.observed import labels_seen, observing


class Everything(nn.Module):
    """Batch statistics, dropout and an in-place activation."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(INPUTS, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.3)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x))


class Augmented(torch.utils.data.Dataset):
    """Draws from every source of randomness."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data.given)

    def __getitem__(self, index):
        noise = torch.randn(INPUTS) * 0.1 + random.random() * 0.01 + np.random.rand() * 0.01
        return self.data.inputs[index] + noise, self.data.given[index]


def train(optimizer_kind, loader_options, folder=None):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Everything()
    optimizer = optimizer_kind(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    loader = DataLoader(Augmented(make_data(torch.float32)), batch_size=8, **loader_options)
    options = {"every": 1, "log_dir": folder, "stop": StopRule(patience=2)}
    monitor = GradientMonitor(model, optimizer, loader, **options) if folder else None
    seen, losses = [], []
    for _ in range(6):
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seen.append(y)
            losses.append(loss.item())
        scheduler.step()
        if monitor is not None:
            assert monitor.latest
            assert monitor.history()
            assert (monitor.samples()["visits"] > 0).any()
            monitor.suspects(3)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "gradients": [p.grad for p in model.parameters()],
        "seen": torch.cat(seen),
        "losses": torch.tensor(losses),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
    }
    if monitor is not None:
        monitor.close()
    return state


def assert_identical(one, other, path=""):
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_identical(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f"{path}/{number}")
    else:
        assert one == other or (one != one and other != other), path  # NaN equals NaN here


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 1e-2, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_bit_identical_with_and_without_the_monitor(optimizer, workers, tmp_path):
    options = {"shuffle": True, "num_workers": workers, "drop_last": True}
    alone = train(optimizer, options)
    watched = train(optimizer, options, folder=tmp_path)
    assert_identical(alone, watched)


def attributes(thing):
    return {key: id(value) for key, value in vars(thing).items()}


def hooks(model, optimizer):
    count = sum(
        len(getattr(module, name))
        for module in model.modules()
        for name in vars(module)
        if name.endswith("_hooks") and isinstance(getattr(module, name), dict)
    )
    count += sum(len(p._backward_hooks or ()) for p in model.parameters())
    count += len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
    return count


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["close", "context manager", "exception"])
def test_close_leaves_model_optimizer_loader_and_parameters_as_found(way, workers):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    criterion = nn.CrossEntropyLoss()
    loader = make_loader(
        make_data(torch.float32),
        batch_size=8,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    things = [model, *model.modules(), *model.parameters(), optimizer, criterion, loader]

    def train_epoch():
        for x, y, _ in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()

    train_epoch()
    iterator_type = type(loader._iterator)
    hooks_before = hooks(model, optimizer)
    before = [attributes(thing) for thing in things]
    try:
        with GradientMonitor(model, optimizer, loader, criterion=criterion) as monitor:
            assert hooks(model, optimizer) > hooks_before
            train_epoch()
            if way == "close":
                monitor.close()
                monitor.close()
            if way == "exception":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert hooks(model, optimizer) == hooks_before
    assert [attributes(thing) for thing in things] == before
    assert type(loader._iterator) is iterator_type
    train_epoch()
    assert len(monitor.history()) <= 1


def test_no_attribute_appears_on_model_parameters_or_optimizer_while_attached():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=8)
    things = [*model.modules(), *model.parameters(), optimizer]
    before = [set(dir(thing)) for thing in things]
    with GradientMonitor(model, optimizer, loader):
        assert [set(dir(thing)) for thing in things] == before


@pytest.fixture
def attached():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    loader = make_loader(make_data(torch.float32), batch_size=20)
    with GradientMonitor(model, optimizer, loader, every=1) as monitor:
        x, y, _ = next(iter(loader))
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield model, optimizer, loader, monitor


def test_a_deep_copy_of_the_model_is_not_watched(attached):
    model, own, loader, _ = attached
    twin = copy.deepcopy(model)
    x, y, _ = next(iter(loader))
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    with observing() as seen:
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
        assert seen.samples == 0
        F.cross_entropy(model(x), y).backward()
        own.step()
        assert seen.samples == len(x)  # so this would be noticed


def test_an_averaged_model_can_be_made_while_attached(attached):
    model, *_ = attached
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)


def test_the_model_can_be_saved_whole_and_loaded_while_attached(attached):
    model, *_ = attached
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x = torch.randn(3, INPUTS)
    assert torch.equal(loaded(x), model(x))


def test_the_optimizer_can_be_pickled_and_copied_while_attached(attached):
    _, optimizer, *_ = attached
    assert_identical(
        pickle.loads(pickle.dumps(optimizer)).state_dict(), copy.deepcopy(optimizer).state_dict()
    )


def test_a_deep_copy_of_the_loader_is_not_watched(attached):
    _model, _optimizer, loader, monitor = attached
    twin = copy.deepcopy(loader)
    assert len(list(twin)) == 3
    assert monitor.history() == []
    assert list(iter(loader))  # the original still works


def test_two_monitors_may_share_a_loader():
    data = make_data(torch.float32)
    loader = make_loader(data, batch_size=20)
    models = [mlp(), mlp()]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in models]
    monitors = [GradientMonitor(m, o, loader) for m, o in zip(models, optimizers, strict=True)]
    for _ in range(2):
        for x, y, _ in loader:
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    monitors[0].close()
    assert "_get_iterator" in vars(loader)
    monitors[1].close()
    assert "_get_iterator" not in vars(loader)
    for monitor in monitors:
        assert len(monitor.history()) == 2
        given = labels_seen(monitor)
        assert given == dict(enumerate(data.given.tolist()))


def test_users_batches_are_the_very_objects_the_loader_makes():
    made = []

    def collate(samples):
        made.append(torch.utils.data.default_collate(samples))
        return made[-1]

    dataset = TensorDataset(torch.randn(9, INPUTS), torch.arange(9) % 5)
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate)
    model = mlp()
    with GradientMonitor(model, torch.optim.SGD(model.parameters(), 0.1), loader):
        for got, expected in zip(loader, iter(lambda: made[-1], None), strict=False):
            assert got is expected
