"""Wrong labels named by the monitor and by other detectors, on the same recorded runs.

At the stop: with what was known when the monitor stopped, or at the last epoch if it did not. At
the end: with all epochs, the monitor measuring only. The recordings are those of `grid.py`, and
are made where they are missing, like the trainings that rivals need besides. Both are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.data.images import add_data_option
from benchmarks.data.labels import KINDS
from benchmarks.environment import earlier_runs, write_results
from benchmarks.jobs import completed
from benchmarks.stopping.runs.cache import CACHE, Maker, make_missing, path_of
from benchmarks.stopping.runs.detectors import (
    METRICS,
    Verdict,
    below_threshold,
    confident_learning,
    from_visits,
    judge,
    named_by_monitor,
)
from benchmarks.stopping.runs.folds import is_retrained, out_of_sample, with_threshold_samples
from benchmarks.stopping.runs.record import record
from benchmarks.stopping.runs.replay import replay
from benchmarks.stopping.runs.settings import SEEDS, Setting, settings
from benchmarks.tables import print_table
from prioritymonitor.stopping.kept_weights import AVERAGE_LAG
from prioritymonitor.stopping.rule import measure_only

MONITOR, AUM, LEARNING = "monitor", "AUM", "confident learning"
FAVOURED = f"{LEARNING}, favoured"
MARKS = {
    MONITOR: ("o", "#D55E00"),
    AUM: ("s", "#0072B2"),
    LEARNING: ("^", "#009E73"),
    FAVOURED: ("v", "#009E73"),
    "small loss, mean": ("D", "#CC79A7"),
    "small loss, last": ("x", "#CC79A7"),
    "EL2N": ("P", "#E69F00"),
}
"""Detectors: marker and colour, from the palette of Okabe and Ito, made for any colour vision."""
MOMENTS = ("stop", "end")
NO_NOISE = "none"
LEAST_AUROC = 0.98
"""What the monitor should reach at the stop under symmetric noise."""
FIGURE = Path(__file__).parents[2] / "docs/pages/evidence/images/suspects_by_noise.png"

Run = dict[str, Any]
Rows = dict[str, list[float | None]]
PARTS: dict[str, Maker] = {
    "full": record,
    "out-of-sample": out_of_sample,
    "threshold-samples": with_threshold_samples,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--cache", type=Path, default=CACHE, help="the recordings")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--resume", action="store_true", help="judge no run twice")
    parser.add_argument("--report", action="store_true", help="judge what there is; train nothing")
    parser.add_argument("--quick", action="store_true", help="one seed of the digits")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = settings(1 if options.quick else options.seeds)
    wanted = [one for one in wanted if one.data == "digits" or not options.quick]
    kept = earlier_runs("stopping/suspects") if options.resume else []
    runs = {run["name"]: run for run in kept}
    if not options.report:
        parts = [(one, p) for one in wanted for p in PARTS if p == "full" or is_retrained(one)]
        make_missing(parts, PARTS, options.data, options.cache, options.jobs)
    missing = [one for one in wanted if one.name not in runs]
    ready = [one for one in missing if path_of(options.cache, one, "full").is_file()]
    for setting, run in completed(options.jobs, judge_run, ready, options.cache):
        runs[setting.name] = run
    report([runs[one.name] for one in wanted if one.name in runs])


# Runs


def judge_run(setting: Setting, cache: Path) -> Run:
    """All detectors at both moments; of each its metrics in the order of `METRICS`."""
    recording = torch.load(path_of(cache, setting, "full"), weights_only=True)
    wrong = (recording["given"] != recording["true"]).numpy()
    replays = {"stop": replay(recording), "end": replay(recording, measure_only)}
    decision = replays["stop"].decision
    assert decision.best_epoch is not None
    best_epoch = min(decision.best_epoch + AVERAGE_LAG, decision.epoch)
    trained = load_trained(setting, cache)
    run = {
        "name": setting.name,
        "kind": setting.noise,
        "rate": setting.rate,
        "stop_epoch": decision.epoch if decision.stop else None,
        "noise_rate": replays["stop"].table.noise_rate,
    }
    for moment, run_of in replays.items():
        epoch = run_of.decision.epoch
        named = named_by_monitor(run_of.table.suspects(None, 0.0))
        verdicts = {MONITOR: named} | from_visits(recording, epoch)
        if trained:
            below = below_threshold(trained["threshold-samples"], epoch)
            verdicts[AUM] = Verdict(verdicts[AUM].score, below)
        found = {name: judge(verdict, wrong) for name, verdict in verdicts.items()}
        if trained:
            epochs = {epoch, best_epoch} if moment == "stop" else {epoch}
            several = confident_learning(trained["out-of-sample"], recording, epochs)
            judged = {place: judge(verdict, wrong) for place, verdict in several.items()}
            best = max(judged.values(), key=lambda metrics: metrics["f1"] or -metrics["named"])
            found |= {LEARNING: judged["raw", epoch], FAVOURED: best}
        run[moment] = {name: [found[name][m] for m in METRICS] for name in found}
    return run


def load_trained(setting: Setting, cache: Path) -> dict[str, Any]:
    """The trainings of rivals; empty unless all are there."""
    paths = {part: path_of(cache, setting, part) for part in PARTS if part != "full"}
    if not all(path.is_file() for path in paths.values()):
        return {}
    return {part: torch.load(path, weights_only=True) for part, path in paths.items()}


# Tables


def report(runs: Sequence[Run]) -> None:
    """Print and write what was found, and draw it."""
    if not runs:
        raise SystemExit("no run to judge: make the recordings, or leave --report out")
    complete = [run for run in runs if LEARNING in run["stop"]]
    tables = {
        moment: {"all_runs": by_noise(runs, moment), "all_detectors": by_noise(complete, moment)}
        for moment in MOMENTS
    }
    for moment, noise, group in product(MOMENTS, by_noise(runs, "stop"), tables["stop"]):
        if rows := tables[moment][group].get(noise):
            title = f"{noise}, at the {moment}, means over {rows['runs']} runs ({group})"
            lines = [[name, *values] for name, values in rows["detectors"].items()]
            print_table(title, ["detector", *METRICS], lines)
    asked = bars(runs, complete)
    print_table("What was asked for", list(asked[0]), [list(row.values()) for row in asked])
    found = {"metrics": list(METRICS), "bars": asked, **tables, "runs": runs}
    print(f"results: {write_results('stopping/suspects', found)}, figure: {draw(tables['stop'])}")


def by_noise(runs: Sequence[Run], moment: str) -> dict[str, Any]:
    """Means over the runs with each kind and rate of noise."""
    groups: dict[tuple[bool, int, float], list[Run]] = {}
    for run in runs:
        place = run["rate"] > 0, KINDS.index(run["kind"]), run["rate"]
        groups.setdefault(place, []).append(run)
    return {
        noise_of(groups[place][0]): {
            "runs": len(groups[place]),
            "detectors": means([run[moment] for run in groups[place]]),
        }
        for place in sorted(groups)
    }


def noise_of(run: Run) -> str:
    return f"{run['kind']} {100 * run['rate']:.0f} %" if run["rate"] else NO_NOISE


def means(several: Sequence[dict[str, list[float | None]]]) -> Rows:
    """Of each detector that has judged all these runs; a metric that one of them lacks is None."""
    found: Rows = {}
    for name in MARKS:
        if all(name in metrics for metrics in several):
            columns = zip(*(metrics[name] for metrics in several), strict=True)
            found[name] = [None if None in column else fmean(column) for column in columns]
    return found


def bars(runs: Sequence[Run], complete: Sequence[Run]) -> list[dict[str, Any]]:
    """What was asked of the monitor at the stop under symmetric noise, and what came of it."""
    auroc, f1 = METRICS.index("auroc"), METRICS.index("f1")
    symmetric, same = (
        [run for run in some if run["kind"] == "symmetric" and run["rate"]]
        for some in (runs, complete)
    )
    columns = {"AUROC": [run["stop"][MONITOR][auroc] - LEAST_AUROC for run in symmetric]}
    for rival in (AUM, LEARNING, FAVOURED):
        pairs = [(run["stop"][MONITOR][f1], run["stop"][rival][f1]) for run in same]
        columns[f"F1 − F1 of {rival}"] = [own - other for own, other in pairs]
    return [
        {
            "what": what,
            "asked": least,
            "mean": fmean(ahead) + least,
            "worst": min(ahead) + least,
            "met": sum(value > 0 for value in ahead),
            "runs": len(ahead),
        }
        for what, ahead in columns.items()
        if ahead
        for least in [LEAST_AUROC if what == "AUROC" else 0.0]
    ]


# Figure


def draw(tables: dict[str, dict[str, Any]]) -> str:
    """How well labels are ranked in all runs, and named where all detectors had their trainings."""
    figure = Figure(figsize=(8.5, 4.6), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    dots(left, tables["all_runs"], "auroc")
    left.set(xlabel="AUROC", title="Ranking, all runs")
    dots(right, tables["all_detectors"], "f1")
    right.set(xlabel="F1 at the detector's own threshold", title="Naming, runs with all detectors")
    handles, names = right.get_legend_handles_labels()
    for handle, name in zip(*left.get_legend_handles_labels(), strict=True):
        if name not in names:
            handles, names = [*handles, handle], [*names, name]
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(64).save(FIGURE)
    return FIGURE.name


def dots(axes: Axes, groups: dict[str, Any], metric: str) -> None:
    """A row for each kind of noise, the first on top, and a mark for each detector."""
    column = METRICS.index(metric)
    shown = {noise: group for noise, group in groups.items() if noise != NO_NOISE}
    for number, (name, (marker, colour)) in enumerate(MARKS.items()):
        lower = 0.1 * (number - len(MARKS) // 2)  # so that no mark hides another
        places = [
            (group["detectors"][name][column], row + lower)
            for row, group in enumerate(shown.values())
            if name in group["detectors"] and group["detectors"][name][column] is not None
        ]
        if places:
            style = {"markersize": 8 if name == MONITOR else 5, "linestyle": ""}
            axes.plot(*zip(*places, strict=True), marker, color=colour, label=name, **style)
    labels = [f"{noise} ({group['runs']})" for noise, group in shown.items()]
    axes.set_yticks(range(len(shown)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    main()
