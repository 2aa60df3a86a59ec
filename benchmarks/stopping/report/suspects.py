"""Tables of the detectors of wrong labels."""

from __future__ import annotations

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, share, table

FREE = ("monitor", "AUM", "small loss, mean", "small loss, last", "EL2N")
"""Detectors that need no training of their own to rank labels."""


def suspects_bars() -> str:
    """What was asked for under symmetric noise."""
    return table(
        ["symmetric noise, at the stop", "asked", "mean", "worst", "runs that meet it"],
        [
            [
                bar["what"],
                "≥ 0.98" if bar["asked"] else "> 0",
                share(bar["mean"]),
                share(bar["worst"]),
                f"{bar['met']} of {bar['runs']}",
            ]
            for bar in read_results("stopping/suspects")["bars"]
        ],
    )


def suspects_ranking() -> str:
    """AUROC in all runs by kind of noise."""
    results = read_results("stopping/suspects")
    kinds = {kind: part for kind, part in results["stop"]["all_runs"].items() if kind != "none"}
    columns = [f"{kind} ({part['runs']})" for kind, part in kinds.items()]
    return table(
        ["AUROC at the stop", *columns],
        [
            [name, *(share(_value(results, part, name, "auroc")) for part in kinds.values())]
            for name in FREE
        ],
    )


def suspects_naming() -> str:
    """A table for each kind of noise, of the runs in which all detectors had their trainings."""
    results = read_results("stopping/suspects")
    stop, end = (results[when]["all_detectors"] for when in ("stop", "end"))
    parts = []
    for kind, part in stop.items():
        if kind != "none":
            runs = f"{part['runs']} run{'s' if part['runs'] > 1 else ''}"
            parts.append(f"### {kind}, {runs}\n\n{_naming(results, part, end[kind])}")
    return "\n\n".join(parts)


def _naming(results: Json, stop: Json, end: Json) -> str:
    metrics = ("auroc", "average_precision", "f1", "f1_at_rate", "best_f1")
    columns = ["detector", "AUROC", "average precision", "F1", "F1 at the true rate", "best F1"]
    return table(
        [*columns, "AUROC at the end", "F1 at the end"],
        [
            [
                name,
                *(share(_value(results, stop, name, metric)) for metric in metrics),
                *(share(_value(results, end, name, metric)) for metric in ("auroc", "f1")),
            ]
            for name in stop["detectors"]
        ],
    )


def suspects_clean() -> str:
    """What is named where no label is wrong."""
    results = read_results("stopping/suspects")
    part = results["stop"]["all_detectors"]["none"]
    named = {name: _value(results, part, name, "named") for name in part["detectors"]}
    return table(
        [f"no wrong labels, {part['runs']} runs", "share of labels named"],
        [[name, f"{value:.1%}"] for name, value in named.items() if value is not None],
    )


def _value(results: Json, part: Json, name: str, metric: str) -> float | None:
    values = part["detectors"].get(name)
    return None if values is None else values[results["metrics"].index(metric)]
