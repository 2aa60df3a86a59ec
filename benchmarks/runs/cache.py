"""The recordings on disk: a file for each part of a setting, made once."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from runs.grid import Setting
from runs.record import Recording

CACHE = Path("build/runs")

Maker = Callable[[Setting, Path | None], Recording]


def path_of(cache: Path, setting: Setting, part: str) -> Path:
    return cache / f"{setting.name}.{part}.pt"


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Processes of one thread each."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,))


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
    with worker_pool(jobs) as pool:
        futures = [
            pool.submit(_make, setting, makers[part], data, path_of(cache, setting, part))
            for setting, part in missing
        ]
        for done, future in enumerate(as_completed(futures), 1):
            print(f"{done} of {len(missing)}: {future.result()}", flush=True)


def _make(setting: Setting, maker: Maker, data: Path | None, path: Path) -> str:
    began = time.perf_counter()
    unfinished = path.with_suffix(".part")
    torch.save(maker(setting, data), unfinished)
    unfinished.rename(path)
    return f"{path.stem}, {time.perf_counter() - began:.0f} s"
