"""The command line: `prioritymonitor demo`, `run` and `suspects`."""

from __future__ import annotations

import csv
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

from . import __version__
from .errors import PriorityMonitorError


def _exit_saying(problem: object) -> NoReturn:
    print(f"prioritymonitor: {problem}", file=sys.stderr)
    raise SystemExit(2)


def _exit_without(error: ModuleNotFoundError) -> NoReturn:
    _exit_saying(f"got no module {error.name!r}; run: pip install 'prioritymonitor[cli]'")


try:
    import typer
except ModuleNotFoundError as error:
    _exit_without(error)

_LOG_DIR = Path("runs/demo")

# The commands import what they need themselves: torch, scikit-learn and matplotlib take seconds.
app = typer.Typer(
    help="Watch clean and noisy labels compete, and stop before the noise is learnt.",
    no_args_is_help=True,
    add_completion=False,
)


class OptimizerName(str, Enum):
    """The optimizers of the demo."""

    adam = "adam"
    sgd = "sgd"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"prioritymonitor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the four gzipped Fashion-MNIST files; digits without it."),
    ] = None,
    log_dir: Annotated[Path, typer.Option(help="Run folder, numbered if in use.")] = _LOG_DIR,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train, stop or not.")] = 60,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Share of wrong labels.")] = 0.4,
    optimizer: Annotated[OptimizerName, typer.Option(help="Optimizer.")] = OptimizerName.adam,
    seed: Annotated[int, typer.Option(help="Seed of data, weights and batches.")] = 0,
) -> None:
    """Train on images with wrong labels and see when the monitor stops, and what it finds."""
    from rich.console import Console
    from rich.progress import track

    from .demo.data import digits, fashion_mnist
    from .demo.picture import draw
    from .demo.report import announce, show_files, show_outcome
    from .demo.train import train

    problem = fashion_mnist(data, noise, seed) if data is not None else digits(noise, seed)
    announce(problem, epochs)
    bar = track(range(1, epochs + 1), "training", console=Console(stderr=True))
    outcome = train(problem, optimizer.value, bar, seed, log_dir)
    draw(problem, outcome, picture := outcome.folder / "u_shape.png")
    show_outcome(problem, outcome)
    show_files(outcome.folder, picture)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)
def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="SCRIPT [ARGS]...")],
    is_module: Annotated[
        bool, typer.Option("-m", help="SCRIPT is the name of a module, as for python -m.")
    ] = False,
    log_dir: Annotated[
        Path | None, typer.Option(help="Run folder, numbered if in use; runs/NAME without it.")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="End the script after the stop.")] = False,
) -> None:
    """Run a training script as it is, with a monitor on what it trains.

    The script gets the ARGS, and its exit code is that of the command. With --stop it ends with
    code 0 where the epoch after the stop begins. Under torchrun: torchrun -m prioritymonitor run
    SCRIPT.
    """
    from .script.as_main import run_as_main
    from .script.watched import WatchedScript

    if not is_module and not Path(target).is_file():
        _exit_saying(f"got no script {target}; name a Python file, or a module with -m")
    name = target.rsplit(".", 1)[-1] if is_module else Path(target).stem
    sys.excepthook = sys.__excepthook__  # typer has put its own there
    watched = WatchedScript(log_dir or Path("runs") / name, stop)
    try:
        code = run_as_main(target, context.args, is_module=is_module)
    finally:
        watched.close()
    raise SystemExit(code)


@app.command()
def suspects(
    run_dir: Annotated[Path, typer.Argument(help="Run folder, the log_dir of a GradientMonitor.")],
    top: Annotated[int | None, typer.Option(min=0, help="No more than this many.")] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Only scores above this.")] = 0.5,
) -> None:
    """Print the samples taken as mislabelled as CSV, the likeliest first."""
    from .report.saved_run import read_suspects

    found = read_suspects(run_dir)
    shown = (found["score"] > min_score).nonzero()[0][:top]
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(found)
    table.writerows(zip(*(column[shown].tolist() for column in found.values()), strict=True))
    sys.stdout.flush()  # a closed pipe shows here, where it is taken quietly, not at the exit


def main() -> None:
    """Run the command line; what the user can put right is said in one line, with exit code 2."""
    try:
        app()
    except ModuleNotFoundError as error:
        _exit_without(error)
    except (PriorityMonitorError, OSError) as error:
        _exit_saying(error)
