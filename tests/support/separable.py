"""A network that learns classes which can be told apart, and then the wrong labels by heart."""

import torch
import torch.nn.functional as F

from prioritymonitor import GradientMonitor, StopRule
from tests.support.cases import make_data, make_loader, mlp


def separable():
    """Classes that a network can tell apart, so that only wrong labels are hard."""
    data = make_data(torch.float32, samples=400)
    data.inputs[torch.arange(400), data.true] += 2
    return data


def watched(**options):
    """A small network on them, and a monitor that never stops it if not asked to."""
    data = separable()
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, **{"stop": None} | options)
    return data, model, optimizer, loader, monitor


def fit(epochs, *, width=128, stop=StopRule(), noise=True, **options):  # noqa: B008
    """A network that is large enough to learn 40 % wrong labels by heart."""
    data = separable()
    given = data.given if noise else data.true
    data.given = given
    torch.manual_seed(0)
    model = mlp()
    model[0] = torch.nn.Linear(7, width)
    model[2] = torch.nn.Linear(width, 5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    loader = make_loader(data, batch_size=20, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader, stop=stop, **options)
    for _ in range(epochs):
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if monitor.should_stop:
            break
    return monitor, model, data


def accuracy(model, data):
    return (model(data.inputs).argmax(1) == data.true).float().mean().item()
