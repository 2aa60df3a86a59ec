"""Contributions summed over a run against the loss decrease that they stand for.

The head is the whole model of a softmax regression, so that the contributions cover the complete
update. To first order the contribution of a group is the decrease of its part of the batch loss,
`(1/B) sum over the group of l_i`, in the step that was made on that batch.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from environment import write_results
from models import mlp
from prioritymonitor import GradientMonitor, corrupt_labels
from tables import print_table

NOISE = 0.4
BAR = 0.05
"""Largest relative deviation that passes at the smallest learning rate."""
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "contributions.png"
GROUPS = ("clean", "noisy")
COLORS = {"clean": "tab:blue", "noisy": "tab:orange"}


@dataclass(frozen=True)
class Setting:
    """One run; the product of rate and steps is about the same within a `mode`."""

    mode: str
    batch: int
    rate: float
    steps: int


def settings() -> list[Setting]:
    full = [(0.05, 2000), (0.2, 500), (1, 100), (3, 33), (10, 10)]
    small = [(0.01, 3000), (0.03, 1000), (0.1, 300), (0.3, 100), (1, 30)]
    return [Setting("full batch", 1797, *pair) for pair in full] + [
        Setting("batches of 128", 128, *pair) for pair in small
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    runs = [summary(setting, follow(setting)) for setting in settings()]
    report(runs)
    draw(runs)
    path = write_results("contributions", {"noise": NOISE, "bar": BAR, "runs": runs})
    print(f"\nresults: {path}, figure: docs/images/{FIGURE.name}")


def follow(setting: Setting) -> list[dict[str, float]]:
    """Train with plain gradient descent; what the monitor and what we ourselves see in each step."""
    images, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    true = torch.from_numpy(labels)
    given = corrupt_labels(true, NOISE, generator=generator)
    noisy = given != true
    dataset = TensorDataset(torch.from_numpy(images) / 16, given, noisy)
    torch.manual_seed(0)
    model = mlp(64, 10).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.rate)
    loader = DataLoader(dataset, setting.batch, shuffle=True, drop_last=True)
    steps: list[dict[str, float]] = []
    with GradientMonitor(model, optimizer, loader, noisy=noisy, every=1, stop=None) as monitor:
        while len(steps) < setting.steps:
            for x, y, wrong in loader:
                own = train_step(model, optimizer, x, y, wrong)
                steps.append(own | {f"contribution_{g}": monitor.latest[f"contribution_{g}"] for g in GROUPS})
    return steps[: setting.steps]


if __name__ == "__main__":
    main()
