"""A run folder that no other run has written to."""

from __future__ import annotations

from pathlib import Path


def fresh_folder(wanted: Path) -> Path:
    """Make an empty folder: the wanted one, or `wanted-2`, `wanted-3` and so on."""
    folder, number = wanted, 1
    while folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        number += 1
        folder = Path(f"{wanted}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
