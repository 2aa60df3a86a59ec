"""The training of each public script once more, in a plain loop with the two lines in it.

Model, data, optimizer, schedule and batches are the script's; what it prints, saves and evaluates
is left out. Each function takes the script and the folder of the files.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, random_split

from prioritymonitor import GradientMonitor

Loss = Callable[[nn.Module, Any], Tensor]


def train(
    model: nn.Module,
    optimizer: Optimizer,
    loader: DataLoader[Any],
    loss: Loss,
    epochs: int,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    after_step: Callable[[int], object] = lambda step: None,
    after_epoch: Callable[[int], object] = lambda epoch: None,
    criterion: nn.Module | None = None,
) -> None:
    """The loop.

    Args:
        model: What is trained.
        optimizer: Its optimizer.
        loader: Its batches.
        loss: Of the model and a batch.
        epochs: How many at most.
        accumulate: Batches of a step.
        clip: Largest norm of the gradient.
        after_step: Called with the number of optimizer steps made.
        after_epoch: Called with the number of epochs made.
        criterion: For the monitor.
    """
    steps = 0
    monitor = GradientMonitor(model, optimizer, loader, criterion=criterion, log_dir="runs/a")
    for epoch in range(1, epochs + 1):
        model.train()
        for number, batch in enumerate(loader, 1):
            (loss(model, batch) / accumulate).backward()
            if number % accumulate == 0 or number == len(loader):
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
                after_step(steps)
        after_epoch(epoch)
        if monitor.should_stop:
            break
    monitor.close()


# Images


def mnist(script: str, files: str) -> None:
    torch.manual_seed(1)
    _adadelta(_module(script).Net(), files)


def train_fabric(script: str, files: str) -> None:
    torch.manual_seed(1)
    _adadelta(_module(script).Net(), files)


def _adadelta(model: nn.Module, files: str) -> None:
    loader = DataLoader(_images(files, 0.1307, 0.3081), 64)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)

    def after_epoch(epoch: int) -> None:
        _as_evaluated(epoch)
        scheduler.step()

    train(model, optimizer, loader, _nll, 6, after_epoch=after_epoch)


def ignite_mnist(script: str, files: str) -> None:
    torch.manual_seed(0)
    model = _module(script).Net()
    loader = DataLoader(_images(files, 0.1307, 0.3081), 64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    train(model, optimizer, loader, _nll, 30)


def backbone_image_classifier(script: str, files: str) -> None:
    torch.manual_seed(1234)
    model = _module(script).Backbone()
    part, _ = random_split(
        _images(files, 0.0, 1.0), [1_200, 300], generator=torch.Generator().manual_seed(42)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    train(model, optimizer, DataLoader(part, 32), _cross_entropy, 30)


def timm_train(script: str, files: str) -> None:
    import timm
    from timm.data import create_dataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    torch.manual_seed(42)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    images = create_dataset(
        "torch/mnist",
        root=f"{files}/mnist",
        split="train",
        is_training=True,
        input_img_mode="L",
    )
    loader = create_loader(
        images,
        input_size=(1, 28, 28),
        batch_size=64,
        is_training=True,
        use_prefetcher=False,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        color_jitter=0.4,
        interpolation="random",
        mean=(0.13,),
        std=(0.31,),
        num_workers=1,
    )
    optimizer = create_optimizer_v2(model, "sgd", lr=0.025, momentum=0.9, weight_decay=2e-5)
    scheduler, epochs = create_scheduler_v2(
        optimizer, "cosine", num_epochs=20, warmup_epochs=5, warmup_lr=1e-5, min_lr=0
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    train(
        model,
        optimizer,
        loader,
        lambda network, batch: criterion(network(batch[0]), batch[1]),
        epochs,
        after_epoch=scheduler.step,
        criterion=criterion,
    )


def _images(files: str, mean: float, deviation: float) -> TensorDataset:
    folder = Path(files, "mnist", "MNIST", "raw")
    pixels, labels = (
        np.frombuffer((folder / f"train-{name}-ubyte").read_bytes()[header:], np.uint8).copy()
        for name, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    images = torch.from_numpy(pixels).view(len(labels), 1, 28, 28).float().div(255)
    return TensorDataset((images - mean) / deviation, torch.from_numpy(labels).long())


def _nll(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.nll_loss(model(batch[0]), batch[1])


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


# Texts


def nlp_example(script: str, files: str) -> None:
    _finetune(Path(files), "train-pairs.json", warmup=100, after_epoch=_as_evaluated)


def run_glue(script: str, files: str) -> None:
    _as_the_trainer(files)


def run_glue_accumulation(script: str, files: str) -> None:
    _as_the_trainer(files, accumulate=2)


def run_glue_smoothing(script: str, files: str) -> None:
    _as_the_trainer(files, smoothing=0.1)


class _SeededOrder(RandomSampler):
    """An order of its own for each epoch, as Accelerate makes it for the Trainer."""

    epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(42 + self.epoch)
        self.epoch += 1
        return super().__iter__()


def _as_the_trainer(files: str, **options: Any) -> None:
    _finetune(Path(files), "train.json", clip=1.0, by_trainer=True, **options)


def _as_evaluated(epoch: int) -> None:
    """The loader of an evaluation draws a seed, by which dropout goes on otherwise."""
    torch.empty((), dtype=torch.int64).random_()


def _finetune(
    files: Path,
    name: str,
    *,
    warmup: int = 0,
    smoothing: float = 0.0,
    by_trainer: bool = False,
    **options: Any,
) -> None:
    """A text classifier, by AdamW with a rate that falls to zero within 5 epochs.

    Args:
        files: The folder of the files.
        name: That of the training samples.
        warmup: Steps in which the rate rises.
        smoothing: Of the labels.
        by_trainer: Whether order, seeds and optimizer are those of the Trainer's defaults.
        options: For `train()`.
    """
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        get_linear_schedule_with_warmup,
    )

    torch.manual_seed(42)
    rows = [json.loads(line) for line in (files / "texts" / name).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(files / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(files / "encoder")
    texts = [name for name in ("sentence", "sentence1", "sentence2") if name in rows[0]]
    longest = 64 if by_trainer else None
    encoded = [
        tokenizer(*(row[one] for one in texts), truncation=True, max_length=longest) for row in rows
    ]
    samples = [one | {"labels": row["label"]} for one, row in zip(encoded, rows, strict=True)]

    def together(batch: Iterable[dict[str, Any]]) -> Any:
        return tokenizer.pad(list(batch), return_tensors="pt")

    order = _SeededOrder(samples) if by_trainer else RandomSampler(samples)  # type: ignore
    loader = DataLoader(samples, 16, sampler=order, collate_fn=together)  # type: ignore[arg-type]
    decay = 0.0 if by_trainer else 0.01
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=decay, fused=by_trainer)
    steps = 5 * -(-len(loader) // options.get("accumulate", 1))
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    if by_trainer:
        torch.manual_seed(42)  # as a Trainer does when it is made
    train(
        model,
        optimizer,
        loader,
        lambda network, batch: criterion(network(**batch).logits, batch["labels"]),
        5,
        after_step=lambda _: scheduler.step(),
        criterion=criterion,
        **options,
    )


def _module(script: str) -> ModuleType:
    """The script, for its network."""
    spec = importlib.util.spec_from_file_location("script", script)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{script} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
