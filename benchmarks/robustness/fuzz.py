"""States and run folders that a fuzzer has changed, given to a monitor and the command line.

`python -m benchmarks.robustness.fuzz` tries 1,000 states and 1,000 folders and writes
`results/robustness/fuzz.json`. What must hold for each is in `tests/support/fuzz/`; the tests try
fewer of them.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.environment import versions, write_results
from tests.support.fuzz.folders import change
from tests.support.fuzz.outcome import Target, is_clear, works
from tests.support.fuzz.reading import Saved, printed, read, went_on
from tests.support.fuzz.states import damaged

_MOST_TOLD = 500
"""Characters of what was done and what is wrong that are kept."""


class Found:
    """What became of all that was tried."""

    def __init__(self) -> None:
        self.counts = Counter(dict.fromkeys(("tried", "refused", "taken", "wrong"), 0))
        self.problems: list[list[str]] = []

    def add(self, done: str, *, is_taken: bool, wrong: list[str]) -> None:
        """One more.

        Args:
            done: What was changed.
            is_taken: Whether it was taken, and not refused.
            wrong: What must not be.
        """
        self.counts.update(tried=1, taken=is_taken, refused=not is_taken, wrong=bool(wrong))
        if wrong:
            self.problems.append([done[:_MOST_TOLD], "; ".join(wrong)[:_MOST_TOLD]])
            print(done, wrong, file=sys.stderr)

    def told(self) -> dict[str, Any]:
        """For the results."""
        return {**self.counts, "problems": self.problems}


def try_states(folder: Path, examples: int, number: int) -> Found:
    """Load so many states, and go on with those that are taken."""
    found, target = Found(), [Target(folder)]

    def check(one: tuple[str, Any]) -> None:
        done, state = one
        try:
            said = target[0].load(state)
        except Exception as error:
            found.add(done, is_taken=True, wrong=[f"loading raised {error!r}"])
            target[0] = Target(folder / f"again-{found.counts['tried']}")
            return
        if said is not None:
            wrong = [] if is_clear(said) else [f"unclear: {said}"]
            return found.add(done, is_taken=False, wrong=wrong)
        try:
            wrong = works(state, folder / f"taken-{found.counts['tried']}")
        except Exception as error:
            wrong = [f"raised {error!r}"]
        found.add(done, is_taken=True, wrong=wrong)

    _with_examples(damaged(), check, examples, number)
    target[0].monitor.close()
    return found


def try_folders(folder: Path, examples: int, number: int) -> Found:
    """Read so many folders, and go on with a run in each."""
    found, saved = Found(), Saved(folder)

    def check(data: st.DataObject) -> None:
        copy = saved.copy()
        done = "; ".join(change(data.draw, copy))
        said = printed(copy)
        wrong = [*said.wrong, *read(copy), *went_on(copy, saved.state)]
        found.add(done, is_taken=said.code == 0, wrong=wrong)
        shutil.rmtree(copy.parent)

    _with_examples(st.data(), check, examples, number)
    return found


def _with_examples(
    strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int, number: int
) -> None:
    fixed = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    seed(number)(fixed(given(strategy)(lambda one: check(one))))()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logger = logging.getLogger("prioritymonitor")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        states = try_states(Path(folder) / "states", chosen.states, chosen.seed)
        folders = try_folders(Path(folder) / "folders", chosen.folders, chosen.seed)
    results = {
        "packages": versions("hypothesis"),
        "seed": chosen.seed,
        "states": states.told(),
        "folders": folders.told(),
        "seconds": time.monotonic() - began,
    }
    print(f"states {dict(states.counts)}, folders {dict(folders.counts)}")
    print(write_results("robustness/fuzz", results))


if __name__ == "__main__":
    main()
