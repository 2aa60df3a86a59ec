"""Writes the tables of the documentation from the results, between `<!-- begin NAME -->` marks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from environment import RESULTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- begin ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

OURS = "prioritymonitor"
SHOWN = (OURS, "Label Wave, k = 1", "noisy validation", "m-coherence", "last epoch")
"""The rules of the shorter tables."""

Json = dict[str, Any]


def main() -> None:
    for path in PAGES:
        text = path.read_text()
        filled = fill(text)
        if filled != text:
            path.write_text(filled)
            print(path.relative_to(ROOT))


def fill(text: str) -> str:
    """The page with every block written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", text)


# Sources and forms


def _read(name: str) -> Json:
    content: Json = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def _runs() -> list[Json]:
    """What is kept of each run, with the monitor's outcome under averaged weights."""
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "stopping").glob("*.json"))]
    for run in runs:
        outcomes = run["outcomes"][OURS]
        run["ours"] = next(one for one in outcomes if one["weights"] == "averaged")
    return runs


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _pair(mean: float, worst: float) -> str:
    return f"{_signed(mean)} / {_signed(worst)}"


def _name(rule: str) -> str:
    return f"**{rule}**" if rule == OURS else rule


# Stop rules


def stopping_rules() -> str:
    """All rules, raw and averaged, on the runs with wrong labels; the best first."""
    rows = _read("stopping")["noisy"]
    raw = {row["rule"]: row for row in rows if row["weights"] == "raw"}
    averaged = sorted(
        (row for row in rows if row["weights"] == "averaged"), key=lambda row: -row["mean_gain"]
    )
    return _table(
        ["rule", "gain, raw weights", "gain, averaged", "regret, averaged", "epochs spent"],
        [
            [
                _name(row["rule"]),
                _pair(raw[row["rule"]]["mean_gain"], raw[row["rule"]]["worst_gain"]),
                _pair(row["mean_gain"], row["worst_gain"]),
                f"{row['mean_regret']:.2f} / {row['worst_regret']:.2f}",
                f"{row['share_spent']:.0%}",
            ]
            for row in averaged
        ],
    )


def stopping_against() -> str:
    """The monitor minus each rival, both with averaged weights."""
    rows = [row for row in _read("stopping")["against"] if row["weights"] == "averaged"]
    return _table(
        ["rival", "the monitor's gain minus its, points", "as good or better in"],
        [
            [
                row["rule"],
                f"{_signed(row['mean_difference'])} ± {row['standard_error']:.2f}",
                f"{row['better_or_equal']:.0%}",
            ]
            for row in sorted(rows, key=lambda row: row["mean_difference"])
        ],
    )


def stopping_clean() -> str:
    """All rules on the runs without noise."""
    rows = [row for row in _read("stopping")["without_noise"] if row["weights"] == "averaged"]
    return _table(
        ["rule", "gain, averaged weights", "regret, averaged", "stopped", "epochs spent"],
        [
            [
                _name(row["rule"]),
                _pair(row["mean_gain"], row["worst_gain"]),
                f"{row['mean_regret']:.2f} / {row['worst_regret']:.2f}",
                f"{row['wrong_stops']} of {row['runs']}",
                f"{row['share_spent']:.0%}",
            ]
            for row in sorted(rows, key=lambda row: -row["mean_gain"])
        ],
    )


def stopping_groups() -> str:
    """The monitor and a few rivals by what the runs have in common."""
    rows = [row for row in _read("stopping")["groups"] if row["by"] not in ("setting", "optimizer")]
    return _table(
        ["runs with", "runs", *map(_name, SHOWN)],
        [
            [
                f"{row['by']} {row['value']}",
                str(row["runs"]),
                *(_pair(*row["rules"][rule][:2]) for rule in SHOWN),
            ]
            for row in rows
        ],
    )


def stopping_bars() -> str:
    """What was asked for, and what came out."""
    results, runs = _read("stopping"), _runs()
    ours = next(r for r in results["noisy"] if (r["rule"], r["weights"]) == (OURS, "averaged"))
    clean = next(
        r for r in results["without_noise"] if (r["rule"], r["weights"]) == (OURS, "averaged")
    )
    rivals = {row["rule"]: row for row in results["against"] if row["weights"] == "averaged"}
    nearest = min(rivals, key=lambda rule: rivals[rule]["mean_difference"])
    noisy = [run for run in runs if run["record"]["setting"]["rate"]]
    ceiling = sum(run["ours"]["gain"] + run["ours"]["regret"] for run in noisy) / len(noisy)
    rows = [
        ("gain with noise, mean", ours["mean_gain"], 1.0, 1),
        ("gain with noise, worst", ours["worst_gain"], -1.0, 1),
        ("regret with noise, mean", ours["mean_regret"], 0.3, -1),
        ("regret with noise, worst", ours["worst_regret"], 1.5, -1),
        ("regret without noise, mean", clean["mean_regret"], 0.3, -1),
        ("regret without noise, worst", clean["worst_regret"], 1.0, -1),
        (f"gain minus the best rival's ({nearest})", rivals[nearest]["mean_difference"], 0.0, 1),
        (
            "as good as noisy validation or better, share",
            rivals["noisy validation"]["better_or_equal"],
            2 / 3,
            1,
        ),
    ]
    table = _table(
        ["what", "asked", "measured", ""],
        [
            [
                what,
                f"{'≥' if way > 0 else '≤'} {_signed(bar)}",
                _signed(value),
                "met" if way * (value - bar) >= 0 else "**not met**",
            ]
            for what, value, bar, way in rows
        ],
    )
    return (
        f"{table}\n\nThe best averaged epoch, chosen on the test labels, is {_signed(ceiling)} "
        f"points above the best raw one in the mean of the {len(noisy)} runs with noise: more gain "
        "than that no rule can have."
    )


