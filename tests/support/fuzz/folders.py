"""Run folders changed in any way: bytes, JSON, columns, and what stands in a file's place."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

FILES = ("run.json", "epochs.jsonl", "samples.npz", "suspects.csv")

JSON: list[str] = [
    "null", "true", "-1", "1e999", "NaN", "9" * 5000, "[]", "{}", '""', '"\\u001b[2J\\nforged"',
    '"\\ud800"', "[" * 50_000, '{"a":' * 1000 + "1" + "}" * 1000, "0.5", '"x"', "9" * 20,
]  # fmt: skip
CELLS = [
    "",
    "x",
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e400",
    "9" * 30,
    "0.5",
    "\x00",
    '"1"',
    "\u202e",
    "1,1",
]


class Swapped:
    """Would make a folder where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


COLUMNS: dict[str, Callable[[np.ndarray], Any]] = {
    "objects": lambda column: np.array([Swapped()] * len(column), dtype=object),
    "shorter": lambda column: column[:-1],
    "longer": lambda column: np.concatenate((column, column)),
    "flat": lambda column: column.sum(),
    "table": lambda column: column.reshape(-1, 2),
    "text": lambda column: column.astype(str),
    "bytes": lambda column: column.astype("S"),
    "complex": lambda column: column.astype(complex) + 1j,
    "float": lambda column: column.astype(float) + 0.5,
    "NaN": lambda column: np.full(len(column), np.nan),
    "infinite": lambda column: np.full(len(column), np.inf, np.float32),
    "negative": lambda column: np.full(len(column), -7, column.dtype),
    "huge": lambda column: np.full(len(column), 2**63, np.uint64),
    "large": lambda column: np.full(len(column), np.iinfo(np.int64).max),
    "whole": lambda column: np.arange(len(column)),
    "bool": lambda column: np.ones(len(column), bool),
    "dates": lambda column: np.zeros(len(column), "M8[s]"),
    "records": lambda column: np.zeros(len(column), [("a", "i4"), ("b", "f8")]),
    "half": lambda column: column.astype(np.float16),
}


def broken_bytes(draw: st.DrawFn, path: Path) -> str:
    """Some bytes exchanged, cut off, or put there in addition."""
    content = bytearray(path.read_bytes())
    way = draw(st.sampled_from(["cut", "flip", "flip", "insert", "empty", "twice", "other"]))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    if way == "cut":
        del content[place:]
    elif way == "flip":
        for _ in range(draw(st.integers(1, 8))):
            content[draw(st.integers(0, max(len(content) - 1, 0)))] = draw(st.integers(0, 255))
    elif way == "insert":
        content[place:place] = draw(st.binary(min_size=1, max_size=40))
    elif way == "twice":
        content *= 2
    else:
        content = bytearray(b"" if way == "empty" else draw(st.binary(max_size=200)))
    path.write_bytes(content)
    return f"{path.name}: {way}"


