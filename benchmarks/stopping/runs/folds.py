"""The trainings that rivals need besides the run itself, done as their authors describe them."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor, nn

from benchmarks.stopping.runs.networks import head_of
from benchmarks.stopping.runs.record import logits_of, running_average
from benchmarks.stopping.runs.settings import Setting
from benchmarks.stopping.runs.task import epochs_of, fresh_model, load_task

FOLDS = 3

Trained = dict[str, Tensor]


def is_retrained(setting: Setting) -> bool:
    """Whether the trainings are made: where they are quick."""
    return setting.seed == 0 and setting.family in ("digits", "tables")


def out_of_sample(setting: Setting, folder: Path | None) -> Trained:
    """Cross validation: each sample is judged by a model that never saw it.

    Returns:
        `raw` and `averaged`: logits of each sample after each epoch, float16 `[epochs, n, C]`, by
        the weights as they are and by their running average.
    """
    task = load_task(setting, folder)
    shape = (setting.epochs, len(task.given), task.classes)
    logits = {view: torch.zeros(shape, dtype=torch.float16) for view in ("raw", "averaged")}
    splits = StratifiedKFold(FOLDS, shuffle=True, random_state=setting.seed)
    for fold, (kept, left_out) in enumerate(splits.split(task.given, task.given)):
        torch.manual_seed(setting.seed + fold)
        model = fresh_model(setting, task)
        kept, left_out = torch.from_numpy(kept), torch.from_numpy(left_out)
        batches = epochs_of(setting, model, task.inputs[kept], task.given[kept], task.batch)
        average = running_average(model, -(-len(kept) // task.batch))
        for epoch, visits in enumerate(batches):
            for _ in visits:
                average.update_parameters(model)
            for view, judge in (("raw", model), ("averaged", average.module)):
                logits[view][epoch, left_out] = logits_of(judge, task.inputs[left_out]).half()
    return logits


def with_threshold_samples(setting: Setting, folder: Path | None) -> Trained:
    """AUM's own way to a threshold: some samples are given to a class that does not exist.

    Two runs, so that no sample is a threshold sample in both.

    Returns:
        `logit_margin`: of each visit, float16 `[2, epochs, n]`; `threshold`: which samples belong
        to the made-up class, bool `[2, n]`.
    """
    task = load_task(setting, folder)
    count = len(task.given)
    generator = torch.Generator().manual_seed(setting.seed)
    share = count // (task.classes + 1)
    chosen = torch.randperm(count, generator=generator)[: 2 * share].view(2, share)
    threshold = torch.zeros(2, count, dtype=torch.bool).scatter_(1, chosen, True)
    margins = torch.zeros(2, setting.epochs, count, dtype=torch.float16)
    for run, made_up in enumerate(threshold):
        torch.manual_seed(setting.seed + run)
        model = fresh_model(setting, task)
        _add_class(head_of(model))
        labels = torch.where(made_up, task.classes, task.given)
        batches = epochs_of(setting, model, task.inputs, labels, task.batch)
        for epoch, visits in enumerate(batches):
            for index, logits in visits:
                own = labels[index].unsqueeze(1)
                other = logits.scatter(1, own, -torch.inf).amax(1)
                margins[run, epoch, index] = (logits.gather(1, own).squeeze(1) - other).half()
    return {"logit_margin": margins, "threshold": threshold}


def _add_class(head: nn.Linear) -> None:
    fresh = nn.Linear(head.in_features, head.out_features + 1)
    head.out_features = fresh.out_features
    head.weight, head.bias = fresh.weight, fresh.bias
