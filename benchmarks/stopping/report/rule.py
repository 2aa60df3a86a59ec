"""Tables of the rule's parts, of its constants, and of what held-out labels would add."""

from __future__ import annotations

from statistics import fmean

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, plain, plain_pair, signed, table


def ablation() -> str:
    """The rule with one part changed."""
    found = read_results("stopping/ablation")
    noisy, clean = found["noisy_runs"], found["clean_runs"]
    return table(
        [
            *("", "gain", "regret", f"stopped, of {noisy}"),
            *("regret without noise", f"stopped, of {clean}", "costliest stop"),
        ],
        [
            [
                f"**{row['variant']}**" if row["variant"] == "the rule" else row["variant"],
                signed(row["noisy_mean_gain"]),
                plain_pair(row["noisy_mean_regret"], row["noisy_worst_regret"]),
                str(row["noisy_stopped"]),
                plain_pair(row["clean_mean_regret"], row["clean_worst_regret"]),
                str(row["clean_stopped"]),
                plain(row["clean_worst_cost"]) if row["clean_stopped"] else "–",
            ]
            for row in found["variants"]
        ],
    )


def leave_one_out() -> str:
    """Each family with constants from the others."""
    rows = read_results("stopping/leave_one_out")["families"]
    return table(
        [
            *("family left out", "tolerance", "at stake", "alike", "regret", "as delivered"),
            *("without noise", "as delivered", "costliest stop without noise"),
        ],
        [*map(_left_out, rows), _mean_left_out(rows)],
    )


def _left_out(row: Json) -> list[str]:
    return [
        row["family"],
        *(f"{100 * row[name]:g} %" for name in ("tolerance", "at_stake", "alike")),
        plain_pair(row["noisy_regret"], row["noisy_worst"]),
        plain(row["default_noisy_regret"]),
        plain(row["clean_regret"]),
        plain(row["default_clean_regret"]),
        plain(row["clean_worst_cost"]),
    ]


def _mean_left_out(rows: list[Json]) -> list[str]:
    def mean(name: str) -> str:
        values = [row[name] for row in rows if row[name] is not None]
        return plain(fmean(values)) if values else "–"

    worst = max(row["noisy_worst"] for row in rows if row["noisy_worst"] is not None)
    return [
        *("**mean of the families**", "", "", ""),
        f"**{mean('noisy_regret')} / {plain(worst)}**",
        mean("default_noisy_regret"),
        f"**{mean('clean_regret')}**",
        mean("default_clean_regret"),
        plain(max(row["clean_worst_cost"] for row in rows)),
    ]


def validation_witness() -> str:
    """Held-out labels beside the vote."""
    found = read_results("stopping/validation_witness")
    return table(
        [
            f"{found['noisy_runs']} runs with wrong labels, {found['clean_runs']} without",
            *("regret", "better than the vote by", "regret without noise"),
        ],
        [
            [
                row["rule"],
                plain_pair(row["noisy_regret"], row["noisy_worst"]),
                f"{signed(row['better_by'])} ± {plain(row['standard_error'])}",
                plain_pair(row["clean_regret"], row["clean_worst"]),
            ]
            for row in found["rules"]
        ],
    )
