"""The picture of a run: the U of the clean test error over the clean priority."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .train import Outcome

# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
_BLUE, _VERMILION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#595959"


def draw(outcome: Outcome, path: Path) -> None:
    """Draw a run as a PNG.

    Args:
        outcome: The run.
        path: The file to write.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    _draw_error(top, outcome)
    _draw_priority(bottom, outcome)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        if outcome.stopped_at is not None:
            axes.axvline(outcome.stopped_at, color=_VERMILION, linewidth=1.2, linestyle="--")
    figure.suptitle(_finding(outcome), x=0.01, ha="left", fontsize=13, fontweight="bold")
    FigureCanvasAgg(figure).print_figure(path, dpi=150)


def _finding(outcome: Outcome) -> str:
    handed_back, last = _error(outcome.returned_accuracy), _error(outcome.raw_accuracy[-1])
    return f"Handed back: {handed_back:.1f} % test error. Trained to the end: {last:.1f} %."


def _draw_error(axes: Axes, outcome: Outcome) -> None:
    error = [_error(accuracy) for accuracy in outcome.raw_accuracy]
    epochs = range(1, len(error) + 1)
    axes.plot(epochs, error, color=_BLUE)
    axes.set(ylabel="error on clean test labels (%)", ylim=(0, None), xlim=(0, len(error) + 1))

    best = outcome.best_raw_epoch
    _mark(axes, best, error[best - 1], f"best raw epoch, {best}", _BLUE, (-4, 40))
    text = f"handed back: averaged weights of epoch {outcome.returned_epoch}"
    returned = _error(outcome.returned_accuracy)
    _mark(axes, outcome.returned_epoch, returned, text, _GREEN, (12, -16))
    if outcome.stopped_at is not None:
        text = f"the monitor says stop, epoch {outcome.stopped_at}"
        place = (outcome.stopped_at, 0.97)
        _write(axes, text, place, _VERMILION, (6, 0), xycoords=axes.get_xaxis_transform())


def _draw_priority(axes: Axes, outcome: Outcome) -> None:
    epochs = range(1, len(outcome.priority) + 1)
    axes.plot(epochs, outcome.priority, color=_BLUE)
    axes.set(xlabel="epoch", ylabel="clean priority")
    height = max(outcome.priority)
    peak = outcome.priority.index(height) + 1
    _mark(axes, peak, height, f"peak, epoch {peak}", _BLUE, (0, 12))


def _mark(
    axes: Axes, epoch: int, height: float, text: str, colour: str, offset: tuple[int, int]
) -> None:
    axes.plot(epoch, height, "o", color=colour, markersize=8)
    axes.annotate(text, (epoch, height), offset, textcoords="offset points", color=colour)


def _write(axes, text, place, colour, offset, **kw):
    axes.annotate(text, place, offset, textcoords="offset points", color=colour, **kw)

def _error(accuracy: float) -> float:
    """In percent."""
    return 100 * (1 - accuracy)
