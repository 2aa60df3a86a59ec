"""The picture of a run: the U of the clean test error over the clean priority."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .data import Problem
from .train import Outcome

# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_GREY = "#595959"


def draw(problem: Problem, outcome: Outcome, path: Path) -> None:
    """Draw a run as a PNG.

    Args:
        problem: What was learnt.
        outcome: What came of it.
        path: The file to write.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    _draw_title(top, problem, outcome)
    _draw_error(top, outcome)
    _draw_priority(bottom, outcome)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    if outcome.stopped_at is not None:
        _draw_stop(
            top, outcome.stopped_at, 0.95, f"the monitor says stop, epoch {outcome.stopped_at}"
        )
        _draw_stop(bottom, outcome.stopped_at, 0.1, "stop: what follows fits noisy labels")
    FigureCanvasAgg(figure).print_figure(path, dpi=150)


def _draw_title(axes: Axes, problem: Problem, outcome: Outcome) -> None:
    handed_back, last = _error(outcome.returned_accuracy), _error(outcome.raw_accuracy[-1])
    finding = f"Handed back: {handed_back:.1f} % test error. Trained to the end: {last:.1f} %."
    axes.set_title(finding, loc="left", fontsize=13, fontweight="bold", pad=26)
    wrong, size = int(problem.is_wrong.sum()), len(problem.given_labels)
    setting = f"{problem.name}, {wrong:,} of {size:,} training labels wrong"
    axes.text(0, 1.04, setting, color=_GREY, transform=axes.transAxes)


def _draw_error(axes: Axes, outcome: Outcome) -> None:
    error = [_error(accuracy) for accuracy in outcome.raw_accuracy]
    axes.plot(range(1, len(error) + 1), error, color=_BLUE)
    axes.set(ylabel="error on clean test labels (%)", ylim=(0, None), xlim=(0, len(error) + 1))

    top, lowest, best = axes.get_ylim()[1], min(error), outcome.best_raw_epoch
    text = f"best raw weights: {lowest:.1f} %, epoch {best}"
    _mark(axes, best, lowest, 0.82 * top, text, _BLUE)
    kept, returned = outcome.returned_epoch, _error(outcome.returned_accuracy)
    text = f"handed back: {returned:.1f} %, averaged weights of epoch {kept}"
    _mark(axes, kept, returned, max(returned - 0.08 * top, 0.04 * top), text, _GREEN)


def _draw_priority(axes: Axes, outcome: Outcome) -> None:
    priority = outcome.priority
    axes.plot(range(1, len(priority) + 1), priority, color=_BLUE)
    axes.set(xlabel="epoch", ylabel="clean priority")
    # The steep rise of the first two epochs would flatten the rest.
    highest, lowest = max(priority), min(priority[2:] or priority)
    height = highest - lowest or 1
    axes.set_ylim(lowest, highest + 0.3 * height)
    peak = priority.index(highest) + 1
    _mark(axes, peak, highest, highest + 0.16 * height, f"peak, epoch {peak}", _BLUE)


def _draw_stop(axes: Axes, epoch: int, share: float, text: str) -> None:
    """A line through the panel, its text at this share of the height."""
    axes.axvline(epoch, color=_VERMILION, linewidth=1.2, linestyle="--")
    low, high = axes.get_ylim()
    _label(axes, epoch, low + share * (high - low), text, _VERMILION)


def _mark(axes: Axes, epoch: int, height: float, text_at: float, text: str, colour: str) -> None:
    """A dot, and a line from it to its text."""
    axes.plot(epoch, height, "o", color=colour, markersize=7, zorder=3)
    axes.plot([epoch, epoch], [height, text_at], color=colour, linewidth=0.8)
    _label(axes, epoch, text_at, text, colour)


def _label(axes: Axes, epoch: int, height: float, text: str, colour: str) -> None:
    """Text beside a place, towards the middle of the picture."""
    is_left = epoch < sum(axes.get_xlim()) / 2
    axes.annotate(
        text,
        (epoch, height),
        (5 if is_left else -5, 0),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="center",
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )


def _error(accuracy: float) -> float:
    """In percent."""
    return 100 * (1 - accuracy)
