"""Statistics of the head equal the autograd oracle for every way to write a training step."""

import math

import pytest
import torch

from prioritymonitor import GradientMonitor
from tests.support.cases import CASES, Case, make_data, make_loader
from tests.support.reference import (
    expected_statistics,
    head_parameters,
    head_update,
    sample_gradients,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def run(case: Case, dtype):
    """Train two epochs; yield what the monitor says and the oracle expects, step by step."""
    data = make_data(dtype)
    model = case.model().to(dtype)
    head = head_before_the_first_pass(model)
    optimizer = case.optimizer(model.parameters())
    criterion = case.criterion(dtype)
    loader = make_loader(data, batch_size=case.batch_size, shuffle=True)
    known = {"noisy": data.noisy, "true_labels": data.true}
    monitor = GradientMonitor(
        model, optimizer, loader, criterion=criterion, every=1, **known, **case.monitor(model)
    )

    def loss_of(x, y):
        return criterion(model(x), y) if criterion is not None else case.loss(model, x, y)

    pending = []
    for _ in range(2):
        for x, y, index in loader:
            case.around(model, x, y)
            pending.append((x, y, index))
            if len(pending) == 1:
                optimizer.zero_grad(set_to_none=case.set_to_none)
                before = head_parameters(head)
                gradients = []
            gradients.append(sample_gradients(model, head, case.oracle, x, y))
            if not case.closure:
                loss_of(x, y).backward()
            if len(pending) < case.micro_batches:
                continue
            if case.closure:
                optimizer.step(closure_of(optimizer, loss_of, x, y))
            else:
                optimizer.step()
            where = torch.cat([index for *_, index in pending])
            pending = []
            rows = weighted(case, torch.cat(gradients), data.given[where])
            update = head_update(head, before)
            truth = (data.noisy[where], data.given[where], data.true[where])
            ignored = None if case.ignore is None else data.given[where] == case.ignore
            yield monitor, expected_statistics(rows, *truth, update, ignored)
    monitor.close()


def head_before_the_first_pass(model):
    return getattr(model, "head", None) or getattr(model, "body", model)[-1]


def closure_of(optimizer, loss_of, x, y):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        return loss

    return closure


def weighted(case, rows, given):
    """Class weights that nobody told the monitor are known up to their mean over the batch."""
    if case.weights_to_mean_one is None:
        return rows
    weights = case.weights_to_mean_one.double()[given]
    return rows * (weights / weights.mean())[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_statistics_equal_the_autograd_oracle(case, dtype):
    steps = 0
    for monitor, expected in run(case, dtype):
        latest = monitor.latest
        for name, value in expected.items():
            assert close(latest[name], value, TOLERANCE[dtype]), f"step {steps}: {name}"
        steps += 1
    assert steps == (2 * math.ceil(60 / case.batch_size)) // case.micro_batches


def close(got, expected, tolerance):
    if math.isnan(expected) or math.isinf(expected) or expected == 0:
        return got == expected or (math.isnan(got) and math.isnan(expected)) or abs(got) < 1e-6
    # A cosine or a share near 0 is the difference of terms of order 1.
    return abs(got - expected) <= tolerance * max(abs(expected), 0.1)
