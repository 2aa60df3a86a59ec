"""The recordings on disk: a file for each part of a setting, made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from benchmarks.jobs import completed
from benchmarks.stopping.runs.record import Recording
from benchmarks.stopping.runs.settings import Setting

CACHE = Path("build/runs")

Maker = Callable[[Setting, Path | None], Recording]


def path_of(cache: Path, setting: Setting, part: str) -> Path:
    return cache / f"{setting.name}.{part}.pt"


def make_missing(
    wanted: Iterable[tuple[Setting, str]],
    makers: dict[str, Maker],
    data: Path | None,
    cache: Path,
    jobs: int,
) -> None:
    """Train what is not in the cache, each part in a process of its own.

    Args:
        wanted: Settings and parts.
        makers: What makes each part.
        data: From the option `--data`.
        cache: Folder of the recordings.
        jobs: Trainings at a time.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [(one, part) for one, part in wanted if not path_of(cache, one, part).is_file()]
    for done, (_, said) in enumerate(completed(jobs, _make, missing, makers, data, cache), 1):
        print(f"{done} of {len(missing)}: {said}", flush=True)


def _make(
    wanted: tuple[Setting, str], makers: dict[str, Maker], data: Path | None, cache: Path
) -> str:
    setting, part = wanted
    path, began = path_of(cache, setting, part), time.perf_counter()
    unfinished = path.with_suffix(".part")
    torch.save(makers[part](setting, data), unfinished)
    unfinished.rename(path)
    return f"{path.stem}, {time.perf_counter() - began:.0f} s"
