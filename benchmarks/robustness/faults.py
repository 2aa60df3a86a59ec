"""Faults, interruptions, signals and threads let loose on small runs that are watched.

`python -m benchmarks.robustness.faults` writes `results/robustness/faults.json`. Each attack is one
of `tests/support/attacks.py`, which the tests make few of.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import write_results
from tests.capture.test_no_disturbance import assert_identical
from tests.support import attacks
from tests.support.small_run import SETTINGS, SmallRun, measured

_EPOCHS = 8


def constructor(folder: Path) -> dict[str, Any]:
    """One error at each line of the package's code that the constructor runs."""
    told: Counter[str] = Counter()
    for variant in attacks.VARIANTS:
        for error in (attacks.Fault, KeyboardInterrupt):
            for was_clean in attacks.break_constructor(variant, error, folder):
                told.update(made=1, left_something=not was_clean)
    return dict(told)


def closing(folder: Path, error: type[BaseException], stride: int) -> dict[str, Any]:
    """One error at every `stride`-th line of `close()`, which is called once more then."""
    told: Counter[str] = Counter()
    for variant in attacks.VARIANTS:
        for is_whole in attacks.break_close(variant, error, folder, stride=stride):
            told.update(made=1, not_completed=not is_whole)
    return dict(told)


def signals(runs: int) -> dict[str, Any]:
    """A handler that raises within a few milliseconds of the beginning of each step."""
    told: dict[str, Any] = {}
    kinds = list(attacks.Alarms().kinds)
    for setting in (*SETTINGS, None):
        counts: Counter[str] = Counter()
        for number in range(runs):
            kind = kinds[number % len(kinds)]
            one = attacks.alarm_run(kind, setting, steps=60, within=0.004, seed=number)
            counts.update(
                runs=1,
                raised=one.raised,
                swallowed=one.raised - one.seen,
                steps_without_gradients=one.without_gradients,
                unusable=not one.is_usable,
            )
            if setting is not None:
                counts.update(failed=one.failed, stood_still=not one.goes_on)
        told[setting or "not watched"] = dict(counts)
    return told


def threads(runs: int) -> dict[str, Any]:
    """A second thread reads everything; in every other run it ends epochs, too."""
    told: Counter[str] = Counter()
    for number in range(runs):
        setting = list(SETTINGS)[number % len(SETTINGS)]
        ends_epochs = number % 2 == 1
        results = []
        for is_polled in (False, True):
            run = SmallRun()
            monitor = run.watched(stop=None, **SETTINGS[setting])
            if is_polled:
                more = [monitor.end_epoch] if ends_epochs else []
                with attacks.polling(monitor, *more) as seen:
                    told.update(loops_ended=not _goes_through(run))
                told.update(rounds=seen.count("round"), errors=len(seen) - seen.count("round"))
            else:
                run.train(_EPOCHS)
            monitor.end_epoch()
            visits = {"visits": monitor.samples()["visits"].tolist()}
            results.append((run.result(), visits if ends_epochs else measured(monitor)))
            monitor.close()
        told.update(runs=1, measurements_lost=not _same(*results))
    return dict(told)


def _goes_through(run: SmallRun) -> bool:
    try:
        run.train(_EPOCHS)
    except Exception:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    try:
        assert_identical(one, other)
    except AssertionError:
        return False
    return True


def faults(runs: int, leaving_out: tuple[str, ...]) -> dict[str, Any]:
    """One error at a random line of the package while a model is trained."""
    told: dict[str, Any] = {}
    plain, lines = attacks.plain_result(), random.Random(0)
    for setting in SETTINGS:
        counts: Counter[str] = Counter()
        for _ in range(runs):
            line = int(10 ** lines.uniform(0, 3.8))
            one = attacks.fault_run(setting, line, plain, attacks.Fault, leaving_out)
            if one.happened:
                counts.update(
                    made=1,
                    reached_the_loop=one.reached_the_loop,
                    harmed_training=not (one.is_unharmed or one.reached_the_loop),
                    ended_measuring=one.ended,
                )
        told[setting] = dict(counts)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=100, help="runs of each setting")
    parser.add_argument("--threads", type=int, default=20, help="runs")
    parser.add_argument("--faults", type=int, default=230, help="runs of each setting")
    parser.add_argument("--stride", type=int, default=2, help="lines of close() between errors")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-4)
    logging.getLogger("prioritymonitor").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results: dict[str, Any] = {
            "constructor": constructor(folder / "made"),
            "close": closing(folder / "closed", attacks.Fault, chosen.stride),
            "close, Ctrl-C": closing(folder / "left", KeyboardInterrupt, chosen.stride),
        }
    results["threads"] = threads(chosen.threads)
    by_setting = {
        "signals": signals(chosen.signals),
        "faults": faults(chosen.faults, leaving_out=attacks.BETWEEN),
        "faults, every line": faults(chosen.faults, leaving_out=()),
    }
    flat = results | {
        f"{attack}, {setting}": counts
        for attack, told in by_setting.items()
        for setting, counts in told.items()
    }
    for attack, counts in flat.items():
        print(attack, ", ".join(f"{name} {count}" for name, count in counts.items()), sep=": ")
    print(write_results("robustness/faults", results | by_setting))


if __name__ == "__main__":
    main()
