"""Single-logit segment ratio at initialisation against theory, through the public API.

At initialisation every sample pulls its own logit up with the strength `1 − 1/C` and any other
logit down with `1/C`. With a share δ of wrong labels, spread over all other classes, the clean
gradients of a class outweigh its noisy ones by `(C − 1)(1 − δ)/δ` (arXiv 2306.02533).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.data.images import add_data_option, load_images, only_classes
from benchmarks.environment import write_results
from benchmarks.models import mlp
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor, corrupt_labels

BAR = 0.15
"""Largest relative deviation from theory that passes."""

FOOTNOTES = """\
measured: mean over seeds; worst dev.: largest relative deviation over seeds.
class dev.: largest over seeds and classes, each class against its own realised noise rate;
population: the same for the tags with _population; nominal: against the nominal rate instead.
hidden with 0: the head starts at zero, so that each class has the probability 1/C exactly."""


@dataclass(frozen=True)
class Case:
    """A data set, the digits to tell apart or None for all classes, a noise rate and a network.

    With a zero head every class starts at the probability `1/C` exactly, as theory assumes; at a
    random start only the average over classes does.
    """

    data: str
    digits: tuple[int, int] | None
    rate: float
    hidden: tuple[int, ...]
    zero_head: bool = False

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.digits) if self.digits else 10

    def expected(self, rate: float) -> float:
        """The ratio that theory gives for a class with this share of wrong labels."""
        return (self.classes - 1) * (1 - rate) / rate

    def __str__(self) -> str:
        digits = " {} v {}".format(*self.digits) if self.digits else ""
        return f"{self.data}{digits}"


CASES = [
    *(
        Case(data, None, rate, hidden)
        for data in ("mnist", "fashion-mnist")
        for rate in (0.3, 0.4)
        for hidden in ((4096,), (2048, 2048))
    ),
    *(Case("mnist", (7, 9), 0.4, hidden) for hidden in ((4096,), (2048, 2048))),
    *(Case(data, None, 0.4, (4096,), zero_head=True) for data in ("mnist", "fashion-mnist")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=5000, help="samples of the one step")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = [summary(case, measure_all(case, options)) for case in CASES]
    print_summaries(results)
    settings = {"batch": options.batch, "seeds": options.seeds, "bar": BAR}
    path = write_results("paper/initial_ratio", {"settings": settings, "cases": results})
    print(f"\nresults: {path}")


def measure_all(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    images, labels = load_case(options.data, case)
    return [measure(case, images, labels, options.batch, seed) for seed in range(options.seeds)]


def load_case(folder: Path | None, case: Case) -> tuple[Tensor, Tensor]:
    images, labels = load_images(folder, case.data, "train")
    return only_classes(images, labels, *case.digits) if case.digits else (images, labels)


def measure(case: Case, images: Tensor, labels: Tensor, batch: int, seed: int) -> dict[str, Any]:
    """One training step on one large batch; the ratios, and what theory says of each class."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(labels), generator=generator)[:batch]
    true = labels[drawn]
    given = corrupt_labels(true, case.rate, generator=generator, num_classes=case.classes)
    latest = first_step(case, TensorDataset(images[drawn], given), true, seed)
    wrong = (given != true).double()
    expected = [case.expected(wrong[true == c].mean().item()) for c in range(case.classes)]
    return {
        "segment_ratio": latest["segment_ratio"],
        "segment_ratio_population": latest["segment_ratio_population"],
        "by_class": [latest[f"segment_ratio/{c}"] for c in range(case.classes)],
        "by_class_population": [
            latest[f"segment_ratio_population/{c}"] for c in range(case.classes)
        ],
        "by_class_expected": expected,
    }


def first_step(case: Case, dataset: TensorDataset, true: Tensor, seed: int) -> dict[str, float]:
    """What the monitor measures in the very first step."""
    torch.manual_seed(seed)
    model = mlp(784, *case.hidden, case.classes)
    if case.zero_head:
        nn.init.zeros_(model[-1].weight)
        nn.init.zeros_(model[-1].bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loader = DataLoader(dataset, batch_size=len(dataset))
    with GradientMonitor(model, optimizer, loader, true_labels=true, every=1, stop=None) as monitor:
        for x, y in loader:
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return monitor.latest


def summary(case: Case, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; deviations from theory are relative, and the worst over the seeds."""
    expected = case.expected(case.rate)

    def worst(ratios: list[float], theory: list[float]) -> float:
        return max(abs(r / t - 1) for r, t in zip(ratios, theory, strict=True))

    numbers = {"expected": expected}
    for name in ("segment_ratio", "segment_ratio_population"):
        ratios = [seed[name] for seed in seeds]
        numbers[name] = sum(ratios) / len(ratios)
        numbers[f"{name}_deviation"] = worst(ratios, [expected] * len(ratios))
    for name in ("by_class", "by_class_population"):
        numbers[f"{name}_deviation"] = max(worst(s[name], s["by_class_expected"]) for s in seeds)
    numbers["by_class_deviation_nominal"] = max(
        worst(seed["by_class"], [expected] * case.classes) for seed in seeds
    )
    return {"case": asdict(case), "name": str(case), **numbers, "seeds": seeds}


def print_summaries(results: list[dict[str, Any]]) -> None:
    rows = [
        [
            result["name"],
            "-".join(map(str, result["case"]["hidden"])) + ", 0" * result["case"]["zero_head"],
            result["case"]["rate"],
            result["expected"],
            result["segment_ratio"],
            f"{result['segment_ratio_deviation']:.1%}",
            result["segment_ratio_population"],
            f"{result['segment_ratio_population_deviation']:.1%}",
            f"{result['by_class_deviation']:.1%}",
            f"{result['by_class_population_deviation']:.1%}",
            f"{result['by_class_deviation_nominal']:.1%}",
            "yes" if result["segment_ratio_deviation"] <= BAR else "NO",
        ]
        for result in results
    ]
    columns = ["data", "hidden", "noise", "expected", "measured", "worst dev.", "population"]
    columns += ["worst dev.", "class dev.", "population", "nominal", f"≤ {BAR:.0%}"]
    print_table("Single-logit segment ratio at initialisation", columns, rows)
    print(FOOTNOTES)


if __name__ == "__main__":
    main()
