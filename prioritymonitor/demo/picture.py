"""The picture of a run: the U of the clean test error over the clean priority."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .train import Outcome

# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#767676"
_HIGHEST_SEEN = 1.15
"""Top of the error axis over the worst error after the first epochs, which are off the scale."""


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
