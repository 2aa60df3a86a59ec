"""What is made of a run folder: one clear line, or what is in it; and of a run resumed in it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from prioritymonitor import ArgumentValueError, cli
from prioritymonitor.report.saved_run import read_run
from tests.support.fuzz.outcome import Logged, frozen
from tests.support.fuzz.saved import State, stops_at_two
from tests.support.small_run import SmallRun

PRECIOUS = "index,score,given_label,predicted_label\n1,0.75,1,0\n"
"""A file beside the folder, which is none of the run's."""

HEADER = ["index", "score", "given_label", "predicted_label"]


class Saved:
    """The folder of a run of two epochs, and the state that it was closed with.

    Args:
        folder: Where copies of it are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies = 0
        folder.mkdir(parents=True, exist_ok=True)
        run = SmallRun()
        monitor = run.watched(every=1, stop=stops_at_two, log_dir=folder / "run")
        run.train(2)
        self.state: State = monitor.state_dict()
        monitor.close()

    def copy(self) -> Path:
        """Its folder once more, beside something precious."""
        self._copies += 1
        place = self._folder / str(self._copies)
        place.mkdir()
        (place / "precious").write_text(PRECIOUS)
        shutil.copytree(self._folder / "run", place / "run")
        return place / "run"


class Printed(NamedTuple):
    """What the command line made of a folder."""

    code: object
    """The exit code; None where it raised."""
    wrong: list[str]


def printed(folder: Path) -> Printed:
    """What `prioritymonitor suspects` prints, and what is wrong with it."""
    out, said, code = io.StringIO(), io.StringIO(), None
    with (
        mock.patch.object(sys, "argv", ["prioritymonitor", "suspects", str(folder)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        except BaseException as error:
            return Printed(None, [f"raised {error!r:.200}"])
    wrong = [f"warned {one.message}" for one in warned]
    if code == 0:
        wrong += [*_unlikely(out.getvalue())] + ([said.getvalue()] if said.getvalue() else [])
        return Printed(code, wrong)
    lines = said.getvalue().splitlines()
    is_clear = len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 600
    if code != 2 or not is_clear or not lines[0].startswith(f"prioritymonitor: got {folder}"):
        wrong.append(f"code {code}: {said.getvalue()[:300]!r}")
    return Printed(code, wrong + ([f"printed {out.getvalue()[:100]!r}"] if out.getvalue() else []))


def _unlikely(text: str) -> Iterator[str]:
    header, *rows = csv.reader(text.splitlines())
    if header != HEADER:
        yield f"header {header}"
    for row in rows:
        index, score, given, predicted = map(float, row)
        is_whole = all(number.is_integer() for number in (index, given, predicted))
        if not (is_whole and index >= 0 and given >= -1 and predicted >= -1 and 0.5 < score <= 1):
            yield f"row {row}"


def read(folder: Path) -> list[str]:
    """What is wrong with what `read_run` gives, or raises."""
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            run = read_run(folder)
    except ArgumentValueError as error:
        said = str(error)
        is_clear = said.isprintable() and said.startswith(f"got {folder}") and len(said) < 600
        return [] if is_clear else [said[:300]]
    except BaseException as error:
        return [f"raised {error!r:.200}"]
    lengths = {len(column) for column in run.samples.values()}
    wrong = [f"warned {one.message}" for one in warned]
    return wrong if len(lengths) < 2 else [*wrong, f"columns of {lengths} rows"]


@cache
def _plain_training() -> Any:
    run = SmallRun()
    run.train(1)
    return frozen(run.result()["model"]), frozen(run.result()["random"])


def went_on(folder: Path, state: State) -> list[str]:
    """What is wrong after a run went on in a folder: with the training, or with what is on disk."""
    outside, before = _of(folder.parent), _of(folder)
    logger, said = logging.getLogger("prioritymonitor"), Logged()
    logger.addHandler(said)
    try:
        run = SmallRun()
        monitor = run.watched(every=1, stop=stops_at_two, log_dir=folder)
        monitor.load_state_dict(state)
        run.train(1)
        monitor.close()
    except Exception as error:
        return [f"raised {error!r:.200}"]
    finally:
        logger.removeHandler(said)
    wrong = []
    if (frozen(run.result()["model"]), frozen(run.result()["random"])) != _plain_training():
        wrong.append("came to another training")
    after = _of(folder.parent)
    if any(after.get(name) != content for name, content in outside.items()):
        wrong.append("a file outside was changed")
    if len(monitor.history()) != 3:
        wrong.append(f"{len(monitor.history())} epochs")
    return wrong + _lines_lost(folder, monitor.log_dir, before, said.messages)


def _lines_lost(
    folder: Path, log_dir: Path | None, before: dict[str, bytes], said: list[str]
) -> list[str]:
    """The records of all epochs are on disk, or what was there still is."""
    own = (log_dir or folder) / "epochs.jsonl"
    if own.is_file() and not own.is_symlink():
        told = own.read_bytes()
        lines = told.splitlines()
        is_touched = told != before.get("epochs.jsonl") or log_dir != folder
        epochs = [json.loads(line)["epoch"] for line in lines] if is_touched else [1, 2]
        is_off = any("writing to log_dir is off" in one for one in said)
        if epochs != [1, 2, 3] and not (is_off and epochs == [1, 2]):
            return [f"{len(lines)} lines in {own.name}"]
    elif log_dir != folder:
        return ["no epochs were written"]
    if log_dir == folder:
        return []
    after = _of(folder)
    return [f"{name} of another run was changed" for name in before if after[name] != before[name]]


def _of(folder: Path) -> dict[str, bytes]:
    """The ordinary files in a folder."""
    files = [one for one in folder.iterdir() if one.is_file() and not one.is_symlink()]
    return {one.name: one.read_bytes() for one in files}
