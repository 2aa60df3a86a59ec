"""Disks, writers, logs, threads and processes around a training; other monitors, too."""

from __future__ import annotations

import builtins
import copy
import errno
import gc
import io
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from prioritymonitor import GradientMonitor
from tests.support.attacks import polling
from tests.support.campaign.trial import Trial
from tests.support.interrupted import Interruption, interrupted_at

_WRITES = "prioritymonitor.report.whole_file"

# What is written


def _folder(trial: Trial) -> Path | None:
    return trial.monitor.log_dir if trial.monitor is not None else None


def _no_space(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full(trial: Trial) -> None:
    trial.undo.enter_context(patch(f"{_WRITES}.open", _no_space, create=True))
    events = "tensorboard.summary.writer.record_writer.RecordWriter.write"
    trial.undo.enter_context(patch(events, _no_space))
    # Threads of TensorBoard's end, and print their tracebacks.
    trial.undo.enter_context(patch.object(threading, "excepthook", lambda problem: None))


def disk_full_for_a_while(trial: Trial) -> None:
    change = patch(f"{_WRITES}.open", _no_space, create=True)
    change.start()
    trial.later(20, change.stop)


def disk_fails(trial: Trial) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    trial.undo.enter_context(patch(f"{_WRITES}.open", fails, create=True))


def disk_slow(trial: Trial) -> None:
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        return builtins.open(*arguments, **options)

    trial.undo.enter_context(patch(f"{_WRITES}.open", slow, create=True))


def folder_deleted(trial: Trial) -> None:
    folder = _folder(trial)
    if folder is not None:
        shutil.rmtree(folder)


def folder_becomes_a_file(trial: Trial) -> None:
    """As one that nothing can be written into."""
    folder = _folder(trial)
    if folder is not None:
        shutil.rmtree(folder)
        folder.write_text("")


def folder_read_only(trial: Trial) -> None:
    folder = _folder(trial)
    if folder is not None:
        folder.chmod(0o500)
        trial.undo.callback(folder.chmod, 0o700)


def links_and_pipes_in_the_folder(trial: Trial) -> None:
    folder = _folder(trial)
    if folder is not None:
        outside = folder.with_name("outside")
        outside.write_text("untouched")
        for name in ("epochs.jsonl", "samples.npz"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(outside)
        os.mkfifo(folder / "suspects.csv")
        trial.undo.callback(_check_untouched, outside, trial)


def _check_untouched(outside: Path, trial: Trial) -> None:
    if outside.read_text() != "untouched":
        trial.more.append("a link out of the run folder was followed")


class _Writer:
    """A writer of the user's, and what becomes of its calls."""

    def __init__(self, act: Any) -> None:
        self.add_scalar = self.flush = act


def _another_monitor(trial: Trial, **options: Any) -> None:
    if trial.monitor is not None:
        trial.monitor.close()
        trial.monitor = trial.watch(**options)


def writer_raises(trial: Trial) -> None:
    _another_monitor(trial, log_dir=None, writer=_Writer(lambda *arguments: 1 / 0))


def writer_blocks(trial: Trial) -> None:
    _another_monitor(trial, log_dir=None, writer=_Writer(lambda *arguments: time.sleep(1e-4)))


def handler_of_the_log_raises(trial: Trial) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the log is gone")

    logger, handler = logging.getLogger("prioritymonitor"), Raising()
    logger.addHandler(handler)
    trial.undo.callback(logger.removeHandler, handler)
    trial.undo.enter_context(patch.object(sys, "stderr", io.StringIO()))


def streams_closed(trial: Trial) -> None:
    closed = io.StringIO()
    closed.close()
    for name in ("stderr", "stdout"):
        trial.undo.enter_context(patch.object(sys, name, closed))


# Threads and processes


def read_from_a_thread(trial: Trial) -> None:
    if trial.monitor is not None:
        trial.undo.enter_context(polling(trial.monitor))


def trained_from_a_thread(trial: Trial) -> None:
    """Some steps are made in another one."""

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        thread = threading.Thread(target=trial.step, args=(x, y))
        thread.start()
        thread.join()

    trial.once(*[step] * 5)


def closed_from_a_thread(trial: Trial) -> None:
    if trial.monitor is not None:
        thread = threading.Thread(target=trial.monitor.close)
        thread.start()
        trial.later(4, thread.join)


def _other_loop(trial: Trial, is_watched: bool) -> tuple[nn.Module, Any]:
    """Another model in training, over the same loader; its own monitor, or none."""
    model = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if is_watched:
        monitor = GradientMonitor(model, optimizer, trial.loader, every=2)
        trial.undo.callback(monitor.close)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    trial.more.append(model.state_dict())
    return model, step


def two_loops_at_once(trial: Trial) -> None:
    """Another model, with its own monitor, is trained on the same batches."""
    _, other = _other_loop(trial, trial.monitor is not None)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        other(x, y)
        trial.step(x, y)

    trial.once(*[step] * 20)


def loop_in_another_thread(trial: Trial) -> None:
    """Another model is trained there, without random numbers, while this one is."""
    _, other = _other_loop(trial, False)
    batches = [(trial.data.inputs[i::8], trial.data.labels[i::8]) for i in range(8)]

    def train() -> None:
        for x, y in batches * 5:
            other(x, y)

    thread = threading.Thread(target=train)
    thread.start()
    trial.later(10, thread.join)
    trial.undo.callback(thread.join)


def process_forked(trial: Trial) -> None:
    """The child reads, closes and ends; the loop goes on."""
    child = os.fork()
    if child == 0:
        try:
            if trial.monitor is not None:
                trial.monitor.history()
                trial.monitor.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def garbage_collected(trial: Trial) -> None:
    trial.once(lambda x, y: (gc.collect(), trial.step(x, y)))


# Other monitors, and other uses of this one


def monitor_closed(trial: Trial) -> None:
    if trial.monitor is not None:
        trial.monitor.close()


def close_interrupted(trial: Trial) -> None:
    if trial.monitor is not None:
        interrupted_at(trial.random.randint(1, 200), trial.monitor.close, Interruption)
        trial.monitor.close()
        trial.monitor = trial.watch()


def another_monitor(trial: Trial) -> None:
    """On the same model and optimizer, as of a notebook's cell that is run again."""
    if trial.monitor is not None:
        trial.monitor = trial.watch()


def another_monitor_beside(trial: Trial) -> None:
    """With an optimizer of its own."""
    if trial.monitor is not None:
        beside = torch.optim.SGD(trial.model.parameters(), 0.1)
        other = GradientMonitor(trial.model, beside, trial.loader, every=2)
        trial.undo.callback(other.close)


def monitor_on_a_copy(trial: Trial) -> None:
    twin = copy.deepcopy(trial.model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    if trial.monitor is not None:
        other = GradientMonitor(twin, optimizer, trial.loader, every=1)
        trial.undo.callback(other.close)
    trial.more.append(twin.state_dict())

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        trial.step(x, y)
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()

    trial.once(*[step] * 10)


def wrong_monitor_refused(trial: Trial) -> None:
    """One that can't be made, beside the one that works."""
    elsewhere = nn.Linear(1, 1)
    if trial.monitor is not None:
        for wrong in ({"every": 0}, {"head": elsewhere}, {"stop": 3}):
            try:
                trial.watch(**wrong)
            except (TypeError, ValueError):
                continue


def epochs_ended_anywhere(trial: Trial) -> None:
    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        trial.step(x, y)
        if trial.monitor is not None:
            trial.monitor.end_epoch()

    trial.once(step, trial.step, step)


def resumed_from_its_state(trial: Trial) -> None:
    """Saved, closed, and gone on with in another monitor."""
    if trial.monitor is not None:
        file = io.BytesIO()
        torch.save(trial.monitor.state_dict(), file)
        trial.monitor.close()
        file.seek(0)
        trial.monitor = trial.watch()
        trial.monitor.load_state_dict(torch.load(file, weights_only=True))


def foreign_state_refused(trial: Trial) -> None:
    if trial.monitor is not None:
        for state in ({}, {"version": 99}, trial.model.state_dict()):
            try:
                trial.monitor.load_state_dict(state)
            except (TypeError, ValueError):
                continue
            raise AssertionError("a foreign state was taken")
