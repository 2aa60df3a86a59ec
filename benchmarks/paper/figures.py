"""Figures of the paper's experiments, one per claim, drawn from the recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image

from benchmarks.paper.claims import best_epoch, crossings
from benchmarks.paper.setups import Experiment
from benchmarks.paper.training import BIN

SIZE, DPI = (7.0, 3.5), 100
CLEAN, NOISY, NEUTRAL = "#0072b2", "#d55e00", "#444444"
COLOURS = (CLEAN, NOISY, "#009e73")
MARKERS = ("o", "s", "^")
EPOCH_TICKS = (0, 1, 3, 10, 20, 40, 70)
NEVER = 150
"""Where signals that never came are drawn, in epochs after the best one."""
RATIO_TICKS = (0.7, 1, 1.2, 1.5, 2, 5, 10, 20)

Run = dict[str, Any]
Entry = tuple[Experiment, list[Run]]


def draw_all(entries: list[Entry], folder: Path, prefix: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(figure, entries)
        canvas.draw()
        pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        # Few colours make small files.
        palette = pixels.quantize(64, dither=Image.Dither.NONE)
        palette.save(folder / f"{prefix}_{name}.png", optimize=True)


# Curves over the epochs, a panel for each experiment


def curves(
    lines: dict[str, tuple[str, str]],
    label: str,
    level: float | None = None,
    percent: bool = False,
    ratio: bool = False,
    limits: tuple[float, float] | None = None,
) -> Callable[[Figure, list[Entry]], None]:
    """A drawing of mean and range over the seeds.

    Args:
        lines: Label -> key of the epochs, and colour.
        label: What the vertical axis shows.
        level: Where to draw a horizontal line.
        percent: Show shares in per cent.
        ratio: The vertical axes are logarithmic, one for each panel.
        limits: Of the vertical axis.
    """

    def draw(figure: Figure, entries: list[Entry]) -> None:
        panels = figure.subplots(1, len(entries), sharey=not ratio, squeeze=False)[0]
        for axes, (experiment, runs) in zip(panels, entries, strict=True):
            for name, (key, colour) in lines.items():
                values = np.array([run["epochs"][key] for run in runs], float)
                draw_band(axes, values * (100 if percent else 1), name, colour)
            if level is not None:
                axes.axhline(level, color=NEUTRAL, linewidth=0.8, linestyle=":")
            finish_panel(axes, experiment, runs)
            if ratio:
                scale_ratio(axes, RATIO_TICKS)
        if limits:
            panels[0].set_ylim(limits)
        panels[0].set_ylabel(label)
        add_legend(figure, panels[0])

    return draw


def draw_band(axes: Axes, values: np.ndarray, name: str, colour: str) -> None:
    epochs = np.arange(values.shape[1])
    axes.fill_between(epochs, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(epochs, values.mean(0), color=colour, label=name)


def finish_panel(axes: Axes, experiment: Experiment, runs: list[Run]) -> None:
    """Title, epochs on a scale that spreads the first ones, and where the stop would be."""
    best = [best_epoch(run) for run in runs]
    low, high = min(best) - 0.15, max(best) + 0.15
    axes.axvspan(low, high, color="#bbbbbb", alpha=0.5, linewidth=0, label="best epoch, all seeds")
    axes.set_title(experiment.title, fontsize="small")
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    last = len(runs[0]["epochs"]["test_error"]) - 1
    axes.set(xlim=(0, last), xlabel="epoch", xticks=[t for t in EPOCH_TICKS if t <= last])


def scale_ratio(axes: Axes, ticks: Iterable[float]) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.yaxis.set_minor_locator(NullLocator())


def add_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")


# Before training


def draw_angles(figure: Figure, entries: list[Entry]) -> None:
    panels = figure.subplots(1, len(entries), sharey=True, squeeze=False)[0]
    edges = np.arange(0, 181, BIN)
    groups = {"clean and clean": ("clean_clean", CLEAN), "clean and noisy": ("clean_noisy", NOISY)}
    for axes, (experiment, runs) in zip(panels, entries, strict=True):
        for label, (pairs, colour) in groups.items():
            shares = np.mean([run["angles"][pairs]["histogram"] for run in runs], 0)
            axes.stairs(100 * shares, edges, color=colour, fill=True, alpha=0.7, label=label)
        axes.axvline(90, color=NEUTRAL, linewidth=0.8, linestyle=":")
        axes.set_title(experiment.title, fontsize="small")
        axes.set(xlim=(0, 180), xticks=(0, 45, 90, 135, 180), xlabel="angle, degrees")
    panels[0].set_ylabel("share of pairs, %")
    add_legend(figure, panels[0])


def draw_initial_ratio(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    for place, (experiment, runs) in enumerate(entries):
        theory = experiment.initial_ratio
        ratios = [run["epochs"]["segment_ratio"][0] for run in runs]
        spread = place + np.linspace(-0.12, 0.12, len(ratios))
        axes.hlines(theory, place - 0.3, place + 0.3, NEUTRAL, "--", label="theory")
        axes.plot(spread, ratios, "o", color=CLEAN, alpha=0.8, label="measured, one dot per seed")
    axes.set_xticks(range(len(entries)), [experiment.title for experiment, _ in entries])
    axes.set(ylim=(1, 30), ylabel="‖clean‖ / ‖noisy‖ before training")
    scale_ratio(axes, (1, 1.5, 2, 5, 13.5, 21))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:2], labels[:2], fontsize="small")


# Crossings


def draw_crossings(figure: Figure, entries: list[Entry]) -> None:
    axes = figure.subplots()
    names = list(crossings(entries[0][1][0]))
    for number, (experiment, runs) in enumerate(entries):
        points = [
            (found["minus_best"] if found else NEVER, row)
            for run in runs
            for row, found in enumerate(crossings(run).values())
        ]
        x, rows = np.array(points, float).T
        axes.plot(
            x,
            rows + 0.22 * (number - (len(entries) - 1) / 2),
            MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            alpha=0.7,
            label=experiment.title,
        )
    axes.axvline(0, color=NEUTRAL, linewidth=0.8, linestyle=":")
    axes.set_xscale("symlog", linthresh=3)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30, NEVER]
    axes.set_xticks(ticks, [*map(str, ticks[:-1]), "never"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set(xlim=(-30, 1.5 * NEVER), xlabel="epochs after the best epoch")
    axes.invert_yaxis()
    add_legend(figure, axes)


FIGURES: dict[str, Callable[[Figure, list[Entry]], None]] = {
    "angles": draw_angles,
    "initial_ratio": draw_initial_ratio,
    "ratio": curves(
        {"ratio": ("segment_ratio", CLEAN)}, "‖clean‖ / ‖noisy‖ of a class", 1, ratio=True
    ),
    "noisy_peak": curves(
        {"noisy samples": ("noisy_error", NOISY), "clean samples": ("clean_error", CLEAN)},
        "error on the given labels, %",
        percent=True,
    ),
    "residuals": curves(
        {"noisy samples": ("noisy_residual", NOISY), "clean samples": ("clean_residual", CLEAN)},
        "mean residual |f − y|",
    ),
    "losses": curves(
        {"noisy samples": ("noisy_loss", NOISY), "clean samples": ("clean_loss", CLEAN)},
        "mean loss",
    ),
    "u_shape": curves(
        {"error on clean test labels": ("test_error", CLEAN)}, "test error, %", percent=True
    ),
    "direction": curves(
        {"mean over classes": ("segment_cosine", CLEAN)},
        "cosine, clean and noisy of a class",
        limits=(-1.03, 0.05),
    ),
    "group_cosine": curves(
        {"all parameters, all samples": ("group_cosine", CLEAN)},
        "cosine of both groups",
        0,
        limits=(-1.05, 1.05),
    ),
    "share": curves(
        {"noise share": ("noise_share", NOISY)},
        "noise share of the gradient",
        0.5,
    ),
    "crossings": draw_crossings,
}
