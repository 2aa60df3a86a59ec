"""Wrong labels of every kind that the comparisons use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models import mlp
from prioritymonitor import corrupt_labels

KINDS = ("symmetric", "pair", "instance", "parts", "classes", "flood")


def wrong_labels(
    images: Tensor, labels: Tensor, kind: str, rate: float, generator: torch.Generator
) -> Tensor:
    """Labels of which a share is wrong, int64 `[n]`.

    Args:
        images: `[n, D]`.
        labels: True classes, `[n]`.
        kind: `"symmetric"` and `"pair"` as in `corrupt_labels`; `"instance"`: the samples a weak
            model is least sure of get the class that it holds most probable besides the true one;
            `"parts"`: by chances that depend on the image (Xia et al., NeurIPS 2020); `"classes"`:
            classes are wrong to different degrees, from never to twice the rate, each towards two
            others; `"flood"`: all wrong labels are the class 0.
        rate: Share of the labels that is made wrong.
        generator: Source of randomness.
    """
    if kind == "instance":
        return _least_sure(images, labels, rate, generator)
    if kind == "parts":
        return _by_parts(images, labels, rate, generator)
    if kind == "flood":
        others = torch.where(labels > 0)[0]
        chosen = others[torch.randperm(len(others), generator=generator)]
        return labels.index_fill(0, chosen[: round(rate * len(labels))], 0)
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


def _by_parts(images: Tensor, labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Flipped with a chance of its own, to a class drawn by a random linear map of the image."""
    classes, own = int(labels.max()) + 1, labels.unsqueeze(1)
    inputs = images.flatten(1).float()
    inputs = (inputs - inputs.mean()) / inputs.std()
    flip = torch.empty(len(labels)).normal_(rate, 0.1, generator=generator).clamp(0, 1)
    maps = torch.randn(classes, inputs.shape[1], classes, generator=generator)
    score = torch.stack([one @ maps[int(label)] for one, label in zip(inputs, labels, strict=True)])
    chance = score.scatter(1, own, -torch.inf).softmax(1) * flip.unsqueeze(1)
    chance = chance.scatter(1, own, (1 - flip).unsqueeze(1))
    return torch.multinomial(chance, 1, generator=generator).squeeze(1)


def _by_class(labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    classes = int(labels.max()) + 1
    rates = torch.linspace(0, 2 * rate, classes)[torch.randperm(classes, generator=generator)]
    others = torch.stack(
        [1 + torch.randperm(classes - 1, generator=generator)[:2] for _ in range(classes)]
    )
    towards = others[labels, torch.randint(2, labels.shape, generator=generator)]
    is_wrong = torch.rand(labels.shape, generator=generator) < rates[labels]
    return torch.where(is_wrong, (labels + towards) % classes, labels)
