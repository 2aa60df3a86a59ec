"""Losses that are passed in, as modules and as functions, and losses of several outputs."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.test_losses import CLASSES, POSITIVE, TRUE, Net, labels, through
from tests.gradients.test_head_statistics import close
from tests.support.cases import INPUTS
from tests.support.one_by_one import Setting, train


def focal(z, y):
    own = F.cross_entropy(z, y, reduction="none")
    return ((1 - (-own).exp()) ** 2 * own).mean()


class Focal(nn.Module):
    """As many write it: with a reduction of its own."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, z, y):
        own = F.cross_entropy(z, y, reduction="none")
        loss = (1 - (-own).exp()) ** 2 * own
        return loss.mean() if self.reduction == "mean" else loss


class FocalMean(nn.Module):
    """Without one."""

    def forward(self, z, y):
        return focal(z, y)


def symmetric(z, y):
    """Cross-entropy and its reverse."""
    p = z.softmax(1)
    reverse = -(p * F.one_hot(y, z.shape[1]).clamp(min=1e-4).log()).sum(1).mean()
    return F.cross_entropy(z, y) + 0.1 * reverse


WEIGHT = POSITIVE.double()
ignoring, weighted = {"ignore_index": 1}, {"weight": WEIGHT}

CRITERIA = {
    "focal, module": (Focal(), focal),
    "focal, module without reduction": (FocalMean(), focal),
    "focal, function": (focal, focal),
    "symmetric cross-entropy": (symmetric, symmetric),
    "ignore_index, module": (nn.CrossEntropyLoss(**ignoring), F.cross_entropy),
    "ignore_index, function": (functools.partial(F.cross_entropy, **ignoring), F.cross_entropy),
    "class weights, module": (nn.CrossEntropyLoss(**weighted), None),
    "class weights, function": (functools.partial(F.cross_entropy, **weighted), None),
    "weights and smoothing": (nn.CrossEntropyLoss(**weighted, label_smoothing=0.1), "smoothed"),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_is_measured_as_the_oracle_says(name, said):
    criterion, of_one = CRITERIA[name]
    options = {}
    if of_one is None or of_one == "smoothed":
        options = {"weight": WEIGHT, "reduction": "sum"}
        options |= {"label_smoothing": 0.1} if of_one == "smoothed" else {}
        of_one = F.cross_entropy

    def alone(m, x, y, _):
        loss = of_one(m(x), y, **options)
        return loss * (y != 1).double() if "ignore" in name else loss

    setting = Setting(
        name,
        Net,
        labels,
        lambda m, x, y, c: c(m(x), y),
        alone,
        criterion=lambda dtype: criterion,
        true_labels=TRUE,
    )
    for monitor, _, expected, _ in train(setting, torch.float64):
        for tag, value in expected.items():
            assert close(monitor.latest[tag], value, 1e-9), tag
    assert said() == []


class TwoHeads(nn.Module):
    """Both on one trunk."""

    def __init__(self, order):
        super().__init__()
        self.body = nn.Linear(INPUTS, 6)
        self.auxiliary = nn.Linear(6, CLASSES)
        self.head = nn.Linear(6, CLASSES)
        self.order = order

    def forward(self, x):
        h = self.body(x).tanh()
        aux = self.auxiliary(h) if self.order == "auxiliary first" else None
        z = self.head(h)
        return z, self.auxiliary(h) if aux is None else aux


@pytest.mark.parametrize("order", ["main first", "auxiliary first"])
@pytest.mark.parametrize("terms", ["main + 0.3 auxiliary", "0.3 auxiliary + main"])
@pytest.mark.parametrize(
    "criterion",
    [None, nn.CrossEntropyLoss(), F.cross_entropy],
    ids=["recognised", "module", "function"],
)
def test_two_heads_on_one_trunk_are_told_apart(order, terms, criterion, said):
    way = criterion or F.cross_entropy

    def loss(m, x, y, _):
        z, aux = m(x)
        if terms.startswith("main"):
            return way(z, y) + 0.3 * way(aux, y)
        return 0.3 * way(aux, y) + way(z, y)

    setting = Setting(
        order,
        lambda: TwoHeads(order),
        labels,
        loss,
        lambda m, x, y, _: F.cross_entropy(m(x)[0], y),
        criterion=lambda dtype: criterion,
        true_labels=TRUE,
    )
    for monitor, _, expected, _ in train(setting, torch.float64):
        for tag, value in expected.items():
            assert close(monitor.latest[tag], value, 1e-9), tag
    assert said() == []


def twice(loss, z, y):
    return 0.7 * loss(z, y) + 0.3 * loss(z, (y + 1) % CLASSES)


def test_calls_of_a_criterion_on_the_same_logits_make_one_loss(said):
    """As where labels are mixed, with any loss: each call has its own factor."""
    second = Setting(
        "two calls",
        Net,
        labels,
        lambda m, x, y, c: twice(c, m(x), y),
        lambda m, x, y, _: twice(focal, m(x), y),
        criterion=lambda dtype: Focal(),
        true_labels=TRUE,
    )
    for monitor, seen, expected, _ in train(second, torch.float64):  # noqa: B007
        for tag, value in expected.items():
            assert close(monitor.latest[tag], value, 1e-9), tag
    assert seen.samples == 24  # no sample twice
    assert said() == []


def test_a_call_for_a_metric_changes_nothing():
    def latest(with_metric):
        def loss(m, x, y, c):
            z = m(x)
            if with_metric:
                c(z, (y + 1) % CLASSES).item()
            return c(z, y)

        setting = Setting(
            "metric",
            Net,
            labels,
            loss,
            through(F.cross_entropy),
            criterion=lambda dtype: nn.CrossEntropyLoss(),
            true_labels=TRUE,
        )
        *_, (monitor, seen, _, _) = train(setting, torch.float64)
        return seen.samples, monitor.latest

    samples, plain = latest(False)
    others, measured = latest(True)
    assert samples == others
    assert all(
        close(measured[tag], value, 1e-9) for tag, value in plain.items() if "overhead" not in tag
    )
