"""What the demo says in the terminal."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..report.saved_run import EPOCHS_FILE, SUSPECTS_FILE
from .data import Problem
from .train import Outcome


def announce(problem: Problem, epochs: int) -> None:
    """Say what is about to be trained."""
    wrong, size = int(problem.is_wrong.sum()), len(problem.given_labels)
    print(f"{problem.name}: {wrong:,} of {size:,} training labels are wrong.")
    print("Nobody tells the monitor which. Clean test labels serve this report only.")
    print(
        f"A script breaks at the stop; the demo goes on to epoch {epochs} to show what follows.\n"
    )


def show_outcome(problem: Problem, outcome: Outcome) -> None:
    """Print the table of results."""
    epochs, stop = len(outcome.raw_accuracy), outcome.stopped_at
    true_rate = problem.is_wrong.double().mean().item()
    table = Table(show_header=False)
    table.add_row("stopped at", "no stop" if stop is None else f"epoch {stop} of {epochs}")
    table.add_section()
    table.add_row("accuracy on clean test labels")
    for what, accuracy in (
        (f"returned weights (averaged, epoch {outcome.returned_epoch})", outcome.returned_accuracy),
        (f"best raw epoch ({outcome.best_raw_epoch}, chosen on test)", max(outcome.raw_accuracy)),
        (f"last epoch ({epochs})", outcome.raw_accuracy[-1]),
    ):
        table.add_row(f"  {what}", _percent(accuracy))
    table.add_section()
    table.add_row("suspects found (score > 0.5)")
    table.add_row("  precision", _percent(outcome.precision))
    table.add_row("  recall", _percent(outcome.recall))
    rate = f"{_percent(outcome.noise_rate)} (true: {_percent(true_rate)})"
    table.add_row("estimated noise rate", rate)
    Console().print(table)


def show_files(folder: Path, picture: Path) -> None:
    """Print where everything is and how to look at it."""
    quoted = shlex.quote(str(folder))
    print(f"\nPicture:   {picture}")
    print(f"Suspects:  {folder / SUSPECTS_FILE}")
    print(f"Epochs:    {folder / EPOCHS_FILE}")
    print(f"\nOpen TensorBoard:   {_program('tensorboard')} --logdir {quoted}")
    print(f"List the suspects:  {_program('prioritymonitor')} suspects {quoted}")


def _program(name: str) -> str:
    """How to call a program: by its name, or by its path if the environment is not activated."""
    if shutil.which(name):
        return name
    return shlex.quote(os.path.relpath(Path(sys.executable).parent / name))


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"
