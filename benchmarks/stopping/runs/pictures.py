"""Figures of the comparison of stop rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from benchmarks.stopping.runs.scores import MONITOR, RULES, Judged, best_lag
from benchmarks.stopping.runs.settings import Setting

FOLDER = Path(__file__).parents[3] / "docs" / "pages" / "evidence" / "images"

# From the palette of Okabe and Ito, which people with any colour vision can tell apart.
_BLUE, _VERMILION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_GREY, _LIGHT = "#595959", "#B0B0B0"
_COLOURS = 128

MARKS = {
    MONITOR: ("o", _VERMILION, 12, MONITOR),
    "Label Wave, k = 1": ("s", _BLUE, 8, "Label Wave, k = 1"),
    "noisy validation": ("^", _GREEN, 6, "noisy validation (a run of its own)"),
}
"""Rules of which the curves tell: marker, colour, size and label; smaller ones lie on larger."""

_CNN = Setting(model="cnn", optimizer="sgd")
TYPICAL = [
    Setting(rate=0.4),
    replace(_CNN, rate=0.6),
    replace(_CNN, noise="pair", rate=0.3),
    Setting(noise="instance", rate=0.3),
    Setting(data="digits", rate=0.4, epochs=60),
    Setting(),
]


def draw(runs: Sequence[Judged], folder: Path) -> list[str]:
    """Draw both figures, as far as there are runs to show; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    noisy = [run for run in runs if run.setting.rate]
    typical = [run for setting in TYPICAL for run in runs if run.setting == setting]
    lags = {rule: best_lag(noisy or runs, rule) for rule in RULES}
    drawn = []
    if noisy:
        drawn.append(_save(_rules(noisy, lags), folder / "stopping_rules.png"))
    if typical:
        drawn.append(_save(_curves(typical, lags), folder / "stopping_curves.png"))
    return drawn


def _save(figure: Figure, path: Path) -> str:
    """Save with few colours, which makes the file small; rare ones, as of markers, are kept."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(pixels).quantize(_COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    return path.name


# Every rule over all runs


def _rules(runs: Sequence[Judged], lags: dict[str, int]) -> Figure:
    """A row for each rule, the best in the mean on top, and a dot for each run."""
    gains = {rule: [run.of(rule, "averaged", lags[rule]).gain for run in runs] for rule in RULES}
    ranked = sorted(RULES, key=lambda rule: fmean(gains[rule]))
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots()
    for row, rule in enumerate(ranked):
        _strip(axes, row, gains[rule], _VERMILION if rule == MONITOR else _BLUE)
    axes.axvline(0, color=_GREY, linewidth=0.8, zorder=0)
    axes.set_xscale("symlog", linthresh=2, linscale=1.2)
    ticks = [tick for tick in (-40, -20, -10, -5, -2, -1, 0, 1, 2, 5) if tick >= _floor(gains)]
    axes.set_xticks(ticks, [f"{tick:+d}".replace("-", "−") if tick else "0" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(_floor(gains), max(2.5, 1.1 * max(map(max, gains.values()))))
    axes.set_yticks(range(len(ranked)), ranked)
    axes.get_yticklabels()[ranked.index(MONITOR)].set_fontweight("bold")
    axes.set_xlabel("accuracy of the returned weights minus that of the best raw epoch, points")
    title = f"What each rule hands back, averaged weights, {len(runs)} runs with wrong labels"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=20)
    axes.text(1.02, 1.01, "mean / worst", transform=axes.transAxes, color=_GREY, va="bottom")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def _floor(gains: dict[str, list[float]]) -> float:
    return 1.1 * min(map(min, gains.values()))


def _strip(axes: Axes, row: int, gains: Sequence[float], colour: str) -> None:
    """Dots spread over the height of a row, the box of the middle half, and the mean."""
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(gains))
    low, high = np.percentile(gains, (25, 75))
    axes.barh(row, high - low, 0.74, left=low, color=colour, alpha=0.18, linewidth=0)
    axes.plot(gains, row + spread, "o", color=colour, markersize=3, alpha=0.55, markeredgewidth=0)
    mean = fmean(gains)
    axes.plot([mean, mean], [row - 0.37, row + 0.37], color=colour, linewidth=2.2)
    text = f"{round(mean, 1) + 0.0:+.1f} / {min(gains):+.1f}".replace("-", "−")  # no −0.0
    axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", color=colour)


# Some runs over their epochs


def _curves(runs: Sequence[Judged], lags: dict[str, int]) -> Figure:
    """A panel for each run, with what the `MARKS` hand back."""
    rows = -(-len(runs) // 3)
    figure = Figure(figsize=(10, 2.9 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, min(3, len(runs)), squeeze=False).flatten()
    for axes, run in zip(panels, runs, strict=False):
        _run(axes, run, lags)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.supylabel("accuracy on clean test labels (%)", fontsize=10)
    return figure


def _run(axes: Axes, run: Judged, lags: dict[str, int]) -> None:
    per_epoch = run.setting.views_per_epoch
    curves = run.record["curves"]
    epochs = np.arange(1, len(curves["raw"]) + 1) / per_epoch
    axes.plot(epochs, curves["raw"], color=_LIGHT, linewidth=1, label="raw weights")
    axes.plot(epochs, curves["averaged"], color="black", linewidth=1.6, label="averaged weights")
    best = max(curves["raw"])
    axes.axhline(best, color=_LIGHT, linewidth=0.8, linestyle=":")
    for rule, (marker, colour, size, label) in MARKS.items():
        outcome = run.of(rule, "averaged", lags[rule])
        handed_back = best + outcome.gain
        style = {"markersize": size, "markeredgecolor": "white", "zorder": 3, "ls": ""}
        epoch = outcome.view / per_epoch
        axes.plot(epoch, handed_back, marker, color=colour, label=label, **style)
    axes.set_title(run.setting.group, fontsize=9, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlim=(0, epochs[-1] + 1), xlabel="epoch")
    axes.spines[["top", "right"]].set_visible(False)
