"""Training loops as people write them, measured as they are; the oracle takes single samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import GradientMonitor
from tests.support.cases import make_data, make_loader
from tests.support.followed import WAYS, Followed, Net

EXACT = 1e-9

ways = pytest.mark.parametrize("way", WAYS)
exact_ways = pytest.mark.parametrize("way", ["head", "closed_form"])


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9} | options)


def followed(way, model=None, optimizer=sgd, **options):
    torch.manual_seed(0)
    model = (model or Net()).double()
    return Followed(way, model, optimizer(model), dtype=torch.float64, **options)


def make_step(run):
    run.before_step()
    run.optimizer.step()
    run.check(EXACT)


def plain_loss(model, x, y):
    return F.cross_entropy(model(x), y)


def train(run, loss=plain_loss, around=lambda run, x, y: None):
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        around(run, x, y)
        run.take(x, y, index)
        loss(run.called, x, y).backward()
        make_step(run)
    run.monitor.close()


# Accumulation, clipping, gradients that stay


CLIPS = {
    "norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.01),
    "value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.001),
}


@ways
@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_shows_in_the_contributions_alone(way, clip):
    run = followed(way)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        F.cross_entropy(run.model(x), y).backward()
        CLIPS[clip](run.model)
        make_step(run)
    run.monitor.close()


def accumulated(way, sizes):
    """All tags of two steps of 32 samples each, made in micro-batches."""
    torch.manual_seed(0)
    model = Net().double()
    data = make_data(torch.float64, 64)
    loader = make_loader(data, batch_size=32)
    optimizer = sgd(model)
    known = {"noisy": data.noisy, "true_labels": data.true}
    monitor = GradientMonitor(model, optimizer, loader, every=1, **known, **WAYS[way])
    for x, y, _ in loader:
        optimizer.zero_grad()
        for inputs, labels in zip(x.split(sizes), y.split(sizes), strict=True):
            (F.cross_entropy(model(inputs), labels, reduction="sum") / 32).backward()
        optimizer.step()
    monitor.close()
    return {n: v for n, v in monitor.latest.items() if n != "overhead_fraction"}


@ways
@pytest.mark.parametrize("sizes", [[8] * 4, [8, 8, 8, 7, 1]], ids=["equal", "unequal"])
def test_micro_batches_give_every_tag_of_the_whole_batch(way, sizes):
    whole, parts = accumulated(way, [32]), accumulated(way, sizes)
    assert len(whole) > 10
    assert parts == pytest.approx(whole, rel=1e-9, abs=1e-12, nan_ok=True)


@ways
def test_gradients_zeroed_in_place_are_measured(way):
    run = followed(way)
    for x, y, index in run.loader:
        run.optimizer.zero_grad(set_to_none=False)
        for part in (slice(0, 5), slice(5, 12)):
            run.take(x[part], y[part], index[part])
            (F.cross_entropy(run.model(x[part]), y[part], reduction="sum") / 12).backward()
        make_step(run)
    run.monitor.close()


@ways
def test_gradients_that_are_never_zeroed_show_in_the_contributions_alone(way):
    run = followed(way, optimizer=lambda model: sgd(model, lr=0.01))
    for x, y, index in run.loader:
        run.take(x, y, index)
        F.cross_entropy(run.model(x), y).backward()
        make_step(run)
    run.monitor.close()


@ways
def test_gradients_changed_between_micro_batches_are_no_reset(way):
    run = followed(way)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        for part in (slice(0, 6), slice(6, 12)):
            run.take(x[part], y[part], index[part])
            (F.cross_entropy(run.model(x[part]), y[part]) / 2).backward()
            nn.utils.clip_grad_value_(run.model.parameters(), 0.05)
        make_step(run)
    run.monitor.close()


@ways
@pytest.mark.parametrize("to_none", [True, False])
def test_a_batch_that_the_loop_drops_is_no_part_of_the_next_step(way, to_none):
    run = followed(way)
    for number, (x, y, index) in enumerate(run.loader):
        run.optimizer.zero_grad(set_to_none=to_none)
        if number % 2 == 0:
            F.cross_entropy(run.model(x), y).backward()
            continue
        run.take(x, y, index)
        F.cross_entropy(run.model(x), y).backward()
        make_step(run)
    run.monitor.close()


@exact_ways
def test_two_forward_passes_before_one_backward_pass(way):
    run = followed(way)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        pieces = zip(x.split(6), y.split(6), strict=True)
        halves = [F.cross_entropy(run.model(a), b) for a, b in pieces]
        (sum(halves) / 2).backward()
        make_step(run)
    run.monitor.close()


# What happens around a step


def evaluate_without_grad(run, x, y):
    run.model.eval()
    with torch.no_grad():
        run.model(x)
    run.model.train()


def metric_pass(run, x, y):
    (run.model(x).argmax(1) == y).float().mean()


def half_a_metric_pass(run, x, y):
    run.model(x[: len(x) // 2])


@ways
@pytest.mark.parametrize("around", [evaluate_without_grad, metric_pass, half_a_metric_pass])
def test_passes_that_are_not_trained_on_change_nothing(way, around):
    train(followed(way), around=around)


@ways
@pytest.mark.parametrize("passed", ["criterion", "recognised"])
def test_batches_without_samples_are_passed_over(way, passed, said):
    criterion = nn.CrossEntropyLoss() if passed == "criterion" else None
    run = followed(way, criterion=criterion)
    loss = criterion or F.cross_entropy
    for number, (x, y, index) in enumerate(run.loader):
        run.optimizer.zero_grad()
        if number in (0, 2):  # as Poisson sampling draws them
            loss(run.model(x[:0]), y[:0]).backward()
            if number == 0:
                run.optimizer.step()
                run.optimizer.zero_grad()
        run.take(x, y, index)
        loss(run.model(x), y).backward()
        make_step(run)
    assert said() == []
    run.monitor.close()


@ways
def test_a_closure_that_is_evaluated_several_times_is_measured_where_the_step_began(way):
    run = followed(way, optimizer=lambda m: torch.optim.LBFGS(m.parameters(), 0.05, max_iter=3))
    for x, y, index in run.loader:

        def closure(x=x, y=y):
            run.optimizer.zero_grad()
            loss = F.cross_entropy(run.model(x), y)
            loss.backward()
            return loss

        run.take(x, y, index)
        run.before_step()
        run.optimizer.step(closure)
        run.check(EXACT)
    run.monitor.close()