def stopping_worst() -> str:
    """The runs with the largest regret."""
    runs = sorted(_runs(), key=lambda run: -run["ours"]["regret"])[:8]
    return _table(
        ["run", "seed", "regret", "epoch handed back", "best averaged epoch"],
        [[*_described(run), *_epochs(run)] for run in runs],
    )


def _described(run: Json) -> list[str]:
    setting = run["record"]["setting"]
    noise = f"{setting['noise']} {setting['rate']:.0%}" if setting["rate"] else "no noise"
    parts = [setting["data"], noise, setting["model"], setting["optimizer"]]
    parts += [setting[key] for key in ("schedule", "extra") if setting[key] not in _USUAL]
    return [", ".join(parts), str(setting["seed"]), f"{run['ours']['regret']:.2f}"]


_USUAL = ("constant", "plain")


def _epochs(run: Json) -> list[str]:
    averaged = run["record"]["curves"]["averaged"]
    looks = len(averaged) / run["record"]["setting"]["epochs"]
    best = averaged.index(max(averaged)) + 1
    return [f"{view / looks:g}" for view in (run["ours"]["view"], best)]


def stopping_short() -> str:
    """Fine-tuning of five epochs."""
    runs = [run for run in _runs() if run["record"]["setting"]["extra"] == "pretrained"]
    return _table(
        [
            "run",
            "seed",
            "regret",
            "epoch handed back",
            "best averaged epoch",
            "last epoch's regret",
        ],
        [[*_described(run), *_epochs(run), _last(run)] for run in runs],
    )


def _last(run: Json) -> str:
    averaged = run["record"]["curves"]["averaged"]
    return f"{max(averaged) - averaged[-1]:.2f}"


def readme_rules() -> str:
    """The short table of the front page."""
    results = _read("stopping")
    noisy, clean = (
        {row["rule"]: row for row in results[name] if row["weights"] == "averaged"}
        for name in ("noisy", "without_noise")
    )
    count = [next(iter(rows.values()))["runs"] for rows in (noisy, clean)]
    columns = ["rule, averaged weights", f"{count[0]} runs with wrong labels", "epochs spent"]
    return _table(
        [*columns, f"{count[1]} runs without"],
        [
            [
                _name(rule),
                _pair(noisy[rule]["mean_gain"], noisy[rule]["worst_gain"]),
                f"{noisy[rule]['share_spent']:.0%}",
                _pair(clean[rule]["mean_gain"], clean[rule]["worst_gain"]),
            ]
            for rule in sorted(SHOWN, key=lambda rule: -noisy[rule]["mean_gain"])
        ],
    )


def ablation() -> str:
    """The rule with one part changed."""
    return _table(
        ["", "gain", "regret", "epochs spent", "regret without noise", "stopped without noise"],
        [
            [
                f"**{row['variant']}**" if row["variant"] == "the rule" else row["variant"],
                _pair(row["noisy_mean_gain"], row["noisy_worst_gain"]),
                f"{row['noisy_mean_regret']:.2f} / {row['noisy_worst_regret']:.2f}",
                f"{row['noisy_spent']:.0f}",
                f"{row['clean_mean_regret']:.2f} / {row['clean_worst_regret']:.2f}",
                f"{row['clean_stopped']:.0%}",
            ]
            for row in _read("ablation")["variants"]
        ],
    )


def stop_runs() -> str:
    """The two-line loop, end to end."""
    runs = _read("stop")["runs"]
    groups: dict[tuple[float, str], list[Json]] = {}
    for run in runs:
        groups.setdefault((run["setting"]["noise"], run["setting"]["optimizer"]), []).append(run)
    return _table(
        ["wrong labels", "optimizer", "stopped at epoch", "returned", "best raw", "last", "gain"]
        + ["regret", "suspects, worst AUROC"],
        [
            [
                f"{noise:.0%}" if noise else "none",
                optimizer,
                ", ".join(str(run["stop_epoch"] or "never") for run in several),
                *(f"{_mean(several, key):.1f}" for key in ("returned", "best_raw", "last")),
                _pair(_mean(several, "gain"), min(run["gain"] for run in several)),
                f"{_mean(several, 'regret'):.2f} / {max(run['regret'] for run in several):.2f}",
                f"{min(run['auroc'] for run in several):.3f}" if noise else "–",
            ]
            for (noise, optimizer), several in groups.items()
        ],
    )


def _mean(runs: list[Json], key: str) -> float:
    return float(sum(run[key] for run in runs) / len(runs))


BLOCKS: dict[str, Callable[[], str]] = {
    "stopping-rules": stopping_rules,
    "stopping-against": stopping_against,
    "stopping-clean": stopping_clean,
    "stopping-groups": stopping_groups,
    "stopping-bars": stopping_bars,
    "stopping-worst": stopping_worst,
    "stopping-short": stopping_short,
    "readme-rules": readme_rules,
    "ablation": ablation,
    "stop-runs": stop_runs,
}

if __name__ == "__main__":
    main()
