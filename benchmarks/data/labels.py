"""Wrong labels of every kind that the comparisons use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models import mlp
from prioritymonitor import corrupt_labels

KINDS = ("symmetric", "pair", "instance", "classes")


def wrong_labels(
    images: Tensor, labels: Tensor, kind: str, rate: float, generator: torch.Generator
) -> Tensor:
    """Labels of which a share is wrong, int64 `[n]`.

    Args:
        images: `[n, D]`.
        labels: True classes, `[n]`.
        kind: `"symmetric"` and `"pair"` as in `corrupt_labels`; `"instance"`: the samples a weak
            model is least sure of get the class that it holds most probable besides the true one;
            `"classes"`: classes are wrong to different degrees, from never to twice the rate, each
            towards two others.
        rate: Share of the labels that is made wrong.
        generator: Source of randomness.
    """
    if kind == "instance":
        return _least_sure(images, labels, rate, generator)
    if kind == "classes":
        return _by_class(labels, rate, generator)
    return corrupt_labels(labels, rate, kind=kind, generator=generator)


def _least_sure(images: Tensor, labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    probability = _weak_model(images, labels, generator).softmax(1)
    first, second = probability.topk(2).values.unbind(1)
    chosen = (first - second).argsort()[: round(rate * len(labels))]
    others = probability.scatter(1, labels.unsqueeze(1), -1)
    wrong = labels.clone()
    wrong[chosen] = others[chosen].argmax(1)
    return wrong


def _weak_model(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Logits of a softmax regression after two epochs on the true labels, `[n, C]`."""
    model = mlp(images.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        for batch in torch.randperm(len(labels), generator=generator).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return model(images)


def _by_class(labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    classes = int(labels.max()) + 1
    rates = torch.linspace(0, 2 * rate, classes)[torch.randperm(classes, generator=generator)]
    others = torch.stack(
        [1 + torch.randperm(classes - 1, generator=generator)[:2] for _ in range(classes)]
    )
    towards = others[labels, torch.randint(2, labels.shape, generator=generator)]
    is_wrong = torch.rand(labels.shape, generator=generator) < rates[labels]
    return torch.where(is_wrong, (labels + towards) % classes, labels)
