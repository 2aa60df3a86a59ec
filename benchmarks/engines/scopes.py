"""Does the head tell what all parameters would: both scopes measured along the same runs.

Each run is made twice from one seed, once with the step statistics of the head and once with those
of all parameters. Training is the same to the last bit, so their steps pair up. Wrong labels are
known to the monitor.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data.images import add_data_option, digits, load_images
from benchmarks.environment import write_results
from benchmarks.models import make_optimizer, mlp, small_cnn
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor, corrupt_labels

NOISE = 0.4
SAMPLES = 10_000
BATCH = 128
SCOPES = ("head", "all")
LEVELS = {"dominance_ratio": 1.0, "noise_share": 0.5, "group_cosine": None}
"""Tag -> where noisy gradients begin to dominate; None: nowhere in particular."""
TAGS = {tag + suffix: level for suffix in ("", "_population") for tag, level in LEVELS.items()}
LEAST_PAIRS = 3

Values = dict[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """What makes one run."""

    data: str
    network: str
    optimizer: str
    epochs: int

    def __str__(self) -> str:
        return f"{self.data}, {self.network}, {self.optimizer}"


SETTINGS = [
    Setting("digits", "mlp", "adam", 40),
    Setting("fashion-mnist", "mlp", "adam", 25),
    Setting("fashion-mnist", "cnn", "sgd", 12),
    Setting("fashion-mnist", "cnn with batch norm", "sgd", 12),
]
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "mlp": lambda pixels: nn.Sequential(nn.Flatten(), mlp(pixels, 512, 256, 10)),
    "cnn": lambda pixels: small_cnn(batch_norm=False, channels=1),
    "cnn with batch norm": lambda pixels: small_cnn(channels=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=5, help="measure each so many steps")
    parser.add_argument("--engine", default="auto", help="per-sample gradients of all parameters")
    parser.add_argument("--epochs", type=int, help="at most; default: of each run its own")
    parser.add_argument("--quick", action="store_true", help="the digits only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs: list[dict[str, Any]] = []
    for setting in SETTINGS[:1] if options.quick else SETTINGS:
        runs.append(compare(setting, options))
        report(runs[-1])
        path = write_results(
            "engines/scopes", {"noise": NOISE, "every": options.every, "runs": runs}
        )
    print(f"results: {path}")


def compare(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Make the run under both scopes."""
    dataset, noisy = load(setting.data, options.data)
    values: dict[str, Values] = {}
    weights: dict[str, list[Tensor]] = {}
    for scope in SCOPES:
        values[scope], weights[scope] = follow(setting, scope, dataset, noisy, options)
    pairs = zip(*weights.values(), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise RuntimeError(f"{setting}: the two runs differ, so their steps cannot be paired")
    steps_per_epoch = len(dataset) / BATCH / options.every
    tags = {tag: agreement(tag, values, steps_per_epoch) for tag in TAGS}
    return {"setting": asdict(setting), "tags": tags, "values": values}


def load(data: str, folder: Path | None) -> tuple[TensorDataset, Tensor]:
    """Square images of one channel with given labels, and which of these are wrong."""
    generator = torch.Generator().manual_seed(0)
    if data == "digits":
        images, true = digits()
    else:
        images, true = load_images(folder, data, "train")
        drawn = torch.randperm(len(true), generator=generator)[:SAMPLES]
        images, true = images[drawn], true[drawn]
    given = corrupt_labels(true, NOISE, generator=generator)
    side = math.isqrt(images.shape[1])
    return TensorDataset(images.view(-1, 1, side, side), given), given != true


def follow(
    setting: Setting,
    scope: str,
    dataset: TensorDataset,
    noisy: Tensor,
    options: argparse.Namespace,
) -> tuple[Values, list[Tensor]]:
    """Train; the tags of all measured steps, and the weights at the end."""
    torch.manual_seed(0)
    pixels = dataset.tensors[0][0].numel()
    model = NETWORKS[setting.network](pixels).to(options.device)
    optimizer = make_optimizer(setting.optimizer, model.parameters())
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    what = {"scope": scope, "engine": options.engine} if scope == "all" else {}
    arguments = {"noisy": noisy, "every": options.every, "stop": None, "keep_best": None} | what
    values: Values = {tag: [] for tag in TAGS}
    step = 0
    with GradientMonitor(model, optimizer, loader, **arguments) as monitor:
        for _ in range(min(setting.epochs, options.epochs or setting.epochs)):
            for x, y in loader:
                optimizer.zero_grad()
                cross_entropy(model(x.to(options.device)), y.to(options.device)).backward()
                optimizer.step()
                if step % options.every == 0:
                    for tag, column in values.items():
                        column.append(monitor.latest[tag])
                step += 1
    return values, [parameter.detach() for parameter in model.parameters()]


# Agreement


def agreement(tag: str, values: dict[str, Values], steps_per_epoch: float) -> dict[str, Any]:
    """How one tag of the head and of all parameters go together."""
    head, everything = (np.array(values[scope][tag]) for scope in SCOPES)
    parts = max(round(len(head) / steps_per_epoch), 1)
    epochs = [epoch_means(head, parts), epoch_means(everything, parts)]
    level = TAGS[tag]
    return {
        "pearson": correlation(pearsonr, head, everything),
        "spearman": correlation(spearmanr, head, everything),
        "spearman_of_epochs": correlation(spearmanr, *epochs),
        "mean_head": float(np.nanmean(head)),
        "mean_all": float(np.nanmean(everything)),
        "undefined_head": float(np.isnan(head).mean()),
        "undefined_all": float(np.isnan(everything).mean()),
        "crossing_head": crossing(epochs[0], level),
        "crossing_all": crossing(epochs[1], level),
    }


def epoch_means(values: np.ndarray, epochs: int) -> np.ndarray:
    """Mean over what is defined in each epoch."""
    parts = [part[~np.isnan(part)] for part in np.array_split(values, epochs)]
    return np.array([part.mean() if len(part) else np.nan for part in parts])


def correlation(measure: Callable[..., Any], one: np.ndarray, other: np.ndarray) -> float:
    """Over the pairs of which both values are defined."""
    both = ~(np.isnan(one) | np.isnan(other))
    return float(measure(one[both], other[both])[0]) if both.sum() >= LEAST_PAIRS else math.nan


def crossing(epochs: np.ndarray, level: float | None) -> int | None:
    """First epoch, from 1, on whose end the mean lies beyond the level, seen from the first one."""
    if level is None:
        return None
    beyond = np.sign(epochs - level) == -np.sign(epochs[0] - level)
    return int(beyond.argmax()) + 1 if beyond.any() else None


def report(run: dict[str, Any]) -> None:
    columns = list(next(iter(run["tags"].values())))
    rows = [[tag, *(found[column] for column in columns)] for tag, found in run["tags"].items()]
    title = str(Setting(**run["setting"]))
    print_table(f"{title}: the head against all parameters", ["tag", *columns], rows)


if __name__ == "__main__":
    main()
