"""Figures of the comparison of stop rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from benchmarks.stopping.runs.kept import records_of
from benchmarks.stopping.runs.scores import MONITOR, Judged
from benchmarks.stopping.runs.settings import Setting
from benchmarks.stopping.runs.summaries import best_lags, family_mean, having
from prioritymonitor.stopping.agreement import read_agreement
from prioritymonitor.stopping.reading import means_of
from prioritymonitor.stopping.rule import StopRule

FOLDER = Path(__file__).parents[3] / "docs" / "pages" / "evidence" / "images"

# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
_BLUE, _VERMILION, _GREEN, _PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
_GREY, _LIGHT = "#595959", "#B0B0B0"
_COLOURS = 128

MARKS = {
    MONITOR: ("o", _VERMILION, 9),
    "Label Wave, k = 1": ("s", _BLUE, 6),
    "noisy validation": ("^", _GREEN, 6),
    "noisy validation by loss": ("v", _GREEN, 6),
    "SELC's turning point": ("D", _PINK, 5),
}
"""Rules that are shown: marker, colour, size."""

TYPICAL = Setting("human labels", "cifar10", "worse", 0.4, "cnn-mean", "sgd", epochs=25)
"""The run whose curves are shown."""


def draw(runs: Sequence[Judged], folder: Path) -> list[str]:
    """Draw both figures, as far as there are runs to show; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    noisy = [run for run in runs if run.setting.rate]
    drawn = []
    if noisy:
        drawn.append(save(_families(noisy), folder / "stopping_rules.png"))
    for run in runs:
        if run.setting == TYPICAL:
            drawn.append(save(_curves(run, best_lags(runs)), folder / "stopping_curves.png"))
    return drawn


def save(figure: Figure, path: Path) -> str:
    """Save with few colours, which makes the file small; rare ones, as of markers, are kept."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    return path.name


# Regret by family


def _families(runs: Sequence[Judged]) -> Figure:
    """A row for each family, and a last one for their mean; a mark for each rule."""
    lags = best_lags(runs)
    families = list(dict.fromkeys(run.setting.family for run in runs))
    groups = [[run for run in runs if run.setting.family == family] for family in families]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    for number, (rule, (marker, colour, size)) in enumerate(MARKS.items()):
        lower = 0.13 * (number - len(MARKS) // 2)  # so that no mark hides another
        places = [
            (family_mean(some, lambda run: run.of(rule, lag=lags[rule]).regret), row + lower)  # noqa: B023
            for row, group in enumerate([*groups, runs])
            if (some := having(group, rule))
        ]
        if places:
            style = {"markersize": size, "linestyle": "", "label": rule}
            axes.plot(*zip(*places, strict=True), marker, color=colour, **style)
    names = [f"{family} ({len(group)})" for family, group in zip(families, groups, strict=True)]
    axes.set_yticks(range(len(names) + 1), [*names, "mean of the families"])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("regret: points behind the best averaged epoch, mean over the runs")
    title = f"What each rule loses, {len(runs)} runs with wrong labels"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


# One run over its epochs


def _curves(run: Judged, lags: dict[str, int]) -> Figure:
    """Test accuracy above; below what the monitor sees of it, and its stop line."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    curves = run.kept["curves"]
    epochs = np.arange(1, len(curves["raw"]) + 1)
    above.plot(epochs, curves["raw"], color=_LIGHT, linewidth=1, label="raw weights")
    above.plot(epochs, curves["averaged"], color="black", linewidth=1.6, label="averaged weights")
    for rule, (marker, colour, size) in MARKS.items():
        if rule in run.outcomes and rule in (MONITOR, "Label Wave, k = 1"):
            outcome = run.of(rule, lag=lags[rule])
            style = {"markersize": size, "markeredgecolor": "white", "zorder": 3, "ls": ""}
            place = outcome.view, curves["averaged"][outcome.view - 1]
            above.plot(*place, marker, color=colour, label=f"{rule} hands back", **style)
    above.set_ylabel("accuracy on clean\ntest labels (%)")
    above.set_title(run.setting.group, fontsize=10, loc="left")
    above.legend(frameon=False, fontsize=8)
    _witness(below, run)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _witness(axes: Axes, run: Judged) -> None:
    """The agreement with the neighbours, and how low it must be for a stop."""
    history = records_of(run.kept["history"])
    means = means_of(history, "agreement")
    tolerance = StopRule().tolerance
    readings = [read_agreement(history[:now], tolerance) for now in range(1, len(history) + 1)]
    lines = [(n, r.highest - r.line) for n, r in enumerate(readings, 1) if r is not None]
    label = "predicted as the neighbours say, mean of 3 epochs"
    axes.plot(*zip(*means, strict=True), color=_VERMILION, linewidth=1.6, label=label)
    axes.plot(*zip(*lines, strict=True), color=_GREY, linestyle="--", label="stop line")
    stop = run.of(MONITOR)
    if stop.stopped:
        axes.axvline(stop.spent, color=_VERMILION, linewidth=0.8, linestyle=":")
        axes.text(stop.spent, 0.02, " stop", transform=axes.get_xaxis_transform(), color=_VERMILION)
    axes.set(xlabel="epoch", ylabel="share of samples")
    axes.legend(frameon=False, fontsize=8)
