"""What each part of the monitor's rule is worth: the rule with one part changed at a time.

Reads what `grid.py` keeps of the runs; nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks.environment import write_results
from benchmarks.stopping.runs.kept import KEPT, records_of
from benchmarks.stopping.runs.rivals import Choice
from benchmarks.stopping.runs.scores import Judged, Outcome, judged_runs, outcome_of
from benchmarks.stopping.runs.settings import SEEDS, Setting
from benchmarks.stopping.runs.summaries import Row, family_mean
from benchmarks.stopping.runs.variants import VARIANTS, History
from benchmarks.tables import print_table

Rule = Callable[[Setting, History], Choice]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    runs = judged_runs(parser.parse_args().seeds)
    if not runs:
        raise SystemExit(f"no run in {KEPT}: run benchmarks.stopping.grid first")
    rows = [row(name, runs, variant) for name, variant in VARIANTS.items()]
    print_table("The rule with one part changed", list(rows[0]), [list(r.values()) for r in rows])
    noisy = sum(run.setting.rate > 0 for run in runs)
    counts = {"noisy_runs": noisy, "clean_runs": len(runs) - noisy}
    print(write_results("stopping/ablation", counts | {"variants": rows}))


def row(name: str, runs: Sequence[Judged], rule: Rule) -> Row:
    """A line of the table."""
    noisy = [run for run in runs if run.setting.rate]
    clean = [run for run in runs if not run.setting.rate]
    return {"variant": name} | _summary("noisy", noisy, rule) | _summary("clean", clean, rule)


def _summary(kind: str, runs: Sequence[Judged], rule: Rule) -> Row:
    """Of the runs with wrong labels or of those without; empty if there are none."""
    if not runs:
        return {}
    found = {run.setting: outcome(run, rule) for run in runs}
    several = found.values()
    return {
        f"{kind}_mean_gain": family_mean(runs, lambda run: found[run.setting].gain),
        f"{kind}_mean_regret": family_mean(runs, lambda run: found[run.setting].regret),
        f"{kind}_worst_regret": max(one.regret for one in several),
        f"{kind}_stopped": sum(one.stopped for one in several),
        f"{kind}_worst_cost": max((one.cost for one in several if one.stopped), default=0.0),
    }


def outcome(run: Judged, rule: Rule) -> Outcome:
    """What came of a rule in a run, averaged weights."""
    curves = run.kept["curves"]
    choice = rule(run.setting, records_of(run.kept["history"]))
    return outcome_of(run.setting, curves, curves, choice)


if __name__ == "__main__":
    main()
