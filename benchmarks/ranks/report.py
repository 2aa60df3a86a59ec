"""Tables of the documentation: many ranks."""

from __future__ import annotations

from benchmarks.environment import RESULTS, read_results
from benchmarks.stopping.report.forms import Json, table


def faults() -> str:
    columns = ("one rank", "hangs", "other trainings", "longer, at most")
    kinds = read_results("ranks/faults")["kinds"]
    return table(columns, [_kind(name, counts) for name, counts in kinds.items()])


def _kind(name: str, counts: Json) -> list[str]:
    numbers = [f"{counts[one]} of {counts['launches']}" for one in ("hung", "changed")]
    return [name, *numbers, f"{max(counts['longer'], 0):.0f} s"]


def epochs() -> str:
    columns = ("samples", "ranks", "each sends", "takes")
    return table(
        columns,
        [
            [f"{one['samples']:,}", f"{one['ranks']:,}", *_cost(one)]
            for one in read_results("ranks/scale")["epochs"]
        ],
    )


def reports() -> str:
    columns = ("classes × features", "ranks", "measured steps at once", "each sends", "takes")
    return table(columns, map(_report, read_results("ranks/scale")["reports"]))


def _report(one: Json) -> list[str]:
    head = f"{one['classes']:,} × {one['features']:,}"
    return [head, f"{one['ranks']:,}", str(one["steps"]), *_cost(one)]


def measured() -> str:
    columns = ("ranks", "a meeting", "a sum of one number", "of 32 MiB", "files a rank opens")
    return table(
        columns,
        [
            [
                str(one["ranks"]),
                _seconds(one["meeting"]),
                _seconds(one["sum"]),
                _seconds(one["large sum"]),
                f"{one['files opened']:.0f}",
            ]
            for one in read_results("ranks/scale")["measured"]
        ],
    )


def memory() -> str:
    columns = ("samples", "kept", "of it on the device", "more on the host while ranks exchange")
    names = ("kept MiB", "on the device MiB", "more on the host while ranks exchange MiB")
    return table(
        columns,
        [
            [f"{one['samples']:,}", *(f"{one[name]:.0f} MiB" for name in names)]
            for one in read_results("ranks/scale")["tables"]
        ],
    )


def overhead() -> str:
    if not (RESULTS / "ranks/overhead.json").is_file():
        return "Not measured yet: it takes a quiet machine."
    results = read_results("ranks/overhead")
    columns = (
        *("loop", "single process", "rank 0, rank 1", f"times, at most {results['most']}"),
        "a rank sends in an epoch",
    )
    return table(columns, [_loop(one, results["most"]) for one in results["cases"]])


def _loop(one: Json, most: float) -> list[str]:
    verdict = "met" if one["times"] <= most else "**not met**"
    return [
        one["case"],
        _percent(one["added, single"]),
        ", ".join(map(_percent, one["added, ranks"])),
        f"{one['times']:.2f} {verdict}",
        f"{one['bytes'] / 2**20:.1f} MiB",
    ]


def _percent(added: float) -> str:
    return f"{100 * added:+.1f} %".replace("-", "−")


def _cost(one: Json) -> list[str]:
    return [f"{one['bytes'] / 2**20:.1f} MiB", _seconds(one["seconds"])]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
