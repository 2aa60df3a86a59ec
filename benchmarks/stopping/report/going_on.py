"""The table of what going on after the stop gains."""

from __future__ import annotations

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import pair, signed, table


def go_on() -> str:
    """By kind of noise and by family."""
    return table(
        ["runs with", "runs", "refused", "gain", "with all"],
        [
            [
                row["runs of"],
                str(row["runs"]),
                str(row["refused"]),
                pair(row["gain"], row["worst"]),
                signed(row["with_all"]),
            ]
            for row in read_results("stopping/go_on")["groups"]
        ],
    )
