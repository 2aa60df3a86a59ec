"""The experiments of arXiv 2306.02533, claim by claim, and what the paper did not measure.

Networks learn images of which a share δ of the labels is wrong. After every epoch the gradients of
all parameters are summed over the whole training set, by true class and by clean or noisy label, as
the paper groups them. The monitor runs along, and says what it sees in its batches.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.images import add_data_option
from benchmarks.environment import earlier_runs, write_results
from benchmarks.jobs import completed
from benchmarks.paper.claims import CLAIMS, beyond, judge
from benchmarks.paper.figures import Entry, draw_all
from benchmarks.paper.setups import CIFAR, EXPERIMENTS, MOMENTUM, Experiment
from benchmarks.paper.training import EVERY, Run, Setting, make_run
from benchmarks.tables import print_table

IMAGES = Path(__file__).parents[2] / "docs" / "pages" / "evidence" / "images"


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    name = "paper/cifar" if options.cifar else "paper/experiments"
    settings = planned(options)
    kept = earlier_runs(name) if options.resume or options.figures_only else []
    runs = {json.dumps(run["setting"], sort_keys=True): run for run in kept}
    missing = [setting for setting in settings if key_of(setting) not in runs]
    if options.figures_only and missing:
        raise SystemExit(f"{len(missing)} runs are not in the results: make them with --resume")
    for setting, run in completed(options.jobs, make_run, missing, options.data, options.cifar):
        runs[key_of(setting)] = {"setting": asdict(setting), **run}
        done = [runs[key_of(s)] for s in settings if key_of(s) in runs]
        print(f"{len(done)} of {len(settings)} runs", flush=True)
        if not options.quick:
            write_results(name, {"momentum": MOMENTUM, "every": EVERY, "runs": done})
    entries = by_experiment([runs[key_of(setting)] for setting in settings])
    judged = judge_all(entries)
    report(judged)
    if not options.quick:
        done = [runs[key_of(setting)] for setting in settings]
        content = {"momentum": MOMENTUM, "every": EVERY, "experiments": judged, "runs": done}
        print(f"results: {write_results(name, content)}")
        draw_all(list(entries.values()), IMAGES, "paper_cifar" if options.cifar else "paper")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, help="default: 5 for two classes, 3 for ten")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--resume", action="store_true", help="keep the runs of an earlier call")
    parser.add_argument("--figures-only", action="store_true", help="judge and draw what is there")
    parser.add_argument(
        "--cifar",
        type=Path,
        metavar="DIR",
        help="train the ResNet on CIFAR-10, whose python batches lie there, and write the results "
        "to paper/cifar.json",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few epochs on few samples; nothing is written"
    )
    return parser.parse_args()


def planned(options: argparse.Namespace) -> list[Setting]:
    experiments = EXPERIMENTS | ({"resnet": CIFAR} if options.cifar else {})
    if options.quick:
        experiments = {
            name: replace(experiment, samples=600, epochs=3, seeds=1)
            for name, experiment in experiments.items()
        }
    return [
        Setting(name, experiment, seed)
        for name, experiment in experiments.items()
        for seed in range(options.seeds or experiment.seeds)
    ]


def key_of(setting: Setting) -> str:
    """The setting as text, the same before and after a way through JSON."""
    return json.dumps(asdict(setting), sort_keys=True)


def by_experiment(runs: list[Run]) -> dict[str, Entry]:
    """Experiments by name, each with its runs."""
    found: dict[str, Entry] = {}
    for run in runs:
        setting = run["setting"]
        entry = found.setdefault(setting["name"], (Experiment(**setting["experiment"]), []))
        entry[1].append(run)
    return found


def judge_all(entries: dict[str, Entry]) -> dict[str, Any]:
    return {
        name: {
            "title": experiment.title,
            "claims": [judge(claim, experiment, runs) for claim in CLAIMS],
            "beyond": beyond(runs),
        }
        for name, (experiment, runs) in entries.items()
    }


# Report


def report(judged: dict[str, Any]) -> None:
    for found in judged.values():
        rows = [
            [claim["claim"], claim["verdict"], number, *spread.values()]
            for claim in found["claims"]
            for number, spread in claim["numbers"].items()
        ]
        columns = ["claim", "verdict", "number", "mean", "lowest", "highest"]
        print_table(f"{found['title']}: what the paper claims", columns, rows)
        report_beyond(found["title"], found["beyond"])


def report_beyond(title: str, numbers: dict[str, Any]) -> None:
    columns = ["number", "mean", "lowest", "highest"]
    for what, key in (
        ("what it did not measure", "numbers"),
        ("rank correlation of the monitor's batches with all samples", "agreement"),
    ):
        rows = [[name, *spread.values()] for name, spread in numbers[key].items()]
        print_table(f"{title}: {what}", columns, rows)
    rows = [
        [
            signal,
            ", ".join(str(one["epoch"]) if one else "never" for one in found),
            ", ".join(f"{one['points_lost']:.1f}" if one else "–" for one in found),
        ]
        for signal, found in numbers["crossings"].items()
    ]
    best = ", ".join(map(str, numbers["best_epochs"]))
    columns = ["signal", "epoch", "points lost there"]
    print_table(f"{title}: crossings, best epochs {best}", columns, rows)


if __name__ == "__main__":
    main()
