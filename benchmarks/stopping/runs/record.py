"""Trains a setting to its last epoch and writes down all that a rule may want to know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.stopping.runs import signals
from benchmarks.stopping.runs.networks import head_of
from benchmarks.stopping.runs.representations import representation
from benchmarks.stopping.runs.settings import Setting
from benchmarks.stopping.runs.task import Task, epochs_of, fresh_model, load_task

HELD_OUT = 0.1
"""Share of the training samples that validation on given labels takes away."""

AVERAGED_EPOCHS = 1.3
"""Horizon of the running average, that of the weights which the monitor keeps."""

_TYPES = {"index": torch.int32, "alone": torch.float32, "together": torch.float32}
_TYPES |= dict.fromkeys(("predicted", "rival"), torch.int8)

_EVALUATED = 250

Recording = dict[str, Any]


def record(setting: Setting, folder: Path | None) -> Recording:
    """Train on all samples.

    Returns:
        `visits`, for each epoch what `signals.of_visits` says, in the order of training `[n]`;
        the `representation` of each sample before training, `[n, 2, 64]`; `groups` `[steps, 5]`;
        `epochs`, the rivals' signals after each; `raw` and `averaged`, accuracies in per cent on
        clean test data, `views_per_epoch` times an epoch; `given`, `true`.
    """
    task = load_task(setting, folder)
    run = _Run(setting, task, task.inputs, task.given)
    noisy = task.given != task.true
    epochs: list[dict[str, float]] = []
    groups: list[Tensor] = []
    curves: dict[str, list[float]] = defaultdict(list)
    for _ in range(setting.epochs):
        for index, logits in run.epoch():
            labels = task.given[index]
            groups.append(signals.of_groups(logits, labels, run.features, noisy[index]))
            if run.is_time_to_look():
                for name, model in run.views():
                    curves[name].append(accuracy(model, task.test_inputs, task.test_labels))
        epochs.append(signals.of_parameters(run.model, task.inputs, task.given, task.batch))
    true = task.true.to(torch.int8)
    return {**run.seen(), "groups": torch.stack(groups), "epochs": epochs, "true": true, **curves}


def record_with_validation(setting: Setting, folder: Path | None) -> Recording:
    """Train without the held-out samples, and validate on their given labels.

    Returns:
        `visits`, `representation` and `given` of the other samples as in `record`; `raw`
        and `averaged`, accuracies on clean test data, `raw_validation` and `averaged_validation`,
        on the given labels of the held-out samples, in per cent, and `raw_validation_loss` and
        `averaged_validation_loss`, their mean loss.
    """
    task = load_task(setting, folder)
    kept = round((1 - HELD_OUT) * len(task.given))
    run = _Run(setting, task, task.inputs[:kept], task.given[:kept])
    held_out = task.inputs[kept:], task.given[kept:]
    curves: dict[str, list[float]] = defaultdict(list)
    for _ in range(setting.epochs):
        for _ in run.epoch():
            if run.is_time_to_look():
                for name, model in run.views():
                    curves[name].append(accuracy(model, task.test_inputs, task.test_labels))
                    logits = logits_of(model, held_out[0])
                    loss = nn.functional.cross_entropy(logits, held_out[1]).item()
                    curves[f"{name}_validation"].append(_hits(logits, held_out[1]))
                    curves[f"{name}_validation_loss"].append(loss)
    return {**run.seen(), **curves}


def in_order(recording: Recording, name: str, epochs: int | None = None) -> Tensor:
    """A column of each visit, in the order of the data set, float32 `[epochs, n]`; None: all."""
    rows = []
    for visits in recording["visits"][:epochs]:
        row = torch.empty(len(visits["index"]))
        row[visits["index"].long()] = visits[name].detach().float()
        rows.append(row)
    return torch.stack(rows)


class _Run:
    """A training loop that hands over each batch after its update, and keeps what it showed."""

    def __init__(self, setting: Setting, task: Task, inputs: Tensor, given: Tensor) -> None:
        torch.manual_seed(setting.seed)
        self.model = fresh_model(setting, task)
        self._head = head_of(self.model)
        self._given = given
        self._representation = representation(self.model, self._head, inputs)
        self._visits: list[signals.Columns] = []
        self._epochs = epochs_of(setting, self.model, inputs, given, task.batch)
        self._steps_per_epoch = -(-len(given) // task.batch)
        self._average = running_average(self.model, self._steps_per_epoch)
        self._step = 0
        looks = setting.views_per_epoch
        self._looks = {round(self._steps_per_epoch * (k + 1) / looks) for k in range(looks)}
        self.features = torch.empty(0)
        self._head.register_forward_hook(self._keep_features)

    def _keep_features(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training and inputs[0].requires_grad:
            self.features = inputs[0].detach()

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Index and logits of each batch, `[B]` and `[B, C]`, after its update."""
        seen = defaultdict(list)
        for index, logits in next(self._epochs):
            self._average.update_parameters(self.model)
            self._step += 1
            columns = signals.of_visits(logits, self._given[index], self.features, self._head)
            for name, column in (columns | {"index": index}).items():
                seen[name].append(column.to(_TYPES.get(name, torch.float16)))
            yield index, logits
        self._visits.append({name: torch.cat(columns) for name, columns in seen.items()})

    def seen(self) -> Recording:
        """What the samples showed so far."""
        return {
            "visits": self._visits,
            "representation": self._representation,
            "given": self._given.to(torch.int8),
        }

    def is_time_to_look(self) -> bool:
        return (self._step - 1) % self._steps_per_epoch + 1 in self._looks

    def views(self) -> list[tuple[str, nn.Module]]:
        """The weights now and their running average."""
        return [("raw", self.model), ("averaged", self._average.module)]


def running_average(model: nn.Module, steps_per_epoch: int) -> AveragedModel:
    """The average of all weights and buffers so far, over the horizon of the monitor's own."""
    most = 1 - 1 / (AVERAGED_EPOCHS * steps_per_epoch)

    def update(averages: list[Tensor], currents: list[Tensor], averaged: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, currents)
            return
        steps = int(averaged) - 1  # the initial weights are the first that are averaged
        torch._foreach_lerp_(averages, currents, 1 - min(most, (1 + steps) / (10 + steps)))

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    average.update_parameters(model)
    return average


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """In per cent, in evaluation mode."""
    return _hits(logits_of(model, inputs), labels)


@torch.no_grad()
def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """In evaluation mode, `[n, C]`."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model(some) for some in inputs.split(_EVALUATED)])
    model.train(was_training)
    return logits


def _hits(logits: Tensor, labels: Tensor) -> float:
    return 100 * (logits.argmax(1) == labels).double().mean().item()
