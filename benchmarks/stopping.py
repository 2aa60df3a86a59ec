"""Stop rules side by side, on many runs with wrong labels."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from data import add_data_option
from runs.grid import SEEDS, Setting, settings
from runs.record import Recording, record, record_with_validation

PARTS = {"full": record, "held-out": record_with_validation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--cache", type=Path, default=Path("build/runs"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    missing = [
        (setting, part)
        for setting in settings(options.seeds)
        for part in PARTS
        if not path_of(options.cache, setting, part).is_file()
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        options.jobs, spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [
            pool.submit(make, setting, part, options.data, options.cache)
            for setting, part in missing
        ]
        for done, future in enumerate(as_completed(futures), 1):
            print(f"{done} of {len(missing)}: {future.result()}", flush=True)


def path_of(cache: Path, setting: Setting, part: str) -> Path:
    return cache / f"{setting.name}.{part}.pt"


def make(setting: Setting, part: str, data: Path | None, cache: Path) -> str:
    began = time.perf_counter()
    recording: Recording = PARTS[part](setting, data)
    path = path_of(cache, setting, part)
    torch.save(recording, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    raw, averaged = recording["raw"], recording["averaged"]
    return (
        f"{path.stem} best raw {max(raw):.1f}, best averaged {max(averaged):.1f}, last {raw[-1]:.1f}"
        f", {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
