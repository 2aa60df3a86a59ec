"""Tables of the detectors of wrong labels."""

from __future__ import annotations

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, share, table

FREE = ("monitor", "AUM", "small loss, mean", "small loss, last", "EL2N")
"""Detectors that need no training of their own to rank labels."""


def suspects_bars() -> str:
    """What was asked for."""
    return table(
        ["at the stop", "runs", "asked", "mean", "worst", ""],
        [
            [
                bar["what"],
                str(bar["runs"]),
                f"{'≥' if bar['at_least'] else '≤'} {bar['asked']}",
                share(bar["mean"]),
                share(bar["worst"]),
                "met" if bar["met"] else "**not met**",
            ]
            for bar in read_results("stopping/suspects")["bars"]
        ],
    )


def readme_suspects() -> str:
    """A sentence for the front page."""
    results = read_results("stopping/suspects")
    kinds = results["stop"]["kinds"]
    found = {
        kind: (share(_value(results, part, "monitor", "auroc")), part["runs"])
        for kind, part in kinds.items()
    }
    several = ", ".join(f"{kind} {auroc} ({runs})" for kind, (auroc, runs) in found.items())
    return f"Wrong labels are ranked with an AUROC, by kind of noise (runs), of: {several}."


def suspects_ranking() -> str:
    """AUROC by family, then by kind of noise."""
    results = read_results("stopping/suspects")
    return "\n\n".join(
        table(
            [what, "runs", *FREE],
            [
                [
                    group,
                    str(part["runs"]),
                    *(share(_value(results, part, name, "auroc")) for name in FREE),
                ]
                for group, part in results["stop"][by].items()
            ],
        )
        for what, by in (("family", "families"), ("wrong labels", "kinds"))
    )


def suspects_naming() -> str:
    """What the monitor names, by family and by kind of noise."""
    results = read_results("stopping/suspects")
    metrics = ("f1", "best_f1", "precision", "recall", "named", "missed")
    columns = ["F1", "best F1", "precision", "recall", "named", "missed at the true rate"]
    return "\n\n".join(
        table(
            [what, "runs", *columns, "F1 of the mean loss"],
            [
                [
                    group,
                    str(part["runs"]),
                    *(share(_value(results, part, "monitor", metric)) for metric in metrics),
                    share(_value(results, part, "small loss, mean", "f1")),
                ]
                for group, part in results["stop"][by].items()
            ],
        )
        for what, by in (("family", "families"), ("wrong labels", "kinds"))
    )


def suspects_retrained() -> str:
    """A table for each group of runs in which all detectors had their trainings."""
    results = read_results("stopping/suspects")
    stop, end = (results[when]["retrained"] for when in ("stop", "end"))
    parts = [
        f"### {group}, {part['runs']} run{'s' if part['runs'] > 1 else ''}\n\n"
        f"{_retrained(results, part, end[group])}"
        for group, part in stop.items()
        if group != "none"
    ]
    return "\n\n".join(parts) or "None so far."


def _retrained(results: Json, stop: Json, end: Json) -> str:
    metrics = ("auroc", "average_precision", "f1", "best_f1", "missed")
    return table(
        [
            *("detector", "AUROC", "average precision", "F1", "best F1"),
            *("missed at the true rate", "AUROC at the end", "F1 at the end"),
        ],
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
    parts = {"all runs": results["stop"]["clean"].get("none")}
    parts["runs with all detectors"] = results["stop"]["retrained"].get("none")
    rows = [
        [f"{name}, {what} ({part['runs']})", f"{value:.1%}"]
        for what, part in parts.items()
        if part is not None
        for name in part["detectors"]
        if (value := _value(results, part, name, "named")) is not None
    ]
    return table(["no wrong labels", "share of labels named"], rows)


def _value(results: Json, part: Json, name: str, metric: str) -> float | None:
    values = part["detectors"].get(name)
    return None if values is None else values[results["metrics"].index(metric)]
