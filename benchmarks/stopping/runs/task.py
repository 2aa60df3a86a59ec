"""The data, model and loop that a setting names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR

from benchmarks.data.images import (
    digits,
    human_labels,
    load_images,
    only_classes,
    pairs_of_digits,
)
from benchmarks.data.labels import wrong_labels
from benchmarks.data.tables import load_table
from benchmarks.data.texts import bags_of_words, load_texts
from benchmarks.stopping.runs.networks import LITE0_PIXELS, SHAPES, head_of, make_model
from benchmarks.stopping.runs.settings import Setting

_IMAGE_SETS = ("fashion-mnist", "mnist")
_SEVERAL = {"fashion-2": (4, 6), "fashion-3": (2, 4, 6)}
"""Classes of Fashion-MNIST that are easily confused: coats, shirts, pullovers."""
_SAMPLES = {"digits": 1_300, "fashion-2": 4_000, "fashion-3": 6_000, "letter": 10_000}
_SAMPLES |= {"penbased": 5_000, "satimage": 4_000, "texture": 3_500, "contraceptive": 1_000}
_SAMPLES |= {"phoneme": 3_500, "ring": 4_000, "cifar10": 6_000}
_MOST_SAMPLES = 10_000
_LITE0_SAMPLES = 2_000
TEST_SAMPLES = 5_000
_LITE0_TEST_SAMPLES = 1_000
_LONGEST_TEXT = 32
WEIGHT_DECAY = 5e-4
_WARM_UP = 8


@dataclass(frozen=True)
class Task:
    """What a run learns from and is judged by; inputs are `[n, D]`."""

    inputs: Tensor
    given: Tensor
    true: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    clean_inputs: Tensor
    """Other samples with true labels, for pretraining only."""
    clean_labels: Tensor
    batch: int
    """Size of the training batches."""

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.true.max()) + 1


def load_task(setting: Setting, folder: Path | None) -> Task:
    """The data of a setting."""
    generator = torch.Generator().manual_seed(setting.seed)
    if setting.data in ("youtube", "semeval"):
        return _texts(setting, folder, generator)
    if setting.data == "cifar10":
        return _human(setting, folder, generator)
    inputs, labels, *test = _labelled(setting.data, folder)
    count = _SAMPLES.get(setting.data, _MOST_SAMPLES)
    order = torch.randperm(len(labels), generator=generator)
    drawn, others = order[:count], order[count : 2 * count]
    if not test:
        test = [inputs[order[count:]], labels[order[count:]]]
    true = labels[drawn]
    given = wrong_labels(inputs[drawn], true, setting.noise, setting.rate, generator)
    test = [part[:TEST_SAMPLES] for part in test]
    batch = 128 if count > 5_000 else 64 if count > 2_000 else 32
    return Task(inputs[drawn], given, true, *test, inputs[others], labels[others], batch)


def _labelled(data: str, folder: Path | None) -> list[Tensor]:
    """Inputs and true labels, and those of the test where the data have them."""
    if data == "digits":
        return list(digits())
    if data in _IMAGE_SETS:
        parts = [load_images(folder, data, part) for part in ("train", "test")]
        return [column for part in parts for column in part]
    if data in _SEVERAL:
        parts = [load_images(folder, "fashion-mnist", part) for part in ("train", "test")]
        return [column for part in parts for column in only_classes(*part, *_SEVERAL[data])]
    if data == "digit-pairs":
        parts = [load_images(folder, "mnist", part) for part in ("train", "test")]
        counts = (2 * _MOST_SAMPLES, TEST_SAMPLES)
        return [
            column
            for part, count in zip(parts, counts, strict=True)
            for column in pairs_of_digits(*part, count)
        ]
    return list(load_table(data))


def _human(setting: Setting, folder: Path | None, generator: torch.Generator) -> Task:
    found = human_labels(folder)
    is_lite0 = setting.model == "lite0"
    count = _LITE0_SAMPLES if is_lite0 else _SAMPLES["cifar10"]
    drawn = torch.randperm(len(found.images), generator=generator)[:count]
    true = found.labels["clean"][drawn]
    images, tests = found.images[drawn], found.test_images
    if setting.noise in found.labels:
        given = found.labels[setting.noise][drawn]
    else:
        given = wrong_labels(images, true, setting.noise, setting.rate, generator)
    if is_lite0:
        from benchmarks.data.pretrained import lite0_images

        some = slice(_LITE0_TEST_SAMPLES)
        inputs, test = (lite0_images(one, LITE0_PIXELS) for one in (images, tests[some]))
        test_labels = found.test_labels[some]
    else:
        inputs, test = (one.permute(0, 3, 1, 2).float() / 255 for one in (images, tests))
        mean, spread = inputs.mean((0, 2, 3), keepdim=True), inputs.std((0, 2, 3), keepdim=True)
        inputs, test = ((one - mean) / spread for one in (inputs, test))
        test_labels = found.test_labels
    inputs, test = inputs.flatten(1).float(), test.flatten(1).float()
    batch = 64 if is_lite0 else 128
    return Task(inputs, given, true, test, test_labels, inputs[:0], true[:0], batch)


def _texts(setting: Setting, folder: Path | None, generator: torch.Generator) -> Task:
    found = load_texts(folder, setting.data)
    if setting.model == "minilm":
        from benchmarks.data.pretrained import minilm_tokens

        parts = [minilm_tokens(some, _LONGEST_TEXT) for some in (found.texts, found.test_texts)]
    else:
        parts = list(bags_of_words(found.texts, found.test_texts))
    given = found.given
    if setting.noise != "rules":
        given = wrong_labels(parts[0], found.true, setting.noise, setting.rate, generator)
    inputs, test = parts
    return Task(inputs, given, found.true, test, found.test_labels, inputs[:0], given[:0], 32)


_ADAM_RATES = {"adam": 1e-3, "adam-slow": 1e-4, "adam-fast": 5e-3}
_FINE_TUNING_RATES = {"lite0": 1e-3, "minilm": 1e-4}


def make_optimizer(setting: Setting, model: nn.Module) -> Optimizer:
    decay = WEIGHT_DECAY if setting.extra == "regularised" else 0.0
    if setting.model in _FINE_TUNING_RATES:
        trained = [p for p in model.parameters() if p.requires_grad]
        return AdamW(trained, lr=_FINE_TUNING_RATES[setting.model])
    if setting.optimizer in _ADAM_RATES:
        rate = 3e-3 if setting.extra == "pretrained" else _ADAM_RATES[setting.optimizer]
        return Adam(model.parameters(), lr=rate, weight_decay=decay)
    return SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay)


def make_schedule(setting: Setting, optimizer: Optimizer) -> LRScheduler:
    """Stepped once an epoch."""
    if setting.schedule == "cosine":
        return CosineAnnealingLR(optimizer, setting.epochs)
    if setting.schedule == "step":
        return StepLR(optimizer, setting.epochs // 3, gamma=0.3)
    if setting.schedule == "warm-up":
        return LambdaLR(optimizer, lambda epoch: min(1.0, 10.0 ** (3 * epoch / _WARM_UP - 3)))
    return LambdaLR(optimizer, lambda epoch: 1.0)


def augmentation(setting: Setting) -> Callable[[Tensor], Tensor]:
    """What is done to the images of a batch."""
    shape = SHAPES.get(setting.data, (1, 28, 28))
    if setting.extra == "augmented":
        return lambda images: _shift_and_mirror(images, shape)
    return lambda images: images


def _shift_and_mirror(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    pictures = images.view(len(images), *shape)
    mirrored = torch.rand(len(images)) < 0.5
    pictures = torch.where(mirrored.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    down, right = torch.randint(-2, 3, (2,)).tolist()
    return pictures.roll((down, right), (2, 3)).flatten(1)


def pretrain(model: nn.Module, task: Task) -> None:
    """Three epochs on clean samples that the run itself never sees; then the head starts anew."""
    optimizer = Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        for batch in torch.randperm(len(task.clean_labels)).split(128):
            optimizer.zero_grad()
            logits = model(task.clean_inputs[batch])
            nn.functional.cross_entropy(logits, task.clean_labels[batch]).backward()
            optimizer.step()
    head_of(model).reset_parameters()


# Training


def fresh_model(setting: Setting, task: Task) -> nn.Module:
    """The network as training begins."""
    model = make_model(setting, task.inputs.shape[1], task.classes)
    if setting.extra == "pretrained":
        pretrain(model, task)
    return model


def epochs_of(
    setting: Setting, model: nn.Module, inputs: Tensor, labels: Tensor, batch: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """The loop of the setting; each epoch gives index and logits of each batch after its update."""
    optimizer = make_optimizer(setting, model)
    schedule = make_schedule(setting, optimizer)
    augment = augmentation(setting)

    def visits() -> Iterator[tuple[Tensor, Tensor]]:
        model.train()
        for index in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            logits = model(augment(inputs[index]))
            nn.functional.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            yield index, logits.detach()

    for _ in range(setting.epochs):
        yield visits()
        schedule.step()
