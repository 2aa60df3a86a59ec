"""Wrong labels named by the monitor and by other detectors, on the same recorded runs.

At the stop: with what was known when the monitor stopped, or at the last epoch if it did not. At
the end: with all epochs; what the monitor said at its stop stays. The recordings are those of
`grid.py`, and are made where they are missing, like the trainings that rivals need besides.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.images import add_data_option
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
from benchmarks.stopping.runs.naming import AUM, FAVOURED, LEARNING, MOMENTS, MONITOR, tables
from benchmarks.stopping.runs.naming_picture import draw
from benchmarks.stopping.runs.record import Recording, record
from benchmarks.stopping.runs.replay import replay
from benchmarks.stopping.runs.settings import SEEDS, Setting, settings
from benchmarks.tables import print_table

Run = dict[str, Any]
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
        write([runs[one.name] for one in wanted if one.name in runs])
    report([runs[one.name] for one in wanted if one.name in runs])


# Runs


def judge_run(setting: Setting, cache: Path) -> Run:
    """All detectors at both moments; of each its metrics in the order of `METRICS`."""
    recording = torch.load(path_of(cache, setting, "full"), weights_only=True)
    wrong = (recording["given"] != recording["true"]).numpy()
    followed = replay(recording)
    decision = followed.decision
    trained = load_trained(setting, cache)
    ours = named_by_monitor(followed.table.suspects(None, 0.0), len(wrong))
    run: Run = {
        "name": setting.name,
        "family": setting.family,
        "kind": setting.noise,
        "rate": setting.rate,
        "stop_epoch": decision.epoch if decision.stop else None,
        "noise_rate": followed.table.noise_rate,
    }
    for moment, epoch in zip(MOMENTS, (decision.epoch, setting.epochs), strict=True):
        verdicts = {MONITOR: ours} | from_visits(recording, epoch)
        if trained:
            below = below_threshold(trained["threshold-samples"], epoch)
            verdicts[AUM] = Verdict(verdicts[AUM].score, below)
        found = {name: judge(verdict, wrong) for name, verdict in verdicts.items()}
        if trained:
            best_epoch = decision.best_epoch or decision.epoch
            epochs = {epoch, best_epoch} if moment == "stop" else {epoch}
            found |= learnt_confidently(trained, recording, epoch, epochs)
        run[moment] = {name: [found[name][m] for m in METRICS] for name in found}
    return run


def learnt_confidently(
    trained: dict[str, Any], recording: Recording, epoch: int, epochs: set[int]
) -> dict[str, dict[str, float | None]]:
    """Confident learning at an epoch, and at the best of several, which the truth picks."""
    wrong = (recording["given"] != recording["true"]).numpy()
    several = confident_learning(trained["out-of-sample"], recording, epochs)
    judged = {place: judge(verdict, wrong) for place, verdict in several.items()}
    best = max(judged.values(), key=lambda metrics: metrics["f1"] or -(metrics["named"] or 0.0))
    return {LEARNING: judged["raw", epoch], FAVOURED: best}


def load_trained(setting: Setting, cache: Path) -> dict[str, Any]:
    """The trainings of rivals; empty unless all are there."""
    paths = {part: path_of(cache, setting, part) for part in PARTS if part != "full"}
    if not all(path.is_file() for path in paths.values()):
        return {}
    return {part: torch.load(path, weights_only=True) for part, path in paths.items()}


# Results


def write(runs: Sequence[Run]) -> str:
    """All tables and runs; where they are."""
    return write_results("stopping/suspects", tables(runs) | {"runs": list(runs)})


def report(runs: Sequence[Run]) -> None:
    """Print and write what was found, and draw it."""
    if not runs:
        raise SystemExit("no run to judge: make the recordings, or leave --report out")
    found = tables(runs)
    for moment, by in product(MOMENTS, ("families", "kinds", "retrained")):
        for group, part in found[moment][by].items():
            title = f"{group}, at the {moment}, means over {part['runs']} runs ({by})"
            lines = [[name, *values] for name, values in part["detectors"].items()]
            print_table(title, ["detector", *METRICS], lines)
    asked = found["bars"]
    print_table("What was asked for", list(asked[0]), [list(row.values()) for row in asked])
    print(f"results: {write(runs)}, figure: {draw(found['stop'])}")


if __name__ == "__main__":
    main()
