"""What `validation=` could add to the rule: held-out labels beside the neighbours' vote.

Judged on the runs that hold samples out, against their own best epochs. Reads what `grid.py` keeps;
nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.environment import write_results
from benchmarks.stopping.runs.held_out import WITNESSED, Rule
from benchmarks.stopping.runs.kept import KEPT
from benchmarks.stopping.runs.scores import Judged, judged_runs, outcome_of
from benchmarks.stopping.runs.settings import SEEDS
from benchmarks.stopping.runs.summaries import Row, error_of_mean, family_mean
from benchmarks.tables import print_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    runs = [run for run in judged_runs(parser.parse_args().seeds) if run.kept["held_out"]]
    noisy = [run for run in runs if run.setting.rate]
    clean = [run for run in runs if not run.setting.rate]
    if not noisy:
        raise SystemExit(f"no run with held-out samples in {KEPT}")
    rows = [row(name, noisy, clean) for name in WITNESSED]
    print_table("Held-out labels beside the vote", list(rows[0]), [list(r.values()) for r in rows])
    found = {"noisy_runs": len(noisy), "clean_runs": len(clean), "rules": rows}
    print(write_results("stopping/validation_witness", found))


def row(name: str, noisy: Sequence[Judged], clean: Sequence[Judged]) -> Row:
    """A rule on runs with wrong labels and on those without."""
    rule, first = WITNESSED[name], next(iter(WITNESSED.values()))
    ahead = {run.setting: regret(run, first) - regret(run, rule) for run in noisy}
    families = dict.fromkeys(run.setting.family for run in noisy)
    return {
        "rule": name,
        "noisy_regret": family_mean(noisy, lambda run: regret(run, rule)),
        "noisy_worst": max(regret(run, rule) for run in noisy),
        "better_by": family_mean(noisy, lambda run: ahead[run.setting]),
        "standard_error": error_of_mean(noisy, lambda run: ahead[run.setting]),
        "clean_regret": family_mean(clean, lambda run: regret(run, rule)) if clean else None,
        "clean_worst": max((regret(run, rule) for run in clean), default=None),
        "families": {
            family: family_mean(
                [run for run in noisy if run.setting.family == family],
                lambda run: regret(run, rule),
            )
            for family in families
        },
    }


def regret(run: Judged, rule: Rule) -> float:
    """Behind the best averaged epoch of the run without the held-out samples."""
    curves = run.kept["held_out"]["curves"]
    return outcome_of(run.setting, curves, curves, rule(run)).regret


if __name__ == "__main__":
    main()
