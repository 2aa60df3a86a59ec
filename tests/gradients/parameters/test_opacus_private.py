"""The engine `opacus` in a model that is trained with differential privacy: its own numbers."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.optim import SGD

from prioritymonitor import arguments
from prioritymonitor.errors import ArgumentValueError
from prioritymonitor.gradients.parameters.opacus import OpacusEngine, check_model
from tests.support import engine_driver
from tests.support.engine_driver import (
    Driver,
    by_hand,
    largest_difference,
    small_batch,
    small_mlp,
    train,
)

pytest.importorskip("opacus")


measured = functools.partial(engine_driver.measured, OpacusEngine)


def private(model, sizes=(24, 6), **options):
    from opacus import PrivacyEngine

    optimizer = SGD(model.parameters(), lr=0.1)
    count, batch = sizes
    data = torch.utils.data.TensorDataset(*[x.float() for x in small_batch(count)][:1], LABELS)
    loader = torch.utils.data.DataLoader(data, batch_size=batch)
    options = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, **options}
    generator = torch.Generator().manual_seed(0)
    return PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_generator=generator,
        **options,
    )


LABELS = torch.arange(24) % 3


def private_step(model, optimizer, inputs, labels, reduction="mean"):
    optimizer.zero_grad()
    nn.CrossEntropyLoss(reduction=reduction)(model(inputs), labels).backward()
    found = {name: p.grad_sample for name, p in model.named_parameters()}
    optimizer.step()
    return found


def plain_mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("wrap_model", [True, False])
def test_a_private_model_is_measured_from_what_it_has(mode, reduction, wrap_model):
    inner = plain_mlp()
    options = {"grad_sample_mode": mode, "loss_reduction": reduction, "wrap_model": wrap_model}
    wrapped, optimizer, _ = private(inner, poisson_sampling=False, **options)
    model = wrapped if wrap_model else inner
    before = plain_mlp()
    before.load_state_dict(inner.state_dict())
    driver = Driver(OpacusEngine, model, optimizer)
    driver.strength = None if reduction == "mean" else 1.0
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    found = private_step(model, optimizer, x, y, reduction)
    assert driver.errors == driver.problems == []
    prefix = "_module." if wrap_model else ""
    sums, square = by_hand(before, SGD(before.parameters(), 0.1), [(x, y)], driver.weights)
    sums = {prefix + name: both for name, both in sums.items()}
    assert largest_difference(driver.records[0], sums, square) < 1e-5
    assert driver.records[0].coverage == 1
    for name, parameter in model.named_parameters():
        assert parameter.grad_sample is found[name] is not None


def test_private_training_is_the_same_to_the_bit_with_batches_of_any_size():
    finals = []
    for with_engine in (False, True):
        torch.manual_seed(0)
        model, optimizer, loader = private(plain_mlp(), sizes=(24, 2))
        driver = Driver(OpacusEngine, model, optimizer) if with_engine else None
        sizes = []
        for x, y in loader:
            sizes.append(len(y))
            private_step(model, optimizer, x, y)
        finals.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*finals)
    assert driver.errors == driver.problems == []
    counts = [None if record is None else len(record.square) for record in driver.records]
    assert counts == [size or None for size in sizes]
    assert 0 in sizes
    assert len(set(sizes)) > 2
    for record in driver.records:
        both = [] if record is None else [part for pair in record.sums.values() for part in pair]
        assert all(part.isfinite().all() for part in both)


def test_virtual_steps_are_one_step():
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    torch.manual_seed(0)
    model, optimizer, loader = private(plain_mlp(), sizes=(24, 12))
    driver = Driver(OpacusEngine, model, optimizer)
    seen, before = [], []
    with BatchMemoryManager(
        data_loader=loader, max_physical_batch_size=5, optimizer=optimizer
    ) as physical:
        for x, y in physical:
            if not driver.records:
                before.append(copy.deepcopy(model._module.state_dict()))
                seen.append((x, y))
            private_step(model, optimizer, x, y)
    assert driver.errors == driver.problems == []
    assert len(driver.records) == 2
    assert len(seen) > 1
    plain = plain_mlp()
    plain.load_state_dict(before[0])
    weights = driver.weights[: len(seen)]
    sums, square = by_hand(plain, SGD(plain.parameters(), 0.1), seen, weights)
    sums = {f"_module.{name}": both for name, both in sums.items()}
    assert largest_difference(driver.records[0], sums, square) < 1e-5


def test_accumulated_private_gradients():
    inner = plain_mlp()
    model, optimizer, _ = private(inner, poisson_sampling=False)
    before = plain_mlp()
    before.load_state_dict(inner.state_dict())
    driver = Driver(OpacusEngine, model, optimizer)
    batches = [(torch.randn(size, 5), torch.randint(3, (size,))) for size in (6, 4)]
    for x, y in batches:
        nn.CrossEntropyLoss()(model(x), y).backward()
    held = model._module[0].weight.grad_sample
    optimizer.step()
    assert driver.errors == driver.problems == []
    assert isinstance(held, list)
    assert model._module[0].weight.grad_sample is held
    sums, square = by_hand(before, SGD(before.parameters(), 0.1), batches, driver.weights)
    sums = {f"_module.{name}": both for name, both in sums.items()}
    assert largest_difference(driver.records[0], sums, square) < 1e-5


def test_a_model_that_is_made_private_under_a_watching_engine():
    inner = plain_mlp()
    plain_optimizer = SGD(inner.parameters(), lr=0.1)
    driver = Driver(OpacusEngine, inner, plain_optimizer)
    train(inner, plain_optimizer, [(torch.randn(6, 5), torch.randint(3, (6,)))])
    model, optimizer, _ = private(inner, poisson_sampling=False)
    optimizer.original_optimizer = plain_optimizer
    private_step(model, optimizer, torch.randn(4, 5), torch.randint(3, (4,)))
    assert driver.errors == driver.problems == []
    assert [len(record.square) for record in driver.records] == [6, 4]


def test_the_optimizer_to_watch_is_the_one_inside():
    model, optimizer, _ = private(plain_mlp())
    inside = arguments.check_model_and_optimizer(model, optimizer)
    assert inside is optimizer.original_optimizer


def test_ghost_clipping_keeps_no_gradients():
    model, *_ = private(plain_mlp(), grad_sample_mode="ghost")
    with pytest.raises(ArgumentValueError, match='grad_sample_mode="hooks"'):
        check_model(model)


def test_private_and_plain_models_pass_the_check():
    check_model(private(plain_mlp())[0])
    check_model(small_mlp())
