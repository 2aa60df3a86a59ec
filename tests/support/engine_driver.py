"""What the tests of the engines share: a loop around an engine, and single samples by hand."""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from benchmarks.engines.architectures import ARCHITECTURES, logits_of
from prioritymonitor.capture.head import logits_in
from prioritymonitor.capture.hooks import Guard
from prioritymonitor.capture.parameters import trained_parameters
from prioritymonitor.gradients.parameters.engine import TrainedPass


def make_batches(name, sizes, dtype=torch.float64):
    """Batches of some sizes for an architecture."""
    batches = [ARCHITECTURES[name].make_batch(size) for size in sizes]
    return [(x.to(dtype) if x.is_floating_point() else x, labels) for x, labels in batches]


def small_mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)).double()


def dropout_model():
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.Dropout(0.5),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.Dropout(0.3),
        nn.Linear(8, 3),
    ).double()


def small_batch(size=6):
    return torch.randn(size, 5, dtype=torch.float64), torch.randint(3, (size,))


class Driver:
    """Reports forward, backward and optimizer steps to an engine, as `StepCapture` does."""

    def __init__(self, engine_class, model, optimizer, **options):
        self.errors, self.problems, self.records = [], [], []
        self.is_measured = True
        self.strength = None  # of the loss; None: a mean over the samples
        self.weights = []
        guard = Guard(self.errors.append)
        self.engine = engine_class(
            model,
            optimizer,
            is_measured=lambda: self.is_measured,
            guard=guard,
            on_problem=self.problems.append,
            **options,
        )
        inner = getattr(optimizer, "original_optimizer", optimizer)
        self.handles = [
            model.register_forward_hook(self._forward_done, with_kwargs=True),
            inner.register_step_pre_hook(self._step_begins),
            inner.register_step_post_hook(self._step_done),
        ]

    def __deepcopy__(self, memo):
        """What the hooks of a copied model report to: nothing is measured."""
        inert = object.__new__(Driver)
        inert.is_measured = False
        return inert

    def _forward_done(self, model, args, kwargs, output):
        if not (self.is_measured and torch.is_grad_enabled()):
            return
        logits = logits_in(output)[0]
        seen = self.engine.forward_done(output, len(logits))
        weight = torch.linspace(0, 1, len(logits), dtype=torch.float64).roll(len(self.weights))

        def arrived(gradient):
            mean = 1 / len(gradient) if len(gradient) else float("nan")
            strength = self.strength if self.strength is not None else mean
            strength = torch.tensor(strength, dtype=torch.float64)
            self.weights.append(weight)
            self.engine.backward_began(
                TrainedPass(args, kwargs, 0, gradient, strength, weight, seen)
            )

        logits.register_hook(arrived)

    def _step_begins(self, *_):
        if self.is_measured:
            self.engine.step_begins()

    def _step_done(self, *_):
        if self.is_measured:
            self.records.append(self.engine.collect())

    def close(self):
        self.engine.close()
        for handle in self.handles:
            handle.remove()


def train(model, optimizer, batches, divisor=1):
    """One optimizer step over some micro-batches; returns the losses."""
    optimizer.zero_grad()
    losses = []
    for inputs, labels in batches:
        logits = logits_of(model(**inputs) if isinstance(inputs, dict) else model(inputs))
        loss = cross_entropy(logits.flatten(0, -2), labels.flatten()) / divisor
        loss.backward()
        losses.append(loss.detach())
    optimizer.step()
    return torch.stack(losses)


def measured(engine_class, model, batches, divisor=1, strength=None, **options):
    """Trains one step with an engine; returns the driver and the error against autograd."""
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(model)
    driver = Driver(engine_class, model, optimizer, **options)
    driver.strength = strength or (None if divisor == 1 else 1 / len(batches[0][1]) / divisor)
    train(model, optimizer, batches, divisor)
    driver.close()
    assert driver.errors == []
    (record,) = driver.records
    names = list(record.sums)
    plain = SGD([p for n, p in before.named_parameters() if n in names], lr=0.1)
    return driver, largest_difference(record, *by_hand(before, plain, batches, driver.weights))


def by_hand(model, optimizer, batches, weights):
    """Clean and noisy sums by name, and squared norms, from plain autograd on single samples.

    Call it before the optimizer changes the parameters.
    """
    parameters = trained_parameters(model, optimizer)
    weight = torch.cat(weights)
    sums = {name: [0, 0] for name in parameters}
    squares = []
    alone = copy.deepcopy(model)
    own = dict(alone.named_parameters())
    for sample, w in zip(_samples(batches), weight, strict=True):
        inputs, labels = sample
        logits = logits_of(alone(**inputs) if isinstance(inputs, dict) else alone(inputs))
        loss = cross_entropy(logits.flatten(0, -2), labels.flatten())
        gradients = torch.autograd.grad(loss, [own[name] for name in parameters], allow_unused=True)
        square = 0
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            sums[name][0] = sums[name][0] + (1 - w) * gradient
            sums[name][1] = sums[name][1] + w * gradient
            square = square + gradient.square().sum()
        squares.append(square)
    return sums, torch.stack(squares)


def _samples(batches):
    for inputs, labels in batches:
        for i in range(len(labels)):
            row = slice(i, i + 1)
            if isinstance(inputs, dict):
                yield {name: value[row] for name, value in inputs.items()}, labels[row]
            else:
                yield inputs[row], labels[row]


def largest_difference(record, sums, square):
    """Between an engine's record and what was found by hand, relative to the largest parameter."""
    size = max(torch.as_tensor(part).norm() for both in sums.values() for part in both)
    error = (record.square - square).norm() / square.norm()
    assert set(record.sums) == set(sums)
    for name, both in sums.items():
        for found, wanted in zip(record.sums[name], both, strict=True):
            error = torch.maximum(error, (found - wanted).norm() / size)
    return float(error)
