"""Writes the tables of the documentation from the results, between `<!-- begin NAME -->` marks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.ranks import report as ranks
from benchmarks.stopping.report import going_on, rule, runs, stopping, suspects
from benchmarks.trainers import report as trainers

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- begin ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

BLOCKS: dict[str, Callable[[], str]] = {
    "stopping-counts": stopping.stopping_counts,
    "stopping-rules": stopping.stopping_rules,
    "stopping-families": stopping.stopping_families,
    "stopping-against": stopping.stopping_against,
    "stopping-clean": stopping.stopping_clean,
    "stopping-clean-stops": stopping.stopping_clean_stops,
    "stopping-bars": stopping.stopping_bars,
    "stopping-worst": stopping.stopping_worst,
    "stopping-human": stopping.stopping_human,
    "stopping-slow": stopping.stopping_slow,
    "stopping-tuning": stopping.stopping_tuning,
    "stopping-pattern": stopping.stopping_pattern,
    "readme-rules": stopping.readme_rules,
    "ablation": rule.ablation,
    "leave-one-out": rule.leave_one_out,
    "validation-witness": rule.validation_witness,
    "stop-runs": runs.stop_runs,
    "go-on": going_on.go_on,
    "readme-suspects": suspects.readme_suspects,
    "suspects-bars": suspects.suspects_bars,
    "suspects-ranking": suspects.suspects_ranking,
    "suspects-naming": suspects.suspects_naming,
    "suspects-retrained": suspects.suspects_retrained,
    "suspects-clean": suspects.suspects_clean,
    "trainers-same": trainers.same_training,
    "trainers-scripts": trainers.scripts,
    "trainers-run-ahead": trainers.run_ahead,
    "ranks-faults": ranks.faults,
    "ranks-epochs": ranks.epochs,
    "ranks-reports": ranks.reports,
    "ranks-measured": ranks.measured,
    "ranks-memory": ranks.memory,
    "ranks-overhead": ranks.overhead,
}


def main() -> None:
    for path in PAGES:
        text = path.read_text()
        filled = fill(text)
        if filled != text:
            path.write_text(filled)
            print(path.relative_to(ROOT))


def fill(text: str) -> str:
    """The page with every block written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


if __name__ == "__main__":
    main()
