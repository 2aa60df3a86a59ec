"""The rule on each family of runs, with the constants that suit the other families best.

Reads what `grid.py` keeps of the runs; nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from statistics import fmean

from benchmarks.environment import write_results
from benchmarks.stopping.ablation import outcome
from benchmarks.stopping.runs.kept import KEPT
from benchmarks.stopping.runs.scores import Judged, Outcome, judged_runs
from benchmarks.stopping.runs.settings import SEEDS
from benchmarks.stopping.runs.summaries import Row
from benchmarks.stopping.runs.variants import Variant
from benchmarks.tables import print_table
from prioritymonitor import StopRule

TOLERANCES = (0.03, 0.04, 0.05, 0.06, 0.08)
AT_STAKES = (0.025, 0.05, 0.075, 0.1)
ALIKES = (0.0, 0.003, 0.01)

DEFAULTS = Variant()

Found = dict[Variant, dict[str, dict[bool, list[Outcome]]]]
"""By constants, family, and whether labels are wrong."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    runs = judged_runs(parser.parse_args().seeds)
    families = list(dict.fromkeys(run.setting.family for run in runs))
    if len(families) < 2:
        raise SystemExit(f"fewer than two families in {KEPT}: run benchmarks.stopping.grid first")
    found = {variant: by_family(runs, variant) for variant in candidates()}
    rows = [row(found, family) for family in families]
    print_table("Leave one family out", list(rows[0]), [list(one.values()) for one in rows])
    tried = {"tolerances": TOLERANCES, "at_stakes": AT_STAKES, "alikes": ALIKES}
    print(write_results("stopping/leave_one_out", tried | {"families": rows}))


def candidates() -> list[Variant]:
    """The defaults first: of equals the first is taken."""
    grid = [
        Variant(StopRule(tolerance=tolerance), at_stake, alike)
        for tolerance, at_stake, alike in product(TOLERANCES, AT_STAKES, ALIKES)
    ]
    return list(dict.fromkeys([DEFAULTS, *grid]))


def by_family(runs: Sequence[Judged], variant: Variant) -> dict[str, dict[bool, list[Outcome]]]:
    """What comes of these constants."""
    found: dict[str, dict[bool, list[Outcome]]] = {}
    for run in runs:
        kinds = found.setdefault(run.setting.family, {True: [], False: []})
        kinds[run.setting.rate > 0].append(outcome(run, variant))
    return found


def row(found: Found, family: str) -> Row:
    """A family with the constants that it had no part in, and with the defaults."""
    others = [other for other in found[DEFAULTS] if other != family]
    chosen = min(found, key=lambda one: fmean(_loss(found[one][other]) for other in others))
    assert isinstance(chosen.rule, StopRule)
    unseen, default = found[chosen][family], found[DEFAULTS][family]
    return {
        "family": family,
        "tolerance": chosen.rule.tolerance,
        "at_stake": chosen.at_stake,
        "alike": chosen.alike,
        "noisy_regret": _regret(unseen[True]),
        "noisy_worst": max((one.regret for one in unseen[True]), default=None),
        "clean_regret": _regret(unseen[False]),
        "clean_worst_cost": max((one.cost for one in unseen[False] if one.stopped), default=0.0),
        "default_noisy_regret": _regret(default[True]),
        "default_clean_regret": _regret(default[False]),
    }


def _loss(kinds: dict[bool, list[Outcome]]) -> float:
    """Regret with wrong labels and without, each in the mean."""
    return sum(_regret(kind) or 0.0 for kind in kinds.values())


def _regret(outcomes: Sequence[Outcome]) -> float | None:
    return fmean(one.regret for one in outcomes) if outcomes else None


if __name__ == "__main__":
    main()
