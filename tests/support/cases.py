"""The ways in which people write a training step; each is measured unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

CLASSES, INPUTS, SAMPLES = 5, 7, 60
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])


class OwnLoss(nn.Module):
    """Computes its own loss, as many library models do."""

    def __init__(self, as_object):
        super().__init__()
        self.body = mlp()
        self.as_object = as_object

    def forward(self, x, labels=None):
        logits = self.body(x)
        loss = F.cross_entropy(logits, labels) if labels is not None else None
        return SimpleNamespace(loss=loss, logits=logits) if self.as_object else (loss, logits)


class Tied(nn.Module):
    """A head whose weight is also an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 6)
        self.body = nn.Linear(INPUTS, 6)
        self.head = nn.Linear(6, CLASSES, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.body(x).tanh())


class Convolutional(nn.Module):
    """A head that is a 1×1 convolution."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(INPUTS, 6)
        self.head = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x):
        return self.head(self.body(x).tanh()[:, :, None, None]).flatten(1)


def mlp():
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def inplace_mlp():
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))


def no_bias_mlp():
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES, bias=False))


def plain_loss(model, x, y):
    return F.cross_entropy(model(x), y)


def per_sample(logits, y, **options):
    return F.cross_entropy(logits, y, reduction="none", **options)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


@dataclass
class Case:
    """One way to train."""

    name: str
    model: Callable[[], nn.Module] = mlp
    loss: Callable[..., torch.Tensor] = plain_loss
    oracle: Callable[..., torch.Tensor] = per_sample
    optimizer: Callable[..., torch.optim.Optimizer] = sgd
    monitor: Callable[[nn.Module], dict[str, Any]] = lambda model: {}
    criterion: Callable[[torch.dtype], nn.Module | None] = lambda dtype: None
    micro_batches: int = 1
    batch_size: int = 12
    ignore: int | None = None
    set_to_none: bool = True
    closure: bool = False
    around: Callable[..., Any] = lambda model, x, y: None
    """What the loop does besides training, before each batch."""
    weights_to_mean_one: torch.Tensor | None = None


def criterion_case(name, oracle, **options):
    def make(dtype):
        return nn.CrossEntropyLoss(
            **{k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        )

    return Case(name, criterion=make, oracle=oracle, ignore=options.get("ignore_index"))


def validate_without_grad(model, x, y):
    model.eval()
    with torch.no_grad():
        F.cross_entropy(model(x.flip(0)), y)
    model.train()


def validate_with_grad(model, x, y):
    F.cross_entropy(model(x.flip(0)), y).item()


def metric_pass(model, x, y):
    (model(x).argmax(1) == y).float().mean().item()


def _optimizer(kind, **options):
    return lambda parameters: kind(parameters, lr=0.05, **options)


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

CASES = [
    Case("F.cross_entropy"),
    Case("cross_entropy imported by name", loss=lambda m, x, y: cross_entropy(m(x), y)),
    Case("criterion module, not passed in", loss=lambda m, x, y: nn.CrossEntropyLoss()(m(x), y)),
    criterion_case("criterion module", per_sample),
    Case("(loss, logits)", lambda: OwnLoss(False), loss=lambda m, x, y: m(x, y)[0]),
    Case("object with .logits", lambda: OwnLoss(True), loss=lambda m, x, y: m(x, labels=y).loss),
    Case("sum", loss=lambda m, x, y: F.cross_entropy(m(x), y, reduction="sum")),
    criterion_case("criterion with sum", per_sample, reduction="sum"),
    criterion_case(
        "criterion with class weights",
        lambda z, y: per_sample(z, y, weight=CLASS_WEIGHTS.to(z.dtype)),
        weight=CLASS_WEIGHTS,
    ),
    Case(
        "class weights, not passed in",
        loss=lambda m, x, y: F.cross_entropy(m(x), y, weight=CLASS_WEIGHTS.to(x.dtype)),
        weights_to_mean_one=CLASS_WEIGHTS,
    ),
    Case("ignore_index", loss=lambda m, x, y: F.cross_entropy(m(x), y, ignore_index=2), ignore=2),
    criterion_case(
        "criterion with ignore_index",
        lambda z, y: per_sample(z, y, ignore_index=2),
        ignore_index=2,
    ),
    criterion_case(
        "criterion with label smoothing",
        lambda z, y: per_sample(z, y, label_smoothing=0.1),
        label_smoothing=0.1,
    ),
    Case(
        "loss scaled",
        loss=lambda m, x, y: 1024 * F.cross_entropy(m(x), y),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-4),
    ),
    Case("validation without gradients between steps", around=validate_without_grad),
    Case("validation with gradients between steps", around=validate_with_grad),
    Case("metric pass between steps", around=metric_pass),
    Case("2 micro-batches", micro_batches=2, loss=lambda m, x, y: F.cross_entropy(m(x), y) / 2),
    Case("4 micro-batches, gradients zeroed", micro_batches=4, set_to_none=False),
    Case("last batch smaller", batch_size=25),
    Case("last batch of one sample", batch_size=59),
    Case("ReLU in place", inplace_mlp),
    Case("gradients zeroed, not dropped", set_to_none=False),
    Case("logits changed in place", loss=lambda m, x, y: F.cross_entropy(m(x).add_(0.0), y)),
    Case("1×1 convolution as head", Convolutional),
    Case("tied head", Tied),
    Case("head without bias", no_bias_mlp),
    Case("head named", monitor=lambda model: {"head": model[2]}),
    Case("momentum", optimizer=_optimizer(SGD, momentum=0.9)),
    Case("Nesterov, foreach", optimizer=_optimizer(SGD, momentum=0.9, nesterov=True, foreach=True)),
    Case("SGD, fused", optimizer=_optimizer(SGD, momentum=0.9, fused=True)),
    Case("Adam", optimizer=_optimizer(Adam)),
    Case("Adam, foreach", optimizer=_optimizer(Adam, foreach=True)),
    Case("AdamW with weight decay", optimizer=_optimizer(AdamW, weight_decay=0.1)),
    Case("AdamW, fused", optimizer=_optimizer(AdamW, fused=True)),
    Case("LBFGS", optimizer=_optimizer(torch.optim.LBFGS, max_iter=3), closure=True),
    Case("SGD with a closure", closure=True),
]


@dataclass
class Data:
    """A small data set with some labels wrong."""

    inputs: torch.Tensor
    given: torch.Tensor
    true: torch.Tensor
    noisy: torch.Tensor = field(init=False)

    def __post_init__(self):
        self.noisy = self.given != self.true


def make_data(dtype=torch.float64, samples=SAMPLES):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, INPUTS, generator=generator, dtype=torch.float64).to(dtype)
    true = torch.arange(samples) % CLASSES
    inputs[torch.arange(samples), true] += 2
    wrong = torch.rand(samples, generator=generator) < 0.4
    given = torch.where(wrong, (true + 1 + torch.arange(samples) % (CLASSES - 1)) % CLASSES, true)
    return Data(inputs, given, true)


def make_loader(data, **options):
    indices = torch.arange(len(data.inputs))
    return DataLoader(TensorDataset(data.inputs, data.given, indices), **options)
