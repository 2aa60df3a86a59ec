"""Stop rules side by side, on many runs with wrong labels.

The runs are made once and recorded; then every rule is tried on the recordings.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch

from benchmarks.data.images import add_data_option
from benchmarks.environment import write_results
from benchmarks.stopping.runs.cache import CACHE, KEPT, Maker, make_missing, path_of
from benchmarks.stopping.runs.pictures import FOLDER, draw
from benchmarks.stopping.runs.record import record, record_with_validation
from benchmarks.stopping.runs.scores import (
    GROUP_COLUMNS,
    RULES,
    Judged,
    Row,
    judge,
    record_of,
    summarise,
)
from benchmarks.stopping.runs.settings import SEEDS, settings
from benchmarks.tables import print_table

PARTS: dict[str, Maker] = {
    "full": record,
    "held-out": record_with_validation,
}
_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--cache", type=Path, default=CACHE, help="the recordings")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--report", action="store_true", help="judge what there is; train nothing")
    parser.add_argument("--pictures", type=Path, default=FOLDER, help="folder of the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.report:
        wanted = product(settings(options.seeds), PARTS)
        make_missing(wanted, PARTS, options.data, options.cache, options.jobs)
    runs = judge_all(options.seeds, options.cache)
    if not runs:
        raise SystemExit(f"no complete run in {options.cache} or {KEPT}")
    tables = summarise(runs)
    report(runs, tables)
    path = write_results(
        "stopping/grid", {"runs": len(runs), "group_columns": GROUP_COLUMNS, **tables}
    )
    print(f"results: {path}, figures: {', '.join(draw(runs, options.pictures))}")


# Judging


def judge_all(seeds: int, cache: Path) -> list[Judged]:
    """All complete runs, from the cache or, where it is gone, from what is kept of them."""
    KEPT.mkdir(parents=True, exist_ok=True)
    runs = []
    for setting in settings(seeds):
        paths = [path_of(cache, setting, part) for part in PARTS]
        kept = KEPT / f"{setting.name}.json"
        if all(path.is_file() for path in paths):
            full, held_out = (torch.load(path, weights_only=True) for path in paths)
            runs.append(judge(record_of(setting, full, held_out)))
            kept.write_text(text_of(runs[-1]))
        elif kept.is_file():
            runs.append(judge(json.loads(kept.read_text())["record"]))
    return runs


def text_of(run: Judged) -> str:
    """JSON with a line for each list of numbers and each outcome."""
    outcomes = {rule: [asdict(one) for one in several] for rule, several in run.outcomes.items()}
    text = json.dumps({"record": run.record, "outcomes": outcomes}, indent=1)
    return _INNERMOST.sub(lambda found: " ".join(found.group().split()), text) + "\n"


# Tables


def report(runs: list[Judged], tables: dict[str, list[Row]]) -> None:
    noisy = sum(run.setting.rate > 0 for run in runs)
    titles = {
        "noisy": f"{noisy} runs with wrong labels; gain and regret in points of clean accuracy",
        "without_noise": f"{len(runs) - noisy} runs without",
        "against": "The monitor, averaged weights, minus a rival: difference of gain, ± over runs",
    }
    for name, title in titles.items():
        if tables[name]:
            rows = [list(row.values()) for row in tables[name]]
            print_table(title, list(tables[name][0]), rows)
    if tables["groups"]:
        report_groups(tables["groups"])


def report_groups(rows: list[Row]) -> None:
    """A line for each group and a column for each rule."""
    gain, worst = GROUP_COLUMNS.index("mean_gain"), GROUP_COLUMNS.index("worst_gain")
    lines = [
        [row["value"], row["runs"]]
        + [f"{row['rules'][rule][gain]:+.1f} / {row['rules'][rule][worst]:+.1f}" for rule in RULES]
        for row in rows
    ]
    print_table("Averaged weights: gain, mean / worst", ["group", "runs", *RULES], lines)


if __name__ == "__main__":
    main()