def broken_json(draw: st.DrawFn, path: Path) -> str:
    """One value, key or line of a JSON file exchanged for another."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draw(st.integers(0, len(lines) - 1))
    told = json.loads(lines[number])
    key, text = draw(st.sampled_from([*told])), draw(st.sampled_from(JSON))
    way = draw(st.sampled_from(["value", "value", "drop", "whole", "nested"]))
    if way == "drop":
        del told[key]
        text = json.dumps(told)
    elif way == "value":
        told[key] = "@"
        text = json.dumps(told).replace('"@"', text)
    elif way == "nested" and isinstance(told[key], dict) and told[key]:
        told[key][draw(st.sampled_from([*told[key]]))] = "@"
        text = json.dumps(told).replace('"@"', text)
    lines[number] = text
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: {way} of {key} in line {number + 1}: {text[:30]!r}"


def broken_columns(draw: st.DrawFn, path: Path) -> str:
    """Columns of an archive dropped, renamed or of another kind."""
    with np.load(path) as archive:
        columns: dict[str, Any] = {name: archive[name] for name in archive.files}
    name = draw(st.sampled_from([*columns]))
    way = draw(st.sampled_from(["drop", "rename", "compressed", "claims", "all", *COLUMNS]))
    if way == "drop":
        del columns[name]
    elif way == "rename":
        columns["\x1b[2J"] = columns.pop(name)
    elif way == "all":
        columns = {}
    elif way in COLUMNS:
        columns[name] = COLUMNS[way](columns[name])
    write = np.savez_compressed if way == "compressed" else np.savez
    write(path, **columns)
    if way == "claims":
        _claim(path, name, draw(st.sampled_from([2**20, 2**40, 2**62, 2**70])))
    return f"{path.name}: {name} {way}"


def _claim(path: Path, column: str, length: int) -> None:
    """Let a column say that it has more rows than there are."""
    with np.load(path) as archive:
        columns = {name: archive[name] for name in archive.files}
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in columns.items():
            part = io.BytesIO()
            np.lib.format.write_array(part, values)
            content = part.getvalue()
            if name == column:
                shape = f"({len(values)},)".encode()
                content = content.replace(shape, f"({length},)".encode(), 1)
            archive.writestr(f"{name}.npy", content)


def broken_table(draw: st.DrawFn, path: Path) -> str:
    """A cell, a row or the header of the CSV exchanged."""
    lines = path.read_text().splitlines()
    row = draw(st.integers(0, len(lines) - 1))
    cells = lines[row].split(",")
    column = draw(st.integers(0, len(cells) - 1))
    way = draw(st.sampled_from(["cell", "cell", "drop", "add", "blank", "comment", "alone"]))
    if way == "cell":
        cells[column] = draw(st.sampled_from(CELLS))
    elif way == "drop":
        del cells[column]
    elif way == "add":
        cells.append("1")
    lines[row] = {"blank": "  ", "comment": "# 1,2,3,4"}.get(way, ",".join(cells))
    if way == "alone":
        lines = [lines[0], *[""] * row]
    path.write_text(draw(st.sampled_from(["\n", "\r\n"])).join(lines) + "\n")
    return f"{path.name}: {way} {column} of row {row}: {lines[min(row, len(lines) - 1)]!r}"


def _linked(to: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to(path))


def _listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a socket": _listening,
    "a link to a file outside": _linked(lambda path: path.parent.parent / "precious"),
    "a link to the same file outside": lambda path: path.symlink_to(
        shutil.move(path.parent / f"{path.name}.kept", path.parent.parent / path.name)
    ),
    "a link to nowhere": _linked(lambda path: path.parent.parent / "nowhere"),
    "a link to itself": _linked(lambda path: path),
    "a link to a folder": _linked(lambda path: path.parent.parent),
    "a link to zeros": _linked(lambda path: Path("/dev/zero")),
}


def something_else(draw: st.DrawFn, path: Path) -> str:
    """Nothing, or no ordinary file, in a file's place."""
    way = draw(st.sampled_from([*INSTEAD]))
    kept = path.parent / f"{path.name}.kept"
    path.rename(kept)
    INSTEAD[way](path)
    kept.unlink(missing_ok=True)
    return f"{path.name}: {way}"


def more_besides(draw: st.DrawFn, path: Path) -> str:
    """What a killed process may have left beside a file, and what only looks like it."""
    left = path.with_name(f".{path.name}.{draw(st.sampled_from(['0a', '*', '..']))}.unfinished")
    way = draw(st.sampled_from([Path.touch, Path.mkdir, os.mkfifo]))
    way(left)
    return f"{left.name}: {way.__name__}"


WAYS: dict[str, list[Callable[[st.DrawFn, Path], str]]] = {
    "run.json": [broken_json, broken_json, broken_json, broken_bytes, something_else, more_besides],
    "epochs.jsonl": [broken_json, broken_bytes, something_else, more_besides],
    "samples.npz": [broken_columns, broken_columns, broken_bytes, something_else, more_besides],
    "suspects.csv": [broken_table, broken_table, broken_bytes, something_else, more_besides],
}


def change(draw: st.DrawFn, folder: Path) -> list[str]:
    """Change a run folder; gives what was done."""
    names = draw(st.lists(st.sampled_from(FILES), min_size=1, max_size=3, unique=True))
    done = [draw(st.sampled_from(WAYS[name]))(draw, folder / name) for name in names]
    if "suspects.csv" not in names and draw(st.booleans()):
        (folder / "suspects.csv").unlink()
        done.append("suspects.csv: as before the end")
    return done
