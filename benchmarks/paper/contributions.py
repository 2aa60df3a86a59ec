"""Contributions summed over a run against the loss decrease that they stand for.

The head is the whole model of a softmax regression, so that the contributions cover the complete
update. To first order the contribution of a group is the decrease of its part of the batch loss,
`(1/B) sum over the group of l_i`, in the step that was made on that batch. Their sum is the
product of the batch gradient and the update, which autograd gives exactly.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data.images import digits
from benchmarks.environment import write_results
from benchmarks.models import mlp
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor, corrupt_labels

NOISE = 0.4
BAR = 0.05
"""Largest relative deviation that passes at the smallest learning rate."""
FIGURE = Path(__file__).parents[2] / "docs" / "pages" / "images" / "contributions.png"
POINTS = 200
"""Points of a saved curve at most."""
GROUPS = {"clean": "tab:blue", "noisy": "tab:orange"}

Curves = dict[str, list[float]]


@dataclass(frozen=True)
class Setting:
    """A run of plain gradient descent."""

    mode: str
    batch: int
    rate: float
    steps: int


FULL_BATCH = [(0.05, 1000), (0.2, 250), (0.5, 100), (1, 50), (2, 25), (3, 17)]
MINI_BATCH = [(0.01, 3000), (0.03, 1000), (0.1, 300), (0.3, 100), (1, 30), (3, 10)]
SETTINGS = [
    *(Setting("full batch", 1797, rate, steps) for rate, steps in FULL_BATCH),
    *(Setting("batches of 128", 128, rate, steps) for rate, steps in MINI_BATCH),
]
"""The product of learning rate and steps is the same within a mode, so that all runs go as far."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    runs = [follow(setting) for setting in SETTINGS]
    report(runs)
    draw(runs)
    path = write_results("paper/contributions", {"noise": NOISE, "bar": BAR, "runs": runs})
    print(f"\nresults: {path}, figure: docs/pages/images/{FIGURE.name}")


def follow(setting: Setting) -> dict[str, Any]:
    """Train; put what the monitor says of each step beside what can be seen directly."""
    dataset, noisy = noisy_digits()
    torch.manual_seed(0)
    model = mlp(64, 10).double()
    optimizer = SGD(model.parameters(), lr=setting.rate)
    loader = DataLoader(dataset, setting.batch, shuffle=True, drop_last=True)
    curves: Curves = {name: [] for group in GROUPS for name in (tag(group), f"decrease_{group}")}
    gaps: list[float] = []
    with GradientMonitor(model, optimizer, loader, noisy=noisy, every=1, stop=None) as monitor:
        while len(gaps) < setting.steps:
            for x, y, wrong in loader:
                decrease, product = train_step(model, optimizer, x, y)
                said = [monitor.latest[tag(group)] for group in GROUPS]
                gaps.append(abs(sum(said) / product - 1))
                for group, contribution, part in zip(GROUPS, said, (~wrong, wrong), strict=True):
                    curves[tag(group)].append(contribution)
                    curves[f"decrease_{group}"].append(decrease[part].sum().item() / len(y))
                if len(gaps) == setting.steps:
                    break
    return asdict(setting) | summary(curves) | {"autograd_gap": max(gaps)}


def noisy_digits() -> tuple[TensorDataset, Tensor]:
    images, true = digits()
    given = corrupt_labels(true, NOISE, generator=torch.Generator().manual_seed(0))
    noisy = given != true
    return TensorDataset(images.double(), given, noisy), noisy


def tag(group: str) -> str:
    return f"contribution_{group}"


def train_step(
    model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor
) -> tuple[Tensor, float]:
    """One step: by how much each sample's loss fell, and `−<gradient, update>` by autograd."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    loss = cross_entropy(model(x), y, reduction="none")
    loss.mean().backward()
    optimizer.step()
    with torch.no_grad():
        decrease = loss - cross_entropy(model(x), y, reduction="none")
        moved = zip(model.parameters(), before, strict=True)
        return decrease, -sum((p.grad * (p - old)).sum() for p, old in moved).item()


def summary(curves: Curves) -> dict[str, Any]:
    """Sums over the run, their relative deviations, and the cumulative curves."""
    sums = {name: sum(values) for name, values in curves.items()}
    deviations = {
        f"deviation_{group}": abs(sums[tag(group)] / sums[f"decrease_{group}"] - 1)
        for group in GROUPS
    }
    steps = len(curves["decrease_clean"])
    kept = range(0, steps, -(-steps // POINTS))
    cumulative = {name: list(accumulate(values)) for name, values in curves.items()}
    thinned = {name: [values[step] for step in kept] for name, values in cumulative.items()}
    return sums | deviations | {"curves": {"step": [step + 1 for step in kept], **thinned}}


def report(runs: list[dict[str, Any]]) -> None:
    columns = ["mode", "rate", "steps"]
    for group in GROUPS:
        columns += [tag(group), f"decrease_{group}", f"deviation_{group}"]
    rows = [
        [f"{run[name]:.1%}" if "deviation" in name else run[name] for name in columns]
        + [f"{run['autograd_gap']:.1e}", verdict(run)]
        for run in runs
    ]
    columns += ["autograd gap", f"≤ {BAR:.0%}"]
    print_table("Sums over the run: contributions and real loss decrease", columns, rows)
    print(
        "autograd gap: largest relative difference in any step between the sum of both\n"
        "contributions and −<batch gradient, update>."
    )


def verdict(run: dict[str, Any]) -> str:
    return "yes" if max(run["deviation_clean"], run["deviation_noisy"]) <= BAR else "no"


def draw(runs: list[dict[str, Any]]) -> None:
    """For each mode: a run at a small and one at a large learning rate, and all deviations."""
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    modes = list(dict.fromkeys(run["mode"] for run in runs))
    for row, mode in zip(figure.subplots(len(modes), 3), modes, strict=True):
        of_mode = [run for run in runs if run["mode"] == mode]
        draw_run(row[0], of_mode[0])
        draw_run(row[1], of_mode[3])
        draw_deviations(row[2], of_mode)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


def draw_run(axes: Axes, run: dict[str, Any]) -> None:
    curves = run["curves"]
    for group, color in GROUPS.items():
        axes.plot(curves["step"], curves[tag(group)], color=color, label=f"{group}: contributions")
        axes.plot(
            curves["step"],
            curves[f"decrease_{group}"],
            color="black",
            linestyle="--" if group == "clean" else ":",
            label=f"{group}: real loss decrease",
        )
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(title=f"{run['mode']}, learning rate {run['rate']}")
    axes.set(xlabel="optimizer step", ylabel="sum up to this step")
    axes.legend(fontsize="small")


def draw_deviations(axes: Axes, runs: list[dict[str, Any]]) -> None:
    rates = [run["rate"] for run in runs]
    for group, color in GROUPS.items():
        deviations = [run[f"deviation_{group}"] for run in runs]
        axes.loglog(rates, deviations, "o-", color=color, label=group)
    axes.axhline(BAR, color="grey", linestyle="--", label=f"{BAR:.0%}")
    axes.set(title=f"{runs[0]['mode']}: deviation of the sums")
    axes.set(xlabel="learning rate", ylabel="|contributions / decrease − 1|")
    axes.legend(fontsize="small")


if __name__ == "__main__":
    main()
