"""Reads the folder of a run: one that ended, was killed, or still goes on."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentValueError
from ..records import Columns, Suspect

RUN_FILE = "run.json"
EPOCHS_FILE = "epochs.jsonl"
SAMPLES_FILE = "samples.npz"
SUSPECTS_FILE = "suspects.csv"
FILES = (RUN_FILE, EPOCHS_FILE, SAMPLES_FILE, SUSPECTS_FILE)

SCHEMA = 1
"""Changes when a reader has to know of it."""

_SUSPECT = np.dtype(list(zip(Suspect._fields, ("i8", "f8", "i8", "i8"), strict=True)))

_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What json, numpy and zipfile raise for contents that are none of theirs."""

_Content = TypeVar("_Content")


@dataclass(frozen=True)
class SavedRun:
    """What a run folder holds."""

    info: dict[str, Any]
    """Contents of `run.json`: id, started, settings, versions, shapes, class_names."""
    epochs: list[dict[str, Any]]
    """Records of the completed epochs, as in `history()`."""
    samples: Columns
    """The table of the samples at the end of the last epoch; without columns before the first."""
    suspects: Columns
    """Columns by the fields of `Suspect`, the likeliest first; without rows before an epoch."""


def read_run(folder: Path) -> SavedRun:
    """Everything that a run folder holds.

    Raises:
        ArgumentValueError: It is the folder of no run, or a file in it can't be read or is damaged.
    """
    info = _info(folder)
    epochs = _read(folder / EPOCHS_FILE, _epochs) or []
    return SavedRun(info, epochs, _samples(folder), _suspects(folder))


def read_suspects(folder: Path) -> Columns:
    """The suspects of a run, as its stop or end wrote them, or as they stood at its last epoch.

    Raises:
        ArgumentValueError: It is the folder of no run, or a file in it can't be read or is damaged.
    """
    _info(folder)
    return _suspects(folder)


def run_of(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says; None where there is none that can be read."""
    try:
        return _read(folder / RUN_FILE, _run)
    except ArgumentValueError:
        return None


def _info(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ArgumentValueError(f"got {folder}, and there is no such folder; {_NAME}")
    info = _read(folder / RUN_FILE, _run)
    if info is None:
        raise ArgumentValueError(f"got {folder}, which holds no {RUN_FILE}; {_NAME}")
    if info["schema"] > SCHEMA:
        raise ArgumentValueError(
            f"got {folder}, which is of a later prioritymonitor; read it with that version"
        )
    return info


_NAME = "name the log_dir of a GradientMonitor that has made a step"


_MOST_SAID = 200
"""Characters that are told of what is wrong with a file: it may be any file's content."""


def _read(path: Path, parse: Callable[[Path], _Content]) -> _Content | None:
    """Contents of a file; None where there is none."""
    try:
        if not os.path.lexists(path):
            return None
        # A pipe would be waited for, and a link may lead out of the folder.
        if path.is_symlink() or not path.is_file():
            raise ArgumentValueError(f"got {path}, which is no ordinary file")
        return parse(path)
    except OSError as error:
        raise ArgumentValueError(
            f"got {path}, which can't be read: {_in_one_line(error)}"
        ) from error
    except ArgumentValueError:
        raise
    except _DAMAGE as error:
        raise ArgumentValueError(f"got {path}, which is damaged: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return " ".join(said.split())[:_MOST_SAID] or type(error).__name__


def _run(path: Path) -> dict[str, Any]:
    info = json.loads(path.read_bytes())
    if not isinstance(info, dict) or not isinstance(info["schema"], int):
        raise ValueError("it is of another program")
    for name, kind in (("id", str), ("started", str), ("versions", dict)):
        if not isinstance(info[name], kind):
            raise ValueError(f"its {name} is no {kind.__name__}")
    return info


def _epochs(path: Path) -> list[dict[str, Any]]:
    records = []
    lines, _, _ = path.read_bytes().rpartition(b"\n")  # a kill may leave a part of a line
    for number, line in enumerate(lines.splitlines(), 1):
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"line {number} holds no record")
        records.append(record)
    return records


def _samples(folder: Path) -> Columns:
    return _read(folder / SAMPLES_FILE, _columns) or {}


def _columns(path: Path) -> Columns:
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("its columns are packed, and may be of any size")
    with np.load(path, allow_pickle=False) as columns_of:
        columns = {name: columns_of[name] for name in columns_of.files}
    if len({column.shape for column in columns.values()}) != 1:
        raise ValueError("its columns are of several lengths, or none")
    if next(iter(columns.values())).ndim != 1:
        raise ValueError("its columns are tables")
    return columns


def _suspects(folder: Path) -> Columns:
    written = _read(folder / SUSPECTS_FILE, _rows)
    if written is None:
        written = _read(folder / SAMPLES_FILE, lambda path: _likeliest(_columns(path)))
    return written if written is not None else _likeliest({})


def _rows(path: Path) -> Columns:
    with path.open(encoding="utf-8") as file:
        if file.readline().strip() != ",".join(Suspect._fields):
            raise ValueError(f"its first line is not {','.join(Suspect._fields)}")
        lines = [line for line in file if not line.isspace()]
    rows = np.empty(0, _SUSPECT)
    if lines:
        rows = np.loadtxt(lines, _SUSPECT, comments=None, delimiter=",", ndmin=1)
    if not _are_scores(rows["score"]).all():
        raise ValueError("a score is not from 0 to 1")
    return _checked({name: rows[name] for name in Suspect._fields})


def _likeliest(samples: Columns) -> Columns:
    """The suspects as they stood when the samples were written."""
    if not samples:
        return {name: np.empty(0, _SUSPECT[name]) for name in Suspect._fields}
    missing = [name for name in Suspect._fields if name not in samples]
    if missing:
        raise ValueError(f"it has no column {missing[0]}")
    columns = {
        name: samples[name].astype(_SUSPECT[name], casting="same_kind") for name in Suspect._fields
    }
    if not (_are_scores(columns["score"]) | np.isnan(columns["score"])).all():
        raise ValueError("a score is not from 0 to 1")
    _checked(columns)
    score = columns["score"].round(6)
    order = np.argsort(-score, kind="stable")[: np.count_nonzero(score >= 0)]  # NaN: not visited
    return {name: column[order] for name, column in columns.items()} | {"score": score[order]}


def _are_scores(column: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (column >= 0) & (column <= 1)


def _checked(suspects: Columns) -> Columns:
    """The same, where no sample lies before the first and no label before −1.

    Raises:
        ValueError: One does.
    """
    for name, least in (("index", 0), ("given_label", -1), ("predicted_label", -1)):
        if (suspects[name] < least).any():
            raise ValueError(f"a number in {name} is below {least}")
    return suspects
