"""What a training gains that goes on after the stop, without the suspects.

The two lines in a plain loop; then ten epochs more from the restored weights, on the samples of
`clean_indices()`, under a monitor of their own; and the same on all samples, for comparison.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from benchmarks.data.images import add_data_option
from benchmarks.environment import earlier_runs, write_results
from benchmarks.jobs import completed
from benchmarks.stopping.runs.record import accuracy
from benchmarks.stopping.runs.settings import Setting, settings
from benchmarks.stopping.runs.task import (
    Task,
    augmentation,
    fresh_model,
    load_task,
    make_optimizer,
    make_schedule,
)
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor

MORE_EPOCHS = 10
Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--resume", action="store_true", help="make no run twice")
    parser.add_argument("--report", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [one for one in settings(1) if one.family != "fine-tuning"]
    runs = {run["name"]: run for run in earlier_runs("stopping/go_on")}
    if not (options.resume or options.report):
        runs = {}
    missing = [] if options.report else [one for one in wanted if one.name not in runs]
    for setting, run in completed(options.jobs, go_on, missing, options.data):
        runs[setting.name] = run
        print(f"{setting.group}: {run['handed_back']:.1f} {run['gain']:+.2f}", flush=True)
        report([runs[one.name] for one in wanted if one.name in runs])
    report([runs[one.name] for one in wanted if one.name in runs])


def go_on(setting: Setting, folder: Path | None) -> Run:
    """Train to the stop or the end, and go on; accuracies on clean test data, in per cent."""
    logging.getLogger("prioritymonitor").setLevel(logging.ERROR)
    task = load_task(setting, folder)
    torch.manual_seed(setting.seed)
    model = fresh_model(setting, task)
    monitor = _train(setting, task, model, None, setting.epochs, is_scheduled=True)
    restored = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    handed_back = accuracy(model, task.test_inputs, task.test_labels)
    clean = torch.from_numpy(monitor.clean_indices())
    wrong = task.given != task.true
    gains = {"gain": 0.0}
    parts = {"gain": clean} if len(clean) else {}
    for name, part in (parts | {"gain_with_all": None}).items():
        model.load_state_dict(restored)
        _train(setting, task, model, part, MORE_EPOCHS)
        gains[name] = accuracy(model, task.test_inputs, task.test_labels) - handed_back
    return {
        "name": setting.name,
        "setting": asdict(setting),
        "stopped": monitor.decision.stop,
        "best_epoch": monitor.best_epoch,
        "handed_back": handed_back,
        "refused": not len(clean),
        "wrong_before": wrong.float().mean().item(),
        "wrong_after": wrong[clean].float().mean().item() if len(clean) else None,
        "kept": len(clean) / len(wrong),
        **gains,
    }


def _train(
    setting: Setting,
    task: Task,
    model: nn.Module,
    part: Tensor | None,
    epochs: int,
    is_scheduled: bool = False,
) -> GradientMonitor:
    """Until the stop, or so many epochs."""
    optimizer = make_optimizer(setting, model)
    data = TensorDataset(task.inputs, task.given)
    chosen = data if part is None else Subset(data, part.tolist())
    loader = DataLoader(chosen, batch_size=task.batch, shuffle=True)
    monitor = GradientMonitor(model, optimizer, loader)
    schedule = make_schedule(setting, optimizer) if is_scheduled else None
    augment = augmentation(setting)
    model.train()
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(augment(inputs)), labels).backward()
            optimizer.step()
        if schedule is not None:
            schedule.step()
        if monitor.should_stop:
            break
    monitor.restore_best()
    monitor.close()
    return monitor


def report(runs: list[Run]) -> None:
    if not runs:
        raise SystemExit("no runs: leave --report out")
    rows = [row(name, some) for name, some in groups(runs).items()]
    print_table("Going on without the suspects", list(rows[0]), [list(r.values()) for r in rows])
    write_results("stopping/go_on", {"groups": rows, "runs": runs})


def groups(runs: list[Run]) -> dict[str, list[Run]]:
    """By kind of noise and by family."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        setting = run["setting"]
        names = [f"noise: {setting['noise'] if setting['rate'] else 'none'}"]
        names += [f"family: {setting['family']}"] if setting["rate"] else []
        for name in names:
            found.setdefault(name, []).append(run)
    return dict(sorted(found.items(), reverse=True))


def row(name: str, runs: list[Run]) -> Run:
    return {
        "runs of": name,
        "runs": len(runs),
        "refused": sum(run["refused"] for run in runs),
        "gain": fmean(run["gain"] for run in runs),
        "worst": min(run["gain"] for run in runs),
        "with_all": fmean(run["gain_with_all"] for run in runs),
    }


if __name__ == "__main__":
    main()
