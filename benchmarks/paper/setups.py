"""The experiments of arXiv 2306.02533: data with wrong labels, networks, how they are trained."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.data.images import load_images, only_classes
from benchmarks.models import mlp
from prioritymonitor import corrupt_labels

MOMENTUM = 0.9
TEST_SAMPLES = 5_000
"""At most: the first of the test set; its error is taken after every epoch."""
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
"""The files of CIFAR-10, python version."""


@dataclass(frozen=True)
class Experiment:
    """What is learnt, and how; images have one channel of 28×28 pixels but for CIFAR-10."""

    title: str
    data: str
    digits: tuple[int, int] | None
    noise: float
    network: str
    samples: int
    batch: int
    rate: float
    epochs: int
    seeds: int

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.digits) if self.digits else 10

    @property
    def initial_ratio(self) -> float:
        """The segment ratio that theory gives before training."""
        return (self.classes - 1) * (1 - self.noise) / self.noise


EXPERIMENTS = {
    "binary": Experiment(
        "MNIST 7 v 9, fully connected", "mnist", (7, 9), 0.4, "fcn", 4_000, 128, 0.01, 70, 5
    ),
    "cnn": Experiment("MNIST, CNN", "mnist", None, 0.3, "cnn", 5_000, 128, 0.03, 45, 3),
    "resnet": Experiment(
        "Fashion-MNIST, ResNet", "fashion-mnist", None, 0.4, "resnet", 4_000, 128, 0.02, 40, 3
    ),
}
CIFAR = Experiment("CIFAR-10, ResNet", "cifar-10", None, 0.4, "resnet", 10_000, 128, 0.02, 60, 3)


@dataclass(frozen=True)
class Task:
    """The data of one run; targets are what the loss takes, labels are classes."""

    images: Tensor
    given: Tensor
    true: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def noisy(self) -> Tensor:
        """Which training labels are wrong, bool `[n]`."""
        return self.given != self.true


def load_task(experiment: Experiment, seed: int, data: Path | None, cifar: Path | None) -> Task:
    """Draw samples and spoil their labels, both by the seed."""
    images, true = load_part(experiment, "train", data, cifar)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(true), generator=generator)[: experiment.samples]
    images, true = images[drawn], true[drawn]
    given = corrupt_labels(
        true, experiment.noise, generator=generator, num_classes=experiment.classes
    )
    test = (part[:TEST_SAMPLES] for part in load_part(experiment, "test", data, cifar))
    return Task(images, given, true, *test)


def load_part(
    experiment: Experiment, part: str, data: Path | None, cifar: Path | None
) -> tuple[Tensor, Tensor]:
    """Images `[n, channels, height, width]` in [0, 1], and classes from 0."""
    if experiment.data == "cifar-10":
        return load_cifar(cifar, part)
    images, labels = load_images(data, experiment.data, part)
    images = images.view(-1, 1, 28, 28)
    pair = experiment.digits
    return only_classes(images, labels, *pair) if pair else (images, labels)


def load_cifar(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as its authors publish it for python; pickles run code, so name only your own."""
    images, labels = [], []
    for name in BATCHES[part]:
        path = folder / name
        if not path.is_file():
            raise SystemExit(f"{path} is missing: --cifar must name the folder that holds {name}")
        with path.open("rb") as stream:
            batch = pickle.load(stream, encoding="bytes")
        images.append(torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32))
        labels.append(torch.tensor(batch[b"labels"]))
    return torch.cat(images).float() / 255, torch.cat(labels)


# Networks


def make_network(experiment: Experiment) -> nn.Module:
    """The network; two classes take one logit."""
    return NETWORKS[experiment.network](3 if experiment.data == "cifar-10" else 1)


def make_optimizer(experiment: Experiment, network: nn.Module) -> SGD:
    return SGD(network.parameters(), lr=experiment.rate, momentum=MOMENTUM)


def loss_of(experiment: Experiment) -> nn.Module:
    """Logistic loss for two classes, cross-entropy for more."""
    return nn.BCEWithLogitsLoss() if experiment.classes == 2 else nn.CrossEntropyLoss()


def targets(experiment: Experiment, labels: Tensor) -> Tensor:
    """Labels as the loss takes them."""
    return labels.float().unsqueeze(1) if experiment.classes == 2 else labels


def cnn(channels: int) -> nn.Sequential:
    """Two convolutions and two linear layers, a quarter as wide as the usual one."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


class Residual(nn.Module):
    """Two convolutions beside a short cut; GroupNorm, since BatchNorm would mix the samples."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            *(nn.GroupNorm(4, outputs), nn.ReLU()),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(4, outputs),
        )
        self.short_cut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.short_cut(x))


def resnet(channels: int) -> nn.Sequential:
    """Three stages of 16, 32 and 64 channels with one block each, after a stem of stride 2."""
    widths = (16, 16, 32, 64)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 2, padding=1, bias=False),
        *(nn.GroupNorm(4, 16), nn.ReLU()),
        *(Residual(*pair) for pair in pairwise(widths)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "fcn": lambda channels: nn.Sequential(nn.Flatten(), mlp(channels * 784, 512, 256, 1)),
    "cnn": cnn,
    "resnet": resnet,
}
