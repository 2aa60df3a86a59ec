"""Table of the two-line loop."""

from __future__ import annotations

from benchmarks.environment import read_results
from benchmarks.stopping.report.forms import Json, pair, table

_STOP_COLUMNS = (
    *("wrong labels", "optimizer", "stopped at epoch", "returned", "best raw", "last"),
    *("gain", "regret", "suspects, worst AUROC"),
)


def stop_runs() -> str:
    """The two-line loop, end to end."""
    runs = read_results("stopping/stop")["runs"]
    groups: dict[tuple[float, str], list[Json]] = {}
    for run in runs:
        groups.setdefault((run["setting"]["noise"], run["setting"]["optimizer"]), []).append(run)
    return table(
        _STOP_COLUMNS,
        [
            [
                f"{noise:.0%}" if noise else "none",
                optimizer,
                ", ".join(str(run["stop_epoch"] or "never") for run in several),
                *(f"{_mean(several, key):.1f}" for key in ("returned", "best_raw", "last")),
                pair(_mean(several, "gain"), min(run["gain"] for run in several)),
                f"{_mean(several, 'regret'):.2f} / {max(run['regret'] for run in several):.2f}",
                f"{min(run['auroc'] for run in several):.3f}" if noise else "–",
            ]
            for (noise, optimizer), several in groups.items()
        ],
    )


def _mean(runs: list[Json], key: str) -> float:
    return float(sum(run[key] for run in runs) / len(runs))
