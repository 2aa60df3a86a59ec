"""What is kept of each run once its recordings are gone: enough to judge any rule on it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import RESULTS
from benchmarks.jobs import completed
from benchmarks.stopping.runs.cache import path_of
from benchmarks.stopping.runs.record import Recording
from benchmarks.stopping.runs.replay import replay
from benchmarks.stopping.runs.rivals import signals_of
from benchmarks.stopping.runs.settings import Setting
from prioritymonitor.records import Record
from prioritymonitor.stopping.rule import measure_only
from prioritymonitor.tags import RECORD_KEYS

KEPT = RESULTS / "stopping" / "runs"
"""A file for each run."""

HISTORY = (
    *("agreement", "contradicted", "prediction_changes", "priority", "noise_rate"),
    *("samples_seen", "initial_loss"),
)
"""What the monitor's records say, as far as a rule looks at it."""

CURVES = ("raw", "averaged")
VALIDATED = (*CURVES, *(f"{one}_validation{kind}" for one in CURVES for kind in ("", "_loss")))
_INNERMOST = re.compile(r"[\[{][^\[\]{}]*[\]}]")

Kept = dict[str, Any]
"""`setting`, `samples`, `curves` (accuracies on clean test data), the rivals' `signals`, the
monitor's `history`, each with a list of numbers by name; and under `held_out`, where that part was
recorded, its number of `samples` held out, its `curves` and the monitor's `history` in it."""


def kept_of(setting: Setting, full: Recording, held_out: Recording | None) -> Kept:
    """What is kept of the recordings of a setting."""
    kept = {
        "setting": asdict(setting),
        "samples": len(full["given"]),
        "curves": {name: _rounded(full[name]) for name in CURVES},
        "signals": {name: _rounded(v, 4) for name, v in signals_of(setting, full).items()},
        "history": _history(full, HISTORY),
        "held_out": None,
    }
    if held_out is not None:
        kept["held_out"] = {
            "samples": len(full["given"]) - len(held_out["given"]),
            "curves": {name: _rounded(held_out[name]) for name in VALIDATED},
            "history": _history(held_out, (*HISTORY, "validation")),
        }
    return kept


def _history(recording: Recording, keys: Iterable[str]) -> dict[str, list[float | None]]:
    """Of a run to the end, in which the monitor measures only."""
    records = replay(recording, measure_only).history
    return {key: _rounded([record[key] for record in records]) for key in keys}


def _rounded(values: Sequence[float | None], digits: int = 6) -> list[float | None]:
    return [None if value is None else float(f"{value:.{digits}g}") for value in values]


def records_of(history: dict[str, list[float | None]]) -> list[Record]:
    """The records of a run, the first epoch first, as a rule takes them; None: not kept."""
    nothing: Record = dict.fromkeys(RECORD_KEYS)
    epochs = zip(*history.values(), strict=True)
    return [nothing | dict(zip(history, values, strict=True)) for values in epochs]


# On disk


def keep_all(wanted: Iterable[Setting], cache: Path, jobs: int, anew: bool) -> None:
    """Write what is kept of each run whose recordings are newer, or of all.

    Args:
        wanted: Settings; those without a recording are passed over.
        cache: Folder of the recordings.
        jobs: Runs at a time.
        anew: Take none as up to date: the monitor has changed since.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    recorded = [one for one in wanted if path_of(cache, one, "full").is_file()]
    stale = [one for one in recorded if anew or not _is_up_to_date(one, cache)]
    for done, (setting, _) in enumerate(completed(jobs, _keep, stale, cache), 1):
        print(f"{done} of {len(stale)}: {setting.name}", flush=True)


def _is_up_to_date(setting: Setting, cache: Path) -> bool:
    path = _kept_path(setting)
    parts = [path_of(cache, setting, part) for part in ("full", "held-out")]
    written = [part.stat().st_mtime for part in parts if part.is_file()]
    return path.is_file() and path.stat().st_mtime >= max(written)


def _keep(setting: Setting, cache: Path) -> None:
    full, held_out = (_loaded(path_of(cache, setting, part)) for part in ("full", "held-out"))
    assert full is not None
    _kept_path(setting).write_text(text_of(kept_of(setting, full, held_out)))


def _loaded(path: Path) -> Recording | None:
    return torch.load(path, weights_only=True) if path.is_file() else None


def text_of(kept: Kept) -> str:
    """JSON with a line for each list of numbers."""
    text = json.dumps(kept, indent=1, allow_nan=False)
    return _INNERMOST.sub(lambda found: " ".join(found.group().split()), text) + "\n"


def read_kept(wanted: Iterable[Setting]) -> list[Kept]:
    """What is kept of these runs, as far as there is anything."""
    paths = [_kept_path(setting) for setting in wanted]
    return [json.loads(path.read_text()) for path in paths if path.is_file()]


def _kept_path(setting: Setting) -> Path:
    return KEPT / f"{setting.name}.json"
