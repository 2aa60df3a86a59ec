"""With all parameters measured: nothing stays behind, nothing is copied along, memory is flat."""

import copy
import gc
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import GradientMonitor
from tests.capture.test_any_loop import Net, sgd
from tests.capture.test_no_disturbance import assert_identical, attributes, hooks
from tests.support.cases import INPUTS, make_data, make_loader
from tests.support.followed import WAYS

ENGINES = ["closed_form", "func", "opacus"]
engines = pytest.mark.parametrize("engine", ENGINES)


class Dropping(Net):
    """Draws random numbers in the forward pass."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.first(x)).relu()))


def setting(model=None):
    model = model or Net()
    return model, sgd(model), make_loader(make_data(torch.float32), batch_size=12)


def train(model, optimizer, loader):
    losses = []
    for x, y, _ in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses


@engines
@pytest.mark.parametrize("every", [1, 2])
def test_training_is_bit_identical_with_all_parameters_measured(engine, every):
    results = []
    for is_watched in (False, True):
        torch.manual_seed(3)
        model, optimizer, loader = setting(Dropping())
        options = {"scope": "all", "engine": engine, "every": every}
        monitor = GradientMonitor(model, optimizer, loader, **options) if is_watched else None
        losses = train(model, optimizer, loader) + train(model, optimizer, loader)
        if monitor is not None:
            assert monitor.latest["coverage"] == 1
            monitor.close()
        results.append(
            {
                "losses": losses,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "gradients": [p.grad for p in model.parameters()],
                "random": torch.get_rng_state(),
            }
        )
    assert_identical(*results)


def all_hooks(model, optimizer):
    on_parameters = sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())
    return hooks(model, optimizer) + on_parameters


WHEN = ["after a step", "between backward pass and step", "between the passes", "in an epoch's end"]


@engines
@pytest.mark.parametrize("when", WHEN)
def test_close_leaves_everything_as_found_whenever_it_comes(engine, when):
    model, optimizer, loader = setting()
    things = [model, *model.modules(), optimizer]
    train(model, optimizer, loader)
    before = [attributes(thing) for thing in things], all_hooks(model, optimizer)
    names = [set(dir(p)) for p in model.parameters()]
    monitor = GradientMonitor(model, optimizer, loader, scope="all", engine=engine, every=1)
    for number, (x, y, _) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if number == 2 and when == "between the passes":
            monitor.close()
        loss.backward()
        if number == 2 and when == "between backward pass and step":
            monitor.close()
        optimizer.step()
        if number == 2 and when == "after a step":
            monitor.close()
    monitor.close()
    assert ([attributes(thing) for thing in things], all_hooks(model, optimizer)) == before
    assert [set(dir(p)) for p in model.parameters()] == names
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())
    train(model, optimizer, loader)


@engines
def test_copies_and_saved_models_are_free_of_the_monitor(engine):
    model, optimizer, loader = setting()
    monitor = GradientMonitor(model, optimizer, loader, scope="all", engine=engine, every=1)
    x, y, _ = next(iter(loader))
    F.cross_entropy(model(x), y).backward()  # in the middle of a step
    twin, file = copy.deepcopy(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        other.zero_grad()
        F.cross_entropy(other(x), y).backward()
        assert torch.equal(other.first.weight.grad, model.first.weight.grad)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    optimizer.step()
    assert monitor.latest["coverage"] == 1
    assert "steps=1," in repr(monitor)
    monitor.close()


def held():
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kept", [False, True], ids=["dropped at once", "kept until the step"])
def test_passes_that_are_never_trained_on_pile_nothing_up(way, kept):
    model, optimizer, _ = setting()
    monitor = GradientMonitor(model, optimizer, every=1, **WAYS[way])
    x, y = torch.randn(12, INPUTS), torch.randint(5, (12,))
    counts = []
    for step in range(200):
        optimizer.zero_grad()
        metrics = [model(x) for _ in range(3)]
        if not kept:
            del metrics
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step in (20, 199):
            monitor.latest  # noqa: B018  reads what waits for the host
            counts.append(held())
    assert counts[1] <= counts[0]
    monitor.close()


@pytest.mark.parametrize("way", WAYS)
def test_passes_of_one_long_step_are_let_go(way):
    model, optimizer, _ = setting()
    monitor = GradientMonitor(model, optimizer, every=1, **WAYS[way])
    x = torch.randn(12, INPUTS)
    counts = []
    for number in range(200):
        model(x)  # a metric pass with gradients, and no step at all
        if number in (20, 199):
            counts.append(held())
    assert counts[1] <= counts[0] + 5
    monitor.close()
