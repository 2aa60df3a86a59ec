"""Tables of the documentation: trainers and public scripts."""

from __future__ import annotations

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, share, table


def same_training() -> str:
    columns = ("trainer", "lines", "priority, largest difference", "stop", "suspects")
    return table(columns, map(_trainer, read_results("trainers/same_training")["runs"]))


def _trainer(run: Json) -> list[str]:
    accumulates = f", {run['accumulate']} micro-batches a step" if run["accumulate"] > 1 else ""
    difference = run["largest_difference"]
    return [
        run["trainer"] + accumulates,
        _code(run["lines"]),
        "–" if difference is None else f"{difference:.0e}" if difference else "0",
        _epoch(run["stop_epoch"]),
        f"the same {run['suspects']}" if run["same_suspects"] else "**others**",
    ]


def scripts() -> str:
    columns = (
        "script",
        "lines",
        "training",
        "identity",
        "AUROC",
        "plain loop",
        "advice",
        "by `run`",
    )
    return table(columns, map(_script, read_results("trainers/scripts")["runs"]))


def _script(run: Json) -> list[str]:
    lines, plain = (run["variants"][name] for name in ("lines", "plain"))
    unchanged = run["training_unchanged"]
    is_kept = "kept" if lines.get("identity") else "**lost**"
    return [
        run["script"],
        _code(run["lines"]),
        f"bit for bit, {unchanged['steps']} steps" if unchanged["same"] else "**changed**",
        is_kept,
        share(lines.get("auroc")),
        share(plain.get("auroc")),
        _epoch(lines.get("stop_epoch")),
        "the same" if all(run["run_as_with_lines"].values()) else "**not the same**",
    ]


def run_ahead() -> str:
    columns = ("network", "loop", "plain", "with the monitor", "added", "ratio")
    return table(columns, map(_loop, read_results("trainers/run_ahead")["cases"]))


def _loop(case: Json) -> list[str]:
    return [
        case["case"],
        case["loop"],
        f"{case['plain_ms']:.2f} ms",
        f"{case['monitored_ms']:.2f} ms",
        f"{case['added_us'] / 1000:.2f} ms",
        f"{case['ratio']:.3f}",
    ]


def _epoch(number: int | None) -> str:
    return "no stop" if number is None else f"stop after epoch {number}"


def _code(lines: list[str]) -> str:
    return "<br>".join(f"`{line.rstrip(',')}`" for line in lines)
