"""Real runs that are killed at random moments, go on with any number of ranks, and are compared."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prioritymonitor.tags import EPOCH_SCALARS
from tests.ranks.resumable import EVERY

ROOT = Path(__file__).parents[2]
HANGS_AFTER = 600.0
"""Seconds."""
MOMENTS = ("all ranks at a time", "one rank at a time", "one rank at a line")
CLOSE = {"priority": 1e-8}
"""How near each value of a record must be to that of the uninterrupted run; 1e-6 for others."""


@dataclass
class Launch:
    """One start of a run, with as many ranks, killed or not."""

    ranks: int
    moment: str | None
    was_killed: bool = False


@dataclass
class KilledRun:
    """What became of a run."""

    way: str
    seed: int
    launches: list[Launch] = field(default_factory=list)
    other_decision: list[str] = field(default_factory=list)
    records_missing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self):
        return sum(one.was_killed for one in self.launches)

    @property
    def is_as_uninterrupted(self):
        return not (self.other_decision or self.records_missing)


def start(folder, way, ranks, line=0, rank=0):
    """Begin or go on with a run; each rank leaves its result in the folder."""
    for left in (*folder.glob("step-*"), *folder.glob("pid-*"), *folder.glob("[0-9].pt")):
        left.unlink()
    module = ["-m", "tests.ranks.resumable", str(folder), way, str(line), str(rank)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    with open(folder / "stderr", "wb") as errors:
        return subprocess.Popen(
            [sys.executable, *(torchrun if ranks > 1 else []), *module],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def pids(folder):
    return [int(one.read_text()) for one in sorted(folder.glob("pid-*"))]


def kill(process, moment, folder, chance, ranks):
    """Wait until it trains, and a while; then kill all of it, or one rank.

    Returns:
        Whether it was killed before its end.
    """
    began = folder / f"step-{ranks - 1}"
    while not began.exists() and process.poll() is None:
        time.sleep(0.01)
    wait = chance.uniform(0, 3)
    with suppress(subprocess.TimeoutExpired):
        process.wait(wait)
        return False
    if moment == "one rank at a time":
        victims = [chance.choice(pids(folder))]
    else:
        victims = [process.pid, *pids(folder)]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return True


def await_end(process, folder):
    """Until no process of the run is left."""
    process.wait(HANGS_AFTER)
    for pid in pids(folder):
        until = time.monotonic() + HANGS_AFTER
        while is_alive(pid) and time.monotonic() < until:
            time.sleep(0.02)


def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def one_launch(folder, way, ranks, moment, chance):
    line = chance.randrange(1, 20_000) if moment == MOMENTS[2] else 0
    process = start(folder, way, ranks, line, chance.randrange(ranks))
    try:
        was_killed = (
            moment is not None and not line and kill(process, moment, folder, chance, ranks)
        )
        await_end(process, folder)
    finally:
        for pid in [process.pid, *pids(folder)] if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
    has_ended = all((folder / f"{rank}.pt").exists() for rank in range(ranks))
    if not has_ended and moment is None:
        raise RuntimeError((folder / "stderr").read_text()[-3000:])
    return has_ended, Launch(ranks, moment, was_killed or (bool(line) and not has_ended))


def run_with_kills(folder, way, seed, chance, next_launch):
    """Start it again and again until it has ended.

    Args:
        folder: Of its checkpoints and its run folder.
        way: Of `checkpoints.WAYS`.
        seed: For the report.
        chance: Draws the moments.
        next_launch: Gives the number of ranks and of `MOMENTS`, or None, from that of kills so far.
    """
    folder.mkdir(parents=True)
    run, began, has_ended = KilledRun(way, seed), time.monotonic(), False
    while not has_ended:
        ranks, moment = next_launch(run.kills)
        has_ended, launch = one_launch(folder, way, ranks, moment, chance)
        run.launches.append(launch)
    run.seconds = time.monotonic() - began
    return run


def results_of(folder, run):
    ranks = range(run.launches[-1].ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in ranks]


def uninterrupted(folder):
    """In one process, with the rows of its run folder."""
    folder.mkdir(parents=True)
    one_launch(folder, "one file", 1, None, random.Random(0))
    return torch.load(folder / "0.pt", weights_only=True)


def compare(folder, run, expected):
    """Write down what differs from the uninterrupted run."""
    ranks = results_of(folder, run)
    for number, rank in enumerate(ranks):
        for name in ("decision", "best", "restored"):
            if rank[name] != expected[name]:
                run.other_decision.append(f"{name} {rank[name]} on rank {number}")
        if {one[0] for one in rank["suspects"]} != {one[0] for one in expected["suspects"]}:
            run.other_decision.append(f"other suspects on rank {number}")
        run.other_decision += differing(rank["history"], expected["history"])
        pairs = zip(rank["kept"], expected["kept"], strict=True)
        if not all(torch.allclose(one, other, rtol=1e-6, atol=1e-6) for one, other in pairs):
            run.other_decision.append(f"other kept weights on rank {number}")
    compare_files(Path(ranks[0]["log_dir"]), run, ranks[0]["history"], expected["history"])


def differing(history, expected):
    if [one["epoch"] for one in history] != [one["epoch"] for one in expected]:
        return [f"epochs {[one['epoch'] for one in history]}"]
    return [
        f"{name} of epoch {one['epoch']}: {one[name]} for {other[name]}"
        for one, other in zip(history, expected, strict=True)
        for name in one
        if name != "time" and not is_close(one[name], other[name], CLOSE.get(name, 1e-6))
    ]


def is_close(one, other, within):
    if isinstance(other, float) and isinstance(one, float):
        return math.isclose(one, other, rel_tol=within, abs_tol=within)
    return one == other


def compare_files(folder, run, history, expected):
    lines = (folder / "epochs.jsonl").read_text().splitlines()
    if [json.loads(line) for line in lines] != history:
        run.records_missing.append("epochs.jsonl is not the history")
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    curves = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    for name in sorted(EPOCH_SCALARS):
        wanted = [(one["step"], one[name]) for one in history if one[name] is not None]
        found = [(one.step, one.value) for one in curves.get(f"prioritymonitor/{name}", [])]
        same = len(found) == len(wanted) and all(
            step == at and math.isclose(value, known, rel_tol=1e-5, abs_tol=1e-6)
            for (step, value), (at, known) in zip(found, wanted, strict=True)
        )
        if not same:
            run.records_missing.append(f"epoch scalar {name}: {[step for step, _ in found]}")
    measured = [*range(1, expected[-1]["step"] + 1, EVERY)]
    found = [one.step for one in curves.get("prioritymonitor/batch_loss", [])]
    if found != measured:
        run.records_missing.append(f"steps {sorted(set(measured) ^ set(found))}, {len(found)}")
