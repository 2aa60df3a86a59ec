"""Files that are there whole or not at all, in a folder that others write to as well."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
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
        with suppress(FileNotFoundError):
            os.unlink(unfinished)


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
        with suppress(FileNotFoundError):
            os.unlink(unfinished)
    return True


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
        with suppress(FileNotFoundError):
            left.unlink()


def _written_beside(path: Path, write: Write) -> Path:
    """A new file in the same folder, under a name that nobody can foresee."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    # With O_EXCL the name is ours alone, and no link is followed.
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
    except BaseException:
        os.unlink(unfinished)
        raise
    return unfinished
