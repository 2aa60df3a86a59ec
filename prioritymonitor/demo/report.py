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
    wrong, size = int(problem.is_wrong.sum()), len(problem.given_labels)
    print(f"{problem.name}: {wrong:,} of {size:,} training labels are wrong.")
    print("Nobody tells the monitor which. Clean test labels serve this report only.")
    print(f"Your script would break at the stop; the demo trains all {epochs} epochs.\n")


def show_outcome(problem: Problem, outcome: Outcome) -> None:
    """Print the table of results."""
    epochs, best = len(outcome.raw_accuracy), outcome.best_raw_epoch
    stop, true_rate = outcome.stopped_at, problem.is_wrong.double().mean().item()
    table = Table(show_header=False)
    table.add_row("stopped at", "no stop" if stop is None else f"epoch {stop} of {epochs}")
    table.add_section()
    table.add_row("[bold]test accuracy[/bold]")
    table.add_row(
        f"returned weights (averaged, epoch {outcome.returned_epoch})",
        f"[bold]{_percent(outcome.returned_accuracy)}[/bold]",
    )
    table.add_row(
        f"best raw epoch ({best}, by the test labels)", _percent(max(outcome.raw_accuracy))
    )
    table.add_row(f"last epoch ({epochs})", _percent(outcome.raw_accuracy[-1]))
    table.add_section()
    table.add_row("suspects (score > 0.5): precision", _percent(outcome.precision))
    table.add_row("suspects (score > 0.5): recall", _percent(outcome.recall))
    table.add_row(
        f"estimated noise rate (true: {_percent(true_rate)})", _percent(outcome.noise_rate)
    )
    Console().print(table)


def show_files(folder: Path, picture: Path) -> None:
    """Print where everything is and how to look at it."""
    quoted = shlex.quote(str(folder))
    print(f"\nPicture:   {picture}")
    print(f"Suspects:  {folder / SUSPECTS_FILE}")
    print(f"Epochs:    {folder / HISTORY_FILE}")
    print(f"\nOpen TensorBoard:   tensorboard --logdir {quoted}")
    print(f"List the suspects:  prioritymonitor suspects {quoted}")


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"
