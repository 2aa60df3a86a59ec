"""One run of an experiment: what the public API says of it, and what can be seen directly."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.paper.gradients import angles, group_statistics
from benchmarks.paper.setups import (
    Experiment,
    Task,
    load_task,
    loss_of,
    make_network,
    make_optimizer,
    targets,
)
from prioritymonitor import GradientMonitor, StopReason

EVERY = 4
"""The monitor measures each so many steps."""
TAGS = [
    tag + suffix
    for suffix in ("", "_population")
    for tag in ("segment_ratio", "dominance_ratio", "group_cosine", "noise_share")
]
ANGLE_SAMPLES = 100
BIN = 5
"""Degrees of a bin of the histograms."""
DIGITS = 4
"""Significant digits that are kept."""

Run = dict[str, Any]
Curves = dict[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """What makes one run: an experiment as it is, and a seed for data and weights."""

    name: str
    experiment: Experiment
    seed: int


def make_run(setting: Setting, data: Path | None, cifar: Path | None) -> Run:
    """Train; angles before training, and curves over the epochs from before training on."""
    experiment = setting.experiment
    task = load_task(experiment, setting.seed, data, cifar)
    # A twin is looked at: the monitor would take a backward pass of the model itself for training.
    twin = make_network(experiment)
    torch.manual_seed(setting.seed)
    model = make_network(experiment)
    twin.load_state_dict(model.state_dict())
    at_start = angles(twin, task.images, task.given, task.true, ANGLE_SAMPLES)
    curves: Curves = defaultdict(list)
    steps: Curves = defaultdict(list)
    observe(twin, task, curves)
    for values in train(model, experiment, task):
        twin.load_state_dict(model.state_dict())
        observe(twin, task, curves)
        for tag, column in values.items():
            steps[tag].append(mean_of_defined(column))
    return {
        "angles": {pairs: angle_summary(degrees) for pairs, degrees in at_start.items()},
        "epochs": rounded(curves),
        "steps": rounded(steps),
    }


def train(model: nn.Module, experiment: Experiment, task: Task) -> Iterator[Curves]:
    """After each epoch, the tags of its measured steps."""
    dataset = TensorDataset(task.images, targets(experiment, task.given))
    loader = DataLoader(dataset, experiment.batch, shuffle=True)
    optimizer = make_optimizer(experiment, model)
    loss = loss_of(experiment)
    arguments = {"true_labels": task.true, "scope": "all", "every": EVERY, "criterion": loss}
    step = 0
    with GradientMonitor(
        model, optimizer, loader, stop=None, keep_best=None, **arguments
    ) as monitor:
        for _ in range(experiment.epochs):
            values: Curves = {tag: [] for tag in TAGS}
            for x, y in loader:
                optimizer.zero_grad()
                loss(model(x), y).backward()
                optimizer.step()
                if step % EVERY == 0:
                    for tag, column in values.items():
                        column.append(monitor.latest[tag])
                step += 1
            if monitor.decision.reason is StopReason.FAILED:
                raise RuntimeError(monitor.decision.message)
            yield values


def observe(model: nn.Module, task: Task, curves: Curves) -> None:
    """Errors, losses, residuals, and the gradients over the whole training set."""
    probability = probabilities(model, task.images)
    groups = {"clean": ~task.noisy, "noisy": task.noisy}
    of_given = probability.gather(1, task.given.unsqueeze(1)).squeeze(1)
    # The paper's residual is that at the logit of the true class, which a wrong label wants at 0.
    of_true = probability.gather(1, task.true.unsqueeze(1)).squeeze(1)
    residual = torch.where(task.noisy, of_true, 1 - of_true)
    wrong = (probability.argmax(1) != task.given).double()
    loss = -of_given.clamp(min=torch.finfo(of_given.dtype).tiny).log()
    found = probabilities(model, task.test_images).argmax(1)
    curves["test_error"].append((found != task.test_labels).double().mean().item())
    for group, chosen in groups.items():
        for name, values in (("error", wrong), ("loss", loss), ("residual", residual)):
            curves[f"{group}_{name}"].append(values[chosen].mean().item())
    for name, value in group_statistics(model, task.images, task.given, task.true).items():
        curves[name].append(value)


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Of each class, `[n, C]`, float64."""
    logits = torch.cat([model(part) for part in images.split(500)]).double()
    if logits.shape[1] > 1:
        return logits.softmax(1)
    # A single logit z stands for the two logits 0 and z.
    return torch.cat([torch.zeros_like(logits), logits], 1).softmax(1)


def angle_summary(degrees: Tensor) -> dict[str, Any]:
    return {
        "median": degrees.median().item(),
        "lowest": degrees.min().item(),
        "highest": degrees.max().item(),
        "histogram": (degrees.histc(180 // BIN, 0, 180) / len(degrees)).tolist(),
    }


def mean_of_defined(values: list[float]) -> float:
    """NaN where no value is finite: a class without noisy samples has an infinite ratio."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def rounded(curves: Curves) -> Curves:
    return {
        name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in curves.items()
    }
