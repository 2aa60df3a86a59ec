"""The stop without clean labels: when it comes, and how good the weights are that it hands back.

A multi-layer perceptron learns 10,000 Fashion-MNIST samples with the two-line loop and the
monitor at its defaults. Each run goes on after the stop to the last epoch, so that the best epoch
of the whole run, chosen on the clean test set, is known: that is what the returned weights are
compared with.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data.images import add_data_option, load_images
from benchmarks.environment import earlier_runs, write_results
from benchmarks.jobs import completed
from benchmarks.models import make_optimizer, mlp
from benchmarks.stopping.runs.record import accuracy, running_average
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor, corrupt_labels

NOISES = (0.4, 0.0)
OPTIMIZERS = ("adam", "sgd")
SAMPLES = 10_000
BATCH = 128

Run = dict[str, Any]
Bar = tuple[str, str, Callable[[Iterable[float]], float], float]
BARS: dict[float, list[Bar]] = {
    0.4: [
        ("mean of returned − best raw, points", "gain", fmean, 0.0),
        ("worst of returned − best raw, points", "gain", min, -1.5),
        ("worst AUROC of the suspects", "auroc", min, 0.97),
    ],
    0.0: [("mean of returned − best raw, points", "gain", fmean, -0.5)],
}
"""By noise rate: what is judged, its key in a run, how runs are summed up, and the least value."""


@dataclass(frozen=True)
class Setting:
    """What makes one run."""

    noise: float
    optimizer: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class Task:
    """The data of one run, on the CPU."""

    images: Tensor
    given: Tensor
    noisy: Tensor
    test_images: Tensor
    test_labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--resume", action="store_true", help="keep the runs of an earlier call")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = [
        Setting(noise, optimizer, seed, options.epochs)
        for noise, optimizer, seed in product(NOISES, OPTIMIZERS, range(options.seeds))
    ]
    kept = earlier_runs("stopping/stop") if options.resume else []
    runs = {setting: run for run in kept if (setting := Setting(**run["setting"])) in settings}
    missing = [setting for setting in settings if setting not in runs]
    for setting, run in completed(options.jobs, make_run, missing, options.data):
        runs[setting] = run
        path = write_results("stopping/stop", results([runs[s] for s in settings if s in runs]))
        print(f"{len(runs)} of {len(settings)} runs: {path}", flush=True)
    report([runs[setting] for setting in settings])


def make_run(setting: Setting, folder: Path | None) -> Run:
    """Train with the monitor at its defaults, to the last epoch, and judge what it gives back."""
    task = load_task(setting, folder)
    torch.manual_seed(setting.seed)
    model = mlp(784, 512, 256, 10)
    optimizer = make_optimizer(setting.optimizer, model.parameters())
    loader = DataLoader(TensorDataset(task.images, task.given), batch_size=BATCH, shuffle=True)
    average = running_average(model, len(loader))
    epochs: list[dict[str, float]] = []
    at_stop: dict[str, Any] | None = None
    with GradientMonitor(model, optimizer, loader) as monitor:
        for _ in range(setting.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                average.update_parameters(model)
            epochs.append({"raw": tested(model, task), "averaged": tested(average.module, task)})
            if monitor.should_stop and at_stop is None:
                at_stop = view(monitor, task.noisy)
        at_stop = at_stop or view(monitor, task.noisy)
        restored = monitor.restore_best()
    returned = {"restored_epoch": restored, "returned": tested(model, task)}
    return {"setting": asdict(setting)} | at_stop | returned | judge(epochs, returned["returned"])


def load_task(setting: Setting, folder: Path | None) -> Task:
    images, labels = load_images(folder, "fashion-mnist", "train")
    generator = torch.Generator().manual_seed(setting.seed)
    drawn = torch.randperm(len(labels), generator=generator)[:SAMPLES]
    given = corrupt_labels(labels[drawn], setting.noise, generator=generator)
    test = load_images(folder, "fashion-mnist", "test")
    return Task(images[drawn], given, given != labels[drawn], *test)


def tested(model: nn.Module, task: Task) -> float:
    """Accuracy on the clean test set, in per cent."""
    return accuracy(model, task.test_images, task.test_labels)


def view(monitor: GradientMonitor, noisy: Tensor) -> dict[str, Any]:
    """What the monitor says now."""
    records = monitor.history()
    priority = [record["priority"] for record in records if record.get("priority") is not None]
    suspects = monitor.suspects(min_score=0)
    truth = [bool(noisy[suspect.index]) for suspect in suspects]
    taken = [suspect.score > 0.5 for suspect in suspects]
    hits = sum(one and other for one, other in zip(truth, taken, strict=True))
    scores = [suspect.score for suspect in suspects]
    return {
        "stop_epoch": monitor.decision.epoch if monitor.should_stop else None,
        "peak": 1 + priority.index(max(priority)),
        "best_epoch": monitor.best_epoch,
        "noise_rate": monitor.noise_rate,
        "auroc": float(roc_auc_score(truth, scores)) if any(truth) else None,
        "precision": hits / sum(taken) if any(taken) and any(truth) else None,
        "recall": hits / sum(truth) if any(truth) else None,
        "priority": priority,
    }


def judge(epochs: list[dict[str, float]], returned: float) -> dict[str, Any]:
    """The run beside its own best epochs."""
    curves = {key: [epoch[key] for epoch in epochs] for key in epochs[0]}
    raw, averaged = curves["raw"], curves["averaged"]
    return {
        "best_raw": max(raw),
        "best_raw_epoch": raw.index(max(raw)) + 1,
        "best_averaged": max(averaged),
        "best_averaged_epoch": averaged.index(max(averaged)) + 1,
        "last": raw[-1],
        "gain": returned - max(raw),
        "regret": max(averaged) - returned,
        "curves": curves,
    }


def results(runs: list[Run]) -> dict[str, Any]:
    groups = [(noise, optimizer) for noise in NOISES for optimizer in (*OPTIMIZERS, None)]
    summaries = [summary(runs, noise, optimizer) for noise, optimizer in groups]
    return {
        "samples": SAMPLES,
        "batch": BATCH,
        "summaries": [entry for entry in summaries if entry],
        "bars": [bar for noise in NOISES for bar in bars(runs, noise)],
        "runs": runs,
    }


def select(runs: list[Run], noise: float, optimizer: str | None) -> list[Run]:
    chosen = [run for run in runs if run["setting"]["noise"] == noise]
    return [run for run in chosen if optimizer in (None, run["setting"]["optimizer"])]


def summary(runs: list[Run], noise: float, optimizer: str | None) -> dict[str, Any] | None:
    """Means and worst of the runs with this noise and optimizer; None of the latter: all."""
    chosen = select(runs, noise, optimizer)
    if not chosen:
        return None
    column = {key: [run[key] for run in chosen] for key in chosen[0]}
    return {
        "noise": noise,
        "optimizer": optimizer or "all",
        "runs": len(chosen),
        "stopped": sum(epoch is not None for epoch in column["stop_epoch"]),
        "mean_gain": fmean(column["gain"]),
        "worst_gain": min(column["gain"]),
        "mean_regret": fmean(column["regret"]),
        "worst_regret": max(column["regret"]),
        "mean_last_minus_best": fmean(r["last"] - r["best_raw"] for r in chosen),
        "worst_auroc": min(column["auroc"]) if noise else None,
        "mean_noise_rate": fmean(column["noise_rate"]),
    }


def bars(runs: list[Run], noise: float) -> list[dict[str, Any]]:
    chosen = select(runs, noise, None)
    judged = [
        (title, sum_up([run[key] for run in chosen]), least)
        for title, key, sum_up, least in BARS[noise]
        if chosen
    ]
    return [
        {"noise": noise, "what": title, "value": value, "least": least, "passed": value >= least}
        for title, value, least in judged
    ]


def report(runs: list[Run]) -> None:
    columns = ["noise", "optimizer", "seed", "stop_epoch", "peak", "restored_epoch", "returned"]
    columns += ["best_raw", "best_raw_epoch", "last", "gain", "regret", "auroc", "precision"]
    columns += ["recall", "noise_rate"]
    rows = [[(run | run["setting"])[column] for column in columns] for run in runs]
    print_records = partial(print_table, columns=columns, rows=rows)
    print_records("Each run; gain: returned − best raw, regret: best averaged − returned, points")
    summed = results(runs)
    for title, entries in (
        ("By noise and optimizer", summed["summaries"]),
        ("Bars", summed["bars"]),
    ):
        print_table(title, list(entries[0]), [list(entry.values()) for entry in entries])


if __name__ == "__main__":
    main()
