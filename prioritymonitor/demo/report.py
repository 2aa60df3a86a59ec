"""What the demo says in the terminal."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..reporting.run_folder import HISTORY_FILE, SUSPECTS_FILE
from .data import Problem
from .train import Outcome


def announce(problem: Problem, epochs: int) -> None:
    """Say what is about to be trained."""
    size, wrong = len(problem.given_labels), int(problem.is_wrong.sum())
    print(
        f"{problem.name}: {size:,} training samples, {wrong:,} of them with a wrong label; "
        f"{len(problem.test_labels):,} clean test samples.\n"
        "The monitor is told neither which labels are wrong nor anything of the test set.\n"
        f"A script would break at the stop; the demo trains all {epochs} epochs to show the rest."
    )


def show_outcome(problem: Problem, outcome: Outcome) -> None:
    """Print the table of results."""
    epochs = len(outcome.raw_accuracy)
    stop = "no stop" if outcome.stopped_at is None else f"epoch {outcome.stopped_at} of {epochs}"
    true_rate = problem.is_wrong.double().mean().item()
    table = Table(show_header=False, title=problem.name)
    for what, value, remark in (
    ):
        table.add_row(what, value, remark)
    Console().print(table)
