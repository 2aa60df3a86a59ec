"""Figure of the detectors of wrong labels."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.stopping.runs.detectors import METRICS
from benchmarks.stopping.runs.naming import MONITOR
from benchmarks.stopping.runs.pictures import FOLDER, save

MARKS = {
    MONITOR: ("o", "#D55E00"),
    "AUM": ("s", "#0072B2"),
    "small loss, mean": ("D", "#CC79A7"),
    "small loss, last": ("x", "#CC79A7"),
    "EL2N": ("P", "#E69F00"),
}
"""Detectors that need no training of their own: marker and colour, made for any colour vision."""


def draw(found: dict[str, Any]) -> str:
    """By family, how well labels are ranked, and how well they are named; the file's name."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _dots(left, found["families"], "auroc")
    left.set(xlabel="AUROC", title="Ranking")
    _dots(right, found["families"], "f1")
    right.set(xlabel="F1 at the detector's own threshold", title="Naming")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(MARKS), frameon=False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    return save(figure, FOLDER / "suspects_by_noise.png")


def _dots(axes: Axes, groups: dict[str, Any], metric: str) -> None:
    """A row for each family, the first on top, and a mark for each detector."""
    column = METRICS.index(metric)
    for number, (name, (marker, colour)) in enumerate(MARKS.items()):
        lower = 0.12 * (number - len(MARKS) // 2)  # so that no mark hides another
        places = [
            (group["detectors"][name][column], row + lower)
            for row, group in enumerate(groups.values())
            if name in group["detectors"] and group["detectors"][name][column] is not None
        ]
        if places:
            style = {"markersize": 8 if name == MONITOR else 5, "linestyle": ""}
            axes.plot(*zip(*places, strict=True), marker, color=colour, label=name, **style)
    axes.set_yticks(
        range(len(groups)), [f"{group} ({part['runs']})" for group, part in groups.items()]
    )
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
