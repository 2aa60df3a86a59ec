"""Files in the run folder beside the TensorBoard events: the suspects and the epochs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentValueError
from ..records import Suspect

SUSPECTS_FILE = "suspects.csv"
HISTORY_FILE = "history.json"


def write_run(
    folder: Path, suspects: Iterable[Suspect], history: Sequence[Mapping[str, Any]]
) -> None:
    """Write both files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / (SUSPECTS_FILE + ".unfinished")
    with unfinished.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(Suspect._fields)
        table.writerows(suspect._replace(score=round(suspect.score, 6)) for suspect in suspects)
    unfinished.replace(folder / SUSPECTS_FILE)
    unfinished = folder / (HISTORY_FILE + ".unfinished")
    records = [{name: _plain(value) for name, value in record.items()} for record in history]
    unfinished.write_text(json.dumps(records, indent=1, allow_nan=False) + "\n")
    unfinished.replace(folder / HISTORY_FILE)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_suspects(folder: Path) -> list[Suspect]:
    """The suspects of a run, likeliest first.

    Raises:
        ArgumentValueError: The folder holds no suspects.
    """
    path = folder / SUSPECTS_FILE
    if not path.is_file():
        raise ArgumentValueError(
            f"got {folder}, which holds no {SUSPECTS_FILE}; name the log_dir of a GradientMonitor "
            "that has stopped or was closed"
        )
    with path.open(newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return [Suspect(int(i), float(score), int(y), int(p)) for i, score, y, p in rows]
