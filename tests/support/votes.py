"""Training runs whose samples have neighbours, and networks that show which."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from tests.support.cases import CLASSES, mlp

SAMPLES, WIDTH, HIDDEN = 240, 40, 8


def hidden_classes():
    """Inputs whose classes drown in noise, all but a few directions, and some wrong labels."""
    generator = torch.Generator().manual_seed(1)
    true = torch.arange(SAMPLES) % CLASSES
    inputs = 3 * torch.randn(SAMPLES, WIDTH, generator=generator)
    shown = F.one_hot(true, HIDDEN) + 0.05 * torch.randn(SAMPLES, HIDDEN, generator=generator)
    wrong = torch.rand(SAMPLES, generator=generator) < 0.3
    given = torch.where(wrong, (true + 1 + torch.arange(SAMPLES) % 4) % CLASSES, true)
    return torch.cat((inputs, shown), 1), given, true


def pretrained(dropout=0.0):
    """A network whose features show the classes from the start."""
    model = nn.Sequential(
        nn.Linear(WIDTH + HIDDEN, HIDDEN), nn.Dropout(dropout), nn.Linear(HIDDEN, CLASSES)
    )
    with torch.no_grad():
        model[0].weight.zero_()[:, WIDTH:] = torch.eye(HIDDEN)
    return model


class Counting(nn.Module):
    """Tells how many samples go through it in evaluation mode; a list of its own is put back."""

    def __init__(self, tell):
        super().__init__()
        self.body = pretrained()
        self.tell = tell

    def forward(self, x):
        if not self.training:
            self.tell(len(x))
        return self.body(x)


def votes_of(model, inputs, given, *, epochs=1, lr=0.0, loss=F.cross_entropy, **options):
    loader = DataLoader(TensorDataset(inputs, given), batch_size=20, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    with GradientMonitor(model, optimizer, loader, **options) as monitor:
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
        return torch.from_numpy(monitor.samples()["vote"])


def right(votes, true):
    return (votes == true).double().mean().item()


def attached(model, inputs, given):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return optimizer, DataLoader(TensorDataset(inputs, given), batch_size=20)


class FailsInEvaluation(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        if not self.training:
            raise torch.OutOfMemoryError("no memory left")
        return self.body(x.float())
