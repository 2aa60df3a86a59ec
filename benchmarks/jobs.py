"""Work in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_pool(jobs: int, threads: int = 1) -> ProcessPoolExecutor:
    """Fresh processes of so many threads each."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (threads,))


def completed(
    jobs: int, work: Callable[..., Result], items: Iterable[Item], *arguments: Any
) -> Iterator[tuple[Item, Result]]:
    """Each item with `work(item, *arguments)` as it is done, so many at a time."""
    with worker_pool(jobs) as pool:
        futures = {pool.submit(work, item, *arguments): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
