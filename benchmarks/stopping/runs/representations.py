"""Representations of the samples in which no label was learnt, and the neighbours in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NEIGHBOURS = 30
VOTERS = 10


@torch.no_grad()
def initial_features(model: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
    """Input of the head in evaluation mode, `[n, D]`."""
    found: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, given, output: found.append(given[0]))
    model.eval()
    for some in inputs.split(500):
        model(some)
    model.train()
    hook.remove()
    return torch.cat(found)


def neighbours(rows: Tensor, count: int = NEIGHBOURS) -> Tensor:
    """The nearest other samples of each by the cosine of centred rows, int32 `[n, count]`."""
    rows = rows.float().flatten(1)
    rows = nn.functional.normalize(rows - rows.mean(0))
    found = []
    for start in range(0, len(rows), 1000):
        cosine = rows[start : start + 1000] @ rows.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -torch.inf
        found.append(cosine.topk(count).indices.int())
    return torch.cat(found)


def votes(nearest: Tensor, labels: Tensor, voters: int = VOTERS) -> Tensor:
    """The most frequent label among the nearest, the nearer ones' among equals, int64 `[n]`."""
    theirs = labels[nearest[:, :voters].long()]
    count = torch.zeros(len(labels), int(labels.max()) + 1)
    weight = 1 + 1e-3 / torch.arange(1, voters + 1)
    return count.scatter_add_(1, theirs, weight.expand(theirs.shape)).argmax(1)
