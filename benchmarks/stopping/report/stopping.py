"""Tables of the comparison of stop rules."""

from __future__ import annotations

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, pair, plain, plain_pair, signed, table

OURS = "prioritymonitor"
LAST = "last epoch"
TOLD = ("true ratio at most 1", "true share at least 1/2")
"""Rules that are told which labels are wrong."""
FAMILIES_FIRST = "human labels"
FEW = 4
"""Rivals of the shorter tables: so many, the best ones, and the last epoch."""


def _results() -> Json:
    return read_results("stopping/grid")


def _averaged(part: str) -> list[Json]:
    """Rows of a part of the comparison that are about averaged weights, the best first."""
    rows = [row for row in _results()[part] if row["weights"] == "averaged"]
    return sorted(rows, key=lambda row: -row["mean_gain"])


def _name(rule: str) -> str:
    return f"**{rule}**" if rule == OURS else rule


def _shown() -> list[str]:
    """The monitor, the best rivals that anybody could use, and the last epoch."""
    rivals = [row["rule"] for row in _averaged("noisy")]
    rivals = [rule for rule in rivals if rule not in (OURS, LAST, *TOLD)]
    return [OURS, *rivals[:FEW], LAST]


def stopping_counts() -> str:
    """How many runs there are."""
    found = _results()
    return (
        f"{found['runs']} runs of {found['settings']} settings in {len(found['families'])} "
        f"families, {found['noisy_runs']} of them with wrong labels; noisy validation was trained "
        f"in {found['held_out_runs']}."
    )


def stopping_rules() -> str:
    """All rules, raw and averaged, on the runs with wrong labels; the best first."""
    rows = _results()["noisy"]
    raw = {row["rule"]: row for row in rows if row["weights"] == "raw"}
    return table(
        ["rule", "runs", "gain, raw weights", "gain, averaged", "regret, averaged", "spent"],
        [
            [
                _name(row["rule"]),
                str(row["runs"]),
                pair(raw[row["rule"]]["mean_gain"], raw[row["rule"]]["worst_gain"]),
                pair(row["mean_gain"], row["worst_gain"]),
                plain_pair(row["mean_regret"], row["worst_regret"]),
                f"{row['share_spent']:.0%}",
            ]
            for row in _averaged("noisy")
        ],
    )


def stopping_families() -> str:
    """By family: regret and gain of the monitor, of the best epoch and of the best rivals."""
    gain, regret = (
        _results()["group_columns"].index(f"mean_{what}") for what in ("gain", "regret")
    )
    shown = _shown()
    return table(
        ["family", "runs", "best epoch's gain", *map(_name, shown)],
        [
            [
                row["family"],
                str(row["runs"]),
                signed(row["ceiling"]),
                *(_of_family(row, rule, gain, regret) for rule in shown),
            ]
            for row in sorted(
                _results()["families"], key=lambda row: row["family"] != FAMILIES_FIRST
            )
        ],
    )


def _of_family(row: Json, rule: str, gain: int, regret: int) -> str:
    values = row["rules"].get(rule)
    return "–" if values is None else f"{signed(values[gain])} ({plain(values[regret])})"


def stopping_against() -> str:
    """The monitor minus each rival, both with averaged weights."""
    rows = sorted(_results()["against"], key=lambda row: row["mean_difference"])
    return table(
        ["rival", "runs", "gain minus its", "better in", "as good in", "ahead by two errors"],
        [
            [
                row["rule"],
                str(row["runs"]),
                f"{signed(row['mean_difference'])} ± {plain(row['standard_error'])}",
                f"{row['better']:.0%}",
                f"{row['as_good']:.0%}",
                "yes" if row["ahead"] else "**no**",
            ]
            for row in rows
        ],
    )


def stopping_clean() -> str:
    """All rules on the runs without noise."""
    return table(
        ["rule", "regret", "stopped", "what a stop cost, mean / worst", "spent"],
        [
            [
                _name(row["rule"]),
                plain_pair(row["mean_regret"], row["worst_regret"]),
                f"{row['stops']} of {row['runs']}",
                plain_pair(row["mean_cost"], row["worst_cost"]),
                f"{row['share_spent']:.0%}",
            ]
            for row in sorted(_averaged("clean"), key=lambda row: row["mean_regret"])
            if row["rule"] not in TOLD
        ],
    )


def stopping_clean_stops() -> str:
    """The monitor's stops of runs without noise."""
    return table(
        ["run", "seed", "stopped at", "handed back", "best epoch", "cost", "regret"],
        [
            [
                f"{row['family']}: {row['run']}",
                str(row["seed"]),
                f"{row['stopped']} of {row['epochs']}",
                f"{row['handed_back']:g}",
                f"{row['best_averaged']:g}",
                signed(row["cost"]),
                plain(row["regret"]),
            ]
            for row in sorted(_results()["clean_stops"], key=lambda row: -row["cost"])
        ],
    )


