"""One fault in two runs of one seed, with and without the monitor, and what differs."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from prioritymonitor import GradientMonitor
from prioritymonitor.tags import EPOCH_TAGS, RECORD_KEYS
from tests.capture.test_no_disturbance import assert_identical
from tests.support.campaign.trial import EPOCHS, Trial
from tests.support.small_run import SETTINGS

_IN_RANGE: dict[str, Callable[[float], bool]] = {
    "any": lambda value: True,
    "≥ 0": lambda value: value >= 0,
    "≥ 1": lambda value: value >= 1,
    "[0, 1]": lambda value: 0 <= value <= 1,
    "0 or 1": lambda value: value in (0, 1),
}
"""By the range that the table of tags gives."""


@dataclass
class Verdict:
    """What one fault did; all but the last two stay empty where nothing is wrong."""

    lost: str = ""
    """What ended the loop that had the monitor, and not the other."""
    changed: str = ""
    """What of the training differs between the two."""
    left: str = ""
    """What was on the user's objects, or in the process, after `close()`."""
    false_records: list[str] = field(default_factory=list)
    stopped: bool = False
    """Whether the stop still came."""
    reason: str = ""
    """Why it did, or did not."""

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.changed or self.left or self.false_records)


def judge(
    happens: Callable[[Trial], object], seed: int, folder: Path | None, epochs: int = EPOCHS
) -> Verdict:
    """Train with the monitor until it says stop, and without it as long.

    Args:
        happens: The fault; it gets the trial before the step at which it happens.
        seed: Of the two runs; it also chooses what the monitor measures, and when it happens.
        folder: New; for whatever is written.
        epochs: How many, at most.
    """
    verdict = Verdict()
    setting = [*SETTINGS][seed % 4 % 3]  # twice as often the head alone
    log_dir = None if folder is None else folder / "run"
    with _process_as_found(verdict):
        watched = Trial(seed, log_dir, SETTINGS[setting] | {"every": 4})
        trained = epochs
        try:
            with watched.undo:
                trained = watched.train(happens, epochs)
        except (Exception, KeyboardInterrupt) as error:
            verdict.lost = repr(error)
        _check_monitor(watched, verdict)
    plain = Trial(seed, None if folder is None else folder / "plain", None)
    try:
        with plain.undo:
            plain.train(happens, trained)
    except (Exception, KeyboardInterrupt) as error:
        verdict.lost = "" if verdict.lost else f"only without the monitor: {error!r}"
    try:
        assert_identical(_bits(watched.result()), _bits(plain.result()))
    except AssertionError as error:
        verdict.changed = str(error) or "unlike"
    if not verdict.left and _on_it(watched) != _on_it(plain):
        verdict.left = _differing(_on_it(watched), _on_it(plain))
    return verdict


def _bits(value: Any) -> Any:
    """The same with the bytes of tensors, so that NaN equals itself."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return [str(value.dtype), [*value.shape], raw]
    if isinstance(value, dict):
        return {key: _bits(part) for key, part in value.items()}
    return [_bits(part) for part in value] if isinstance(value, (list, tuple)) else value


def _check_monitor(trial: Trial, verdict: Verdict) -> None:
    """What it tells, also after the end; closes it."""
    monitor = trial.monitor
    assert monitor is not None
    try:
        monitor.close()
        verdict.false_records = [*false_records(monitor, trial.steps)]
        verdict.stopped = monitor.should_stop
        verdict.reason = monitor.decision.reason.name
        monitor.suspects()
        monitor.samples()
    except Exception as error:
        verdict.lost = verdict.lost or f"the monitor itself raised {error!r}"


def false_records(monitor: GradientMonitor, steps: int) -> Iterator[str]:
    """What can't be true in the records of the epochs, in memory and on the disk."""
    history = monitor.history()
    ranges = {tag.name: tag.range for tag in EPOCH_TAGS}
    last = 0
    for number, record in enumerate(history, 1):
        if record["epoch"] != number or tuple(record) != RECORD_KEYS:
            yield f"record {number} is of epoch {record['epoch']}"
        for name, value in record.items():
            if value is None or isinstance(value, str):
                continue
            is_good = math.isfinite(value) and _IN_RANGE[ranges.get(name, "≥ 0")](value)
            if not is_good:
                yield f"{name} is {value} in epoch {number}"
        if not last < record["step"] <= steps + 10 or (record["best_epoch"] or 0) > number:
            yield f"epoch {number} ends at step {record['step']} with {record['best_epoch']} best"
        last = record["step"]
    path = monitor.log_dir / "epochs.jsonl" if monitor.log_dir is not None else None
    if path is not None and path.is_file() and not path.is_symlink():
        lines = path.read_text().splitlines()
        if [json.loads(line)["epoch"] for line in lines] != [*range(1, len(history) + 1)]:
            yield f"{len(lines)} lines in the run folder, {len(history)} in history()"


@contextlib.contextmanager
def _process_as_found(verdict: Verdict) -> Iterator[None]:
    """Notes what of the process itself is not as before."""
    before = _of_process()
    yield
    after = _of_process()
    before["threads"] &= after["threads"]  # of others, one may have ended meanwhile
    if before != after:
        verdict.left = _differing(after, before)
        torch.set_grad_enabled(True)
        sys.settrace(None)


def _of_process() -> dict[str, Any]:
    """What is shared by all that runs in it."""
    return {
        "gradients on": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "signal handlers": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGALRM)],
        "trace": sys.gettrace(),
        "threads": {t.name for t in threading.enumerate() if t.name != "QueueFeederThread"},
        "functions": [
            id(f)
            for f in (
                F.cross_entropy, nn.Module.__call__, torch.Tensor.backward, torch.autograd.backward,
                DataLoader.__iter__, torch.optim.Optimizer.zero_grad,
            )
        ],
    }  # fmt: skip


def _on_it(trial: Trial) -> dict[str, Any]:
    """What the user's objects carry: names of attributes and numbers of hooks.

    Those that the monitor was made with, and the loader of the end. Copies of a watched model have
    copies of its hooks, which do nothing.
    """
    model, optimizer, loader = trial.begun_with
    things = [("optimizer", optimizer), ("loader", loader), ("last loader", trial.loader)]
    told: dict[str, Any] = {name: _attributes(thing) for name, thing in things}
    told |= {f"module {name}": _attributes(module) for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        accumulated = getattr(parameter, "_post_accumulate_grad_hooks", None)
        hooks = len(parameter._backward_hooks or ()), len(accumulated or ())
        told[f"parameter {name}"] = (sorted(vars(parameter)), hooks)
    return told


def _attributes(thing: object) -> dict[str, int | None]:
    return {
        name: len(value) if name.endswith("_hooks") else None for name, value in vars(thing).items()
    }


def _differing(one: dict[str, Any], other: dict[str, Any]) -> str:
    names = {name for name in {*one, *other} if one.get(name) != other.get(name)}
    return ", ".join(f"{name}: {one.get(name)}" for name in sorted(names))[:300]
