"""Stop rules side by side, on many runs of several families, most of them with wrong labels.

The runs are made once and recorded; what is kept of them is enough to try every rule on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch

from benchmarks.data.images import add_data_option
from benchmarks.environment import write_results
from benchmarks.stopping.runs.cache import CACHE, Maker, make_missing
from benchmarks.stopping.runs.details import details
from benchmarks.stopping.runs.kept import KEPT, keep_all
from benchmarks.stopping.runs.pictures import FOLDER, draw
from benchmarks.stopping.runs.record import record, record_with_validation
from benchmarks.stopping.runs.scores import Judged, judged_runs
from benchmarks.stopping.runs.settings import SEEDS, settings
from benchmarks.stopping.runs.summaries import GROUP_COLUMNS, Row, summarise
from benchmarks.tables import print_table

PARTS: dict[str, Maker] = {
    "full": record,
    "held-out": record_with_validation,
}
SCALARS = (str, int, float, type(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--cache", type=Path, default=CACHE, help="the recordings")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--report", action="store_true", help="judge what there is; train nothing")
    parser.add_argument("--anew", action="store_true", help="replay all recordings once more")
    parser.add_argument("--pictures", type=Path, default=FOLDER, help="folder of the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wanted = settings(options.seeds)
    if not options.report:
        make_missing(product(wanted, PARTS), PARTS, options.data, options.cache, options.jobs)
    keep_all(wanted, options.cache, options.jobs, options.anew)
    runs = judged_runs(options.seeds)
    if not runs:
        raise SystemExit(f"no run in {options.cache} or {KEPT}")
    found = tables(runs)
    report(found)
    path = write_results("stopping/grid", counts(runs) | found)
    print(f"results: {path}, figures: {', '.join(draw(runs, options.pictures))}")


def counts(runs: Sequence[Judged]) -> dict[str, int | tuple[str, ...]]:
    """How many runs there are."""
    return {
        "runs": len(runs),
        "noisy_runs": sum(run.setting.rate > 0 for run in runs),
        "held_out_runs": sum(run.kept["held_out"] is not None for run in runs),
        "settings": len({(run.setting.family, run.setting.group) for run in runs}),
        "seeds": len({run.setting.seed for run in runs}),
        "group_columns": GROUP_COLUMNS,
    }


def tables(runs: Sequence[Judged]) -> dict[str, list[Row]]:
    """All that is said of the rules."""
    return summarise(runs) | details(runs)


def report(found: dict[str, list[Row]]) -> None:
    for title, rows in found.items():
        if rows:
            shown = [key for key, value in rows[0].items() if isinstance(value, SCALARS)]
            print_table(title, shown, [[row[key] for key in shown] for row in rows])


if __name__ == "__main__":
    main()
