"""Files that are whole whenever somebody looks, in a folder that others write to as well."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

Write = Callable[[BinaryIO], object]
"""Writes the content to an open file."""

_UNFINISHED = ".unfinished"


def write_whole(path: Path, write: Write) -> None:
    """Write a file, in place of an older one if there is.

    A process that is killed leaves the older file, or none. After a power cut the file may be
    damaged: it is not forced to the disk, which would make the training wait for it.

    Raises:
        OSError: It cannot be written.
        FileExistsError: Something else than a file has its name: a link, a pipe, a folder.
    """
    check_replaceable(path)
    unfinished = _written_beside(path, write)
    try:
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def create_whole(path: Path, write: Write) -> bool:
    """Write a file unless its name is taken.

    Returns:
        False where another process, or anyone before, has the name.
    """
    unfinished = _written_beside(path, write)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file that is there; a process that is killed may leave a part of it.

    Raises:
        OSError: It cannot be written, or only in part.
        FileExistsError: Something else than a file has its name.
    """
    check_replaceable(path)
    with open(path, "ab", opener=_open_to_append) as file:
        file.write(line)


def check_replaceable(path: Path) -> None:
    """Raise where something else than a file has the name.

    Raises:
        FileExistsError: It is a link, a pipe, a folder or the like.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"{path} is no ordinary file; move it away, or name another log_dir")


def remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed while they wrote this file."""
    for left in path.parent.glob(f".{path.name}.*{_UNFINISHED}"):
        with contextlib.suppress(OSError):  # a folder of that name, or one already gone
            left.unlink()


def _written_beside(path: Path, write: Write) -> Path:
    """A new file in the same folder, under a name that nobody can foresee."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:  # ours alone, and no link is followed
            write(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return unfinished


def _open_to_append(path: str, flags: int) -> int:
    """No new file, through no link, and waiting for no reader of a pipe."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags & ~os.O_CREAT | careful)
