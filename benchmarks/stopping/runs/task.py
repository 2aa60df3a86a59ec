"""The data, model and loop that a setting names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from benchmarks.data.images import digits, load_images
from benchmarks.data.labels import wrong_labels
from benchmarks.stopping.runs.settings import Setting

SAMPLES = {"fashion-mnist": 10_000, "mnist": 10_000, "digits": 1_300}
TEST_SAMPLES = 5_000
BATCH = {"fashion-mnist": 128, "mnist": 128, "digits": 32}
CLASSES = 10
WEIGHT_DECAY = 5e-4


@dataclass(frozen=True)
class Task:
    """What a run learns from and is judged by; images are flat, `[n, D]`."""

    images: Tensor
    given: Tensor
    true: Tensor
    test_images: Tensor
    test_labels: Tensor
    clean_images: Tensor
    """Other samples with true labels, for pretraining only."""
    clean_labels: Tensor


def load_task(setting: Setting, folder: Path | None) -> Task:
    generator = torch.Generator().manual_seed(setting.seed)
    count = SAMPLES[setting.data]
    if setting.data == "digits":
        images, labels = digits()
        order = torch.randperm(len(labels), generator=generator)
        test = images[order[count:]], labels[order[count:]]
    else:
        images, labels = load_images(folder, setting.data, "train")
        order = torch.randperm(len(labels), generator=generator)
        test = tuple(part[:TEST_SAMPLES] for part in load_images(folder, setting.data, "test"))
    drawn, others = order[:count], order[count : 2 * count]
    true = labels[drawn]
    given = wrong_labels(images[drawn], true, setting.noise, setting.rate, generator)
    return Task(images[drawn], given, true, *test, images[others], labels[others])


def make_model(setting: Setting, pixels: int) -> nn.Sequential:
    """The network; its last layer is the head."""
    drop = [nn.Dropout(0.3)] if setting.extra == "regularised" else []
    if setting.model == "mlp":
        return nn.Sequential(
            *(nn.Linear(pixels, 512), nn.ReLU(), *drop),
            *(nn.Linear(512, 256), nn.ReLU(), *drop),
            nn.Linear(256, CLASSES),
        )
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), *drop),
        nn.Linear(64, CLASSES),
    )


def make_optimizer(setting: Setting, model: nn.Module) -> Optimizer:
    decay = WEIGHT_DECAY if setting.extra == "regularised" else 0.0
    if setting.optimizer == "adam":
        rate = 3e-3 if setting.extra == "pretrained" else 1e-3
        return Adam(model.parameters(), lr=rate, weight_decay=decay)
    return SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)


def make_schedule(setting: Setting, optimizer: Optimizer) -> LRScheduler:
    """Stepped once an epoch."""
    if setting.schedule == "cosine":
        return CosineAnnealingLR(optimizer, setting.epochs)
    if setting.schedule == "step":
        return StepLR(optimizer, setting.epochs // 3, gamma=0.3)
    return LambdaLR(optimizer, lambda epoch: 1.0)


def augmentation(setting: Setting) -> Callable[[Tensor], Tensor]:
    """What is done to the images of a batch."""
    return _shift_and_mirror if setting.extra == "augmented" else lambda images: images


def _shift_and_mirror(images: Tensor) -> Tensor:
    pictures = images.view(len(images), 1, 28, 28)
    mirrored = torch.rand(len(images)) < 0.5
    pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return pictures.roll((down, right), (2, 3)).flatten(1)


def pretrain(model: nn.Sequential, task: Task) -> None:
    """Three epochs on clean samples that the run itself never sees; then the head starts anew."""
    optimizer = Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        for batch in torch.randperm(len(task.clean_labels)).split(128):
            optimizer.zero_grad()
            logits = model(task.clean_images[batch])
            nn.functional.cross_entropy(logits, task.clean_labels[batch]).backward()
            optimizer.step()
    model[-1].reset_parameters()


# Training


def fresh_model(setting: Setting, task: Task) -> nn.Sequential:
    """The network as training begins; its last layer is the head."""
    model = make_model(setting, task.images.shape[1])
    if setting.extra == "pretrained":
        pretrain(model, task)
    return model


def epochs_of(
    setting: Setting, model: nn.Module, images: Tensor, labels: Tensor
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """The loop of the setting; each epoch gives index and logits of each batch after its update."""
    optimizer = make_optimizer(setting, model)
    schedule = make_schedule(setting, optimizer)
    augment = augmentation(setting)

    def visits() -> Iterator[tuple[Tensor, Tensor]]:
        model.train()
        for index in torch.randperm(len(labels)).split(BATCH[setting.data]):
            optimizer.zero_grad()
            logits = model(augment(images[index]))
            nn.functional.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            yield index, logits.detach()

    for _ in range(setting.epochs):
        yield visits()
        schedule.step()