def stopping_bars() -> str:
    """What was asked for, and what came out."""
    found = _results()
    ahead = sum(row["ahead"] for row in found["against"])
    rivals = len(found["against"])
    rows = [
        [
            bar["what"],
            str(bar["runs"]),
            f"{'≥' if bar['at_least'] else '≤'} {plain(bar['asked'])}",
            plain(bar["measured"]),
            "met" if bar["met"] else "**not met**",
        ]
        for bar in found["bars"]
    ]
    rows.append(
        [
            "rivals that it is ahead of by two standard errors",
            str(found["noisy_runs"]),
            "all",
            f"{ahead} of {rivals}",
            "met" if ahead == rivals else "**not met**",
        ]
    )
    return table(["what", "runs", "asked", "measured", ""], rows)


def _runs(part: str, rows: list[Json] | None = None) -> str:
    """Runs one by one."""
    found = _results()[part] if rows is None else rows
    rivals = list(found[0]["rivals"]) if found else []
    return table(
        ["run", "seed", "stopped at", "handed back", "best", "gain", "regret"]
        + [f"regret of {rule}" for rule in rivals],
        [
            [
                row["run"],
                str(row["seed"]),
                f"{row['stopped'] or 'never'} of {row['epochs']}",
                f"{row['handed_back']:g}",
                f"{row['best_averaged']:g}",
                signed(row["gain"]),
                f"**{plain(row['regret'])}**",
                *(plain(row["rivals"][rule]) for rule in rivals),
            ]
            for row in found
        ],
    )


def stopping_worst() -> str:
    """The runs with the largest regret."""
    rows = _results()["worst"]
    return _runs("worst", [row | {"run": f"{row['family']}: {row['run']}"} for row in rows])


def stopping_human() -> str:
    """Labels by people, run by run."""
    return _runs("human")


def stopping_tuning() -> str:
    """Fine-tuning of pretrained weights, run by run."""
    return _runs("fine_tuning")


def stopping_slow() -> str:
    """How much of the rise there had been by the stop."""
    return table(
        ["run", "seed", "stopped at", "of the rise by then", "regret", "last epoch's regret"],
        [
            [
                row["run"],
                str(row["seed"]),
                f"{row['stopped'] or 'never'} of {row['epochs']}",
                f"{row['risen']:.0%}",
                plain(row["regret"]),
                plain(row["last_regret"]),
            ]
            for row in _results()["slow"]
        ],
    )


def stopping_pattern() -> str:
    """Noise that is a pattern, beside noisy validation."""
    return table(
        ["rule", "runs", "gain", "regret"],
        [
            [
                _name(row["rule"]),
                str(row["runs"]),
                pair(row["mean_gain"], row["worst_gain"]),
                plain_pair(row["mean_regret"], row["worst_regret"]),
            ]
            for row in sorted(_results()["pattern"], key=lambda row: -row["mean_gain"])
        ],
    )


def readme_rules() -> str:
    """The short table of the front page, labels by people first; and how sure the lead is."""
    found, shown = _results(), _shown()
    gain, worst = (found["group_columns"].index(f"{what}_gain") for what in ("mean", "worst"))
    people: Json = next(iter(found["people"]), {"runs": 0, "rules": {}})
    noisy = {row["rule"]: row for row in _averaged("noisy")}
    clean = {row["rule"]: row for row in _averaged("clean")}
    columns = [
        f"CIFAR-10 labelled by people, {people['runs']} runs",
        f"all families, {noisy[OURS]['runs']} runs with wrong labels",
        f"{clean[OURS]['runs']} runs without",
    ]
    rows = [
        [
            _name(rule),
            pair(values[gain], values[worst]) if (values := people["rules"].get(rule)) else "–",
            pair(noisy[rule]["mean_gain"], noisy[rule]["worst_gain"]),
            pair(clean[rule]["mean_gain"], clean[rule]["worst_gain"]) if rule in clean else "–",
        ]
        for rule in shown
    ]
    ahead = sum(row["ahead"] for row in found["against"])
    return (
        f"{table(['rule, averaged weights', *columns], rows)}\n\n"
        f"The monitor is ahead of {ahead} of {len(found['against'])} rivals by two standard "
        "errors. In the mean of the families it stays "
        f"{plain(noisy[OURS]['mean_regret'])} points behind the best epoch of its runs, at worst "
        f"{plain(noisy[OURS]['worst_regret'])}."
    )
