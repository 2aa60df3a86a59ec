"""The run folder, written while the run goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..records import Columns, Decision, Suspect
from .saved_run import EPOCHS_FILE, FILES, RUN_FILE, SAMPLES_FILE, SCHEMA, SUSPECTS_FILE, run_of
from .sink import RunInfo, Sink
from .whole_file import (
    Write,
    append_line,
    check_replaceable,
    create_whole,
    remove_unfinished,
    write_whole,
)

_PACKAGES = ("prioritymonitor", "torch", "numpy", "tensorboard")

_PAUSE = 1.0
"""Seconds from one writing of the samples to the next, where epochs are shorter."""

_ROWS = 65_536
"""Rows of the suspects that are made text at once."""


class RunFolder(Sink):
    """Settings at the first step; epochs, samples and suspects as they come to be known.

    Args:
        log_dir: The folder, or what a numbered one beside it begins with where another run is in
            it.
        say: Says to the user that it is numbered.
    """

    name = "log_dir"

    def __init__(self, log_dir: Path, say: Callable[[str], None]) -> None:
        self._log_dir = log_dir
        self._say = say
        self.path: Path | None = None
        """The folder that the run has; None before its first step."""
        self.has_events = False
        """Whether events of the run, from before an interruption, may be in it."""
        self._run: RunInfo | None = None
        self._epochs: list[tuple[int, bytes]] = []
        """Step and line of each record."""
        self._waiting: dict[str, Write] = {}
        """Files to be written, by name: also those that could not be written before."""
        self._samples_at = -math.inf
        """When the samples were written last, by the clock that only goes forward, in seconds."""

    def begin(self, run: RunInfo) -> None:
        """Choose the folder and say in it what the run is."""
        self._run = run
        self._epochs = [(record["step"], _line(record)) for record in run.epochs]
        self._go_on_with(run.samples)

    def epoch(self, record: Mapping[str, Any], samples: Callable[[], Columns]) -> None:
        """Add the record of an epoch, and write the samples as they are now."""
        line = _line(record)
        self._epochs.append((record["step"], line))
        self._waiting[SAMPLES_FILE] = lambda file: _write_samples(file, samples())
        if self.path is not None and EPOCHS_FILE not in self._waiting:
            self._waiting[EPOCHS_FILE] = self._write_epochs  # should the line not get there
            append_line(self.path / EPOCHS_FILE, line)
            del self._waiting[EPOCHS_FILE]
        # To replace a file costs milliseconds, which is as much as the epoch of a small network.
        if EPOCHS_FILE in self._waiting or time.monotonic() - self._samples_at > _PAUSE:
            self._write()
            self._samples_at = time.monotonic()

    def stop(self, decision: Decision, step: int, suspects: Callable[[], Columns]) -> None:
        """Write the suspects."""
        self._waiting[SUSPECTS_FILE] = lambda file: _write_suspects(file, suspects())
        self._write()

    def resume_at(self, step: int, samples: Callable[[], Columns]) -> None:
        """Drop what is of later epochs."""
        self._epochs = [(made, line) for made, line in self._epochs if made <= step]
        if self.path is not None:
            self._go_on_with(samples)

    def _go_on_with(self, samples: Callable[[], Columns] | None) -> None:
        """Have in the folder what is known now: what is there may be of a later state."""
        self._waiting = {EPOCHS_FILE: self._write_epochs}
        if samples is not None and self._epochs:
            self._waiting[SAMPLES_FILE] = lambda file: _write_samples(file, samples())
        self._write()
        if self.path is not None:
            for name in FILES:
                check_replaceable(self.path / name)  # better now than at the stop
            for name in (SAMPLES_FILE, SUSPECTS_FILE)[bool(self._epochs) :]:
                (self.path / name).unlink(missing_ok=True)

    def flush(self) -> None:
        """Try again what could not be written."""
        self._write()

    def close(self, suspects: Callable[[], Columns]) -> None:
        """Write the suspects, and what could not be written before."""
        if self._epochs:
            self._waiting[SUSPECTS_FILE] = lambda file: _write_suspects(file, suspects())
        self._write()

    def _write(self) -> None:
        if self._run is None:
            return
        if self.path is None:
            self.path = self._chosen(self._run)
        for name, write in tuple(self._waiting.items()):
            write_whole(self.path / name, write)
            del self._waiting[name]

    def _chosen(self, run: RunInfo) -> Path:
        """The first of `log_dir`, `log_dir-2`, … that no other run has."""
        folder, number = self._log_dir, 1
        while (was_there := _take(folder, run)) is None:
            number += 1
            folder = Path(f"{self._log_dir}-{number}")
        self.has_events = was_there and any(folder.glob("events.out.tfevents.*"))
        if folder != self._log_dir:
            self._say(f"log_dir {self._log_dir} holds another run; this one writes to {folder}")
        return folder

    def _write_epochs(self, file: BinaryIO) -> None:
        file.writelines(line for _, line in self._epochs)


def _take(folder: Path, run: RunInfo) -> bool | None:
    """Take a folder for a run.

    Returns:
        Whether it was that of the run before; None where another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, plain = folder / RUN_FILE, _plain_run(run)
    before = run_of(folder)
    if before is not None and before["id"] == run.id:
        for name in FILES:
            remove_unfinished(folder / name)
        write_whole(path, partial(_dump, {**plain, "started": before["started"]}))
        return True
    if any(os.path.lexists(folder / name) for name in FILES):
        return None
    return False if create_whole(path, partial(_dump, plain)) else None


def _plain_run(run: RunInfo) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "id": run.id,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "settings": _plain(run.settings),
        "versions": {"python": sys.version.split()[0], **{p: _version(p) for p in _PACKAGES}},
        "shapes": _plain(run.shapes),
        "class_names": None if run.class_names is None else [*map(str, run.class_names)],
    }


def _version(package: str) -> str | None:
    """Of what is loaded, or installed."""
    loaded = getattr(sys.modules.get(package), "__version__", None)
    if loaded is not None:
        return str(loaded)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """What JSON knows: it has no NaN, and of an object of the user's its type says enough."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return getattr(value, "__qualname__", type(value).__qualname__)


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(_plain(record), allow_nan=False).encode() + b"\n"


def _dump(value: Any, file: BinaryIO) -> None:
    file.write(json.dumps(value, allow_nan=False, indent=1).encode() + b"\n")


def _write_samples(file: BinaryIO, samples: Columns) -> None:
    """As `numpy.savez` does, and never a pickle."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, column in samples.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, column, allow_pickle=False)


def _write_suspects(file: BinaryIO, suspects: Columns) -> None:
    columns = [suspects[name] for name in Suspect._fields]
    file.write((",".join(Suspect._fields) + "\n").encode())
    for start in range(0, len(columns[0]), _ROWS):
        rows = (column[start : start + _ROWS].tolist() for column in columns)
        file.write("".join(map("{},{:.6f},{},{}\n".format, *rows)).encode())
