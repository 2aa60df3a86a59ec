"""Tables of the comparison of stop rules."""

from __future__ import annotations

import json

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, pair, signed, table
from benchmarks.stopping.runs.cache import KEPT

OURS = "prioritymonitor"
SHOWN = (OURS, "Label Wave, k = 1", "noisy validation", "m-coherence", "last epoch")
"""The rules of the shorter tables."""


def _runs() -> list[Json]:
    """What is kept of each run, with the monitor's outcome under averaged weights."""
    runs = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))]
    for run in runs:
        outcomes = run["outcomes"][OURS]
        run["ours"] = next(one for one in outcomes if one["weights"] == "averaged")
    return runs


def _averaged(part: str) -> list[Json]:
    """Rows of a part of the comparison that are about averaged weights."""
    return [row for row in read_results("stopping/grid")[part] if row["weights"] == "averaged"]


def _name(rule: str) -> str:
    return f"**{rule}**" if rule == OURS else rule


def stopping_rules() -> str:
    """All rules, raw and averaged, on the runs with wrong labels; the best first."""
    rows = read_results("stopping/grid")["noisy"]
    raw = {row["rule"]: row for row in rows if row["weights"] == "raw"}
    return table(
        ["rule", "gain, raw weights", "gain, averaged", "regret, averaged", "epochs spent"],
        [
            [
                _name(row["rule"]),
                pair(raw[row["rule"]]["mean_gain"], raw[row["rule"]]["worst_gain"]),
                pair(row["mean_gain"], row["worst_gain"]),
                f"{row['mean_regret']:.2f} / {row['worst_regret']:.2f}",
                f"{row['share_spent']:.0%}",
            ]
            for row in sorted(_averaged("noisy"), key=lambda row: -row["mean_gain"])
        ],
    )


def stopping_against() -> str:
    """The monitor minus each rival, both with averaged weights."""
    return table(
        ["rival", "the monitor's gain minus its, points", "better in", "as good or better in"],
        [
            [
                row["rule"],
                f"{signed(row['mean_difference'])} ± {row['standard_error']:.2f}",
                f"{row['better']:.0%}",
                f"{row['better_or_equal']:.0%}",
            ]
            for row in sorted(_averaged("against"), key=lambda row: row["mean_difference"])
        ],
    )


def stopping_clean() -> str:
    """All rules on the runs without noise."""
    return table(
        ["rule", "gain, averaged weights", "regret, averaged", "stopped", "epochs spent"],
        [
            [
                _name(row["rule"]),
                pair(row["mean_gain"], row["worst_gain"]),
                f"{row['mean_regret']:.2f} / {row['worst_regret']:.2f}",
                f"{row['wrong_stops']} of {row['runs']}",
                f"{row['share_spent']:.0%}",
            ]
            for row in sorted(_averaged("without_noise"), key=lambda row: -row["mean_gain"])
        ],
    )


def stopping_groups() -> str:
    """The monitor and a few rivals by what the runs have in common."""
    groups = read_results("stopping/grid")["groups"]
    rows = [row for row in groups if row["by"] not in ("setting", "optimizer")]
    return table(
        ["runs with", "runs", *map(_name, SHOWN)],
        [
            [
                f"{row['by']} {row['value']}",
                str(row["runs"]),
                *(pair(*row["rules"][rule][:2]) for rule in SHOWN),
            ]
            for row in rows
        ],
    )


def stopping_seeds() -> str:
    """Mean gain of a few rules seed by seed, on the runs with wrong labels."""
    runs = [run for run in _runs() if run["record"]["setting"]["rate"]]
    seeds = sorted({run["record"]["setting"]["seed"] for run in runs})
    lags = {row["rule"]: row["lag"] for row in _averaged("noisy")}
    return table(
        ["mean gain, averaged weights", *(f"seed {seed}" for seed in seeds)],
        [
            [_name(rule), *(signed(_mean_gain(runs, seed, rule, lags[rule])) for seed in seeds)]
            for rule in SHOWN
        ],
    )


def _mean_gain(runs: list[Json], seed: int, rule: str, lag: int) -> float:
    gains = [
        outcome["gain"]
        for run in runs
        if run["record"]["setting"]["seed"] == seed
        for outcome in run["outcomes"][rule]
        if (outcome["weights"], outcome["lag"]) == ("averaged", lag)
    ]
    return float(sum(gains) / len(gains))


def stopping_bars() -> str:
    """What was asked for, and what came out."""
    runs = _runs()
    ours, clean = (
        next(row for row in _averaged(part) if row["rule"] == OURS)
        for part in ("noisy", "without_noise")
    )
    rivals = {row["rule"]: row for row in _averaged("against")}
    as_good = rivals["noisy validation"]["better_or_equal"]
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
        ("as good as noisy validation or better, share", as_good, 2 / 3, 1),
    ]
    rows_and_bars = table(
        ["what", "asked", "measured", ""],
        [
            [
                what,
                f"{'≥' if way > 0 else '≤'} {signed(bar)}",
                signed(value),
                "met" if way * (value - bar) >= 0 else "**not met**",
            ]
            for what, value, bar, way in rows
        ],
    )
    return (
        f"{rows_and_bars}\n\nThe best averaged epoch, chosen on the test labels, is "
        f"{signed(ceiling)} points above the best raw one in the mean of the {len(noisy)} runs "
        "with noise: more gain than that no rule can have."
    )


def stopping_worst() -> str:
    """The runs with the largest regret."""
    runs = sorted(_runs(), key=lambda run: -run["ours"]["regret"])[:8]
    return table(
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
    return table(
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
    noisy, clean = (
        {row["rule"]: row for row in _averaged(part)} for part in ("noisy", "without_noise")
    )
    count = [next(iter(rows.values()))["runs"] for rows in (noisy, clean)]
    columns = ["rule, averaged weights", f"{count[0]} runs with wrong labels", "epochs spent"]
    return table(
        [*columns, f"{count[1]} runs without"],
        [
            [
                _name(rule),
                pair(noisy[rule]["mean_gain"], noisy[rule]["worst_gain"]),
                f"{noisy[rule]['share_spent']:.0%}",
                pair(clean[rule]["mean_gain"], clean[rule]["worst_gain"]),
            ]
            for rule in sorted(SHOWN, key=lambda rule: -noisy[rule]["mean_gain"])
        ],
    )
