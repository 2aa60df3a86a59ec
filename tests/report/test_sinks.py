"""Each sink fails alone, is said once, and what may pass is tried again."""

import errno
import logging

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from prioritymonitor import Decision, StopReason
from prioritymonitor.report.folder import RunFolder
from prioritymonitor.report.log import Log
from prioritymonitor.report.saved_run import read_run
from prioritymonitor.report.sink import RunInfo, Sink
from prioritymonitor.report.sinks import Sinks, all_sinks

STOP = Decision(True, StopReason.NOISY_DOMINATES, 2, 1, "noisy labels took over")
INFO = RunInfo("a", {}, {})


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def record(epoch):
    return {"epoch": epoch, "step": 10 * epoch, "priority": 0.5 * epoch}


def samples():
    labels = np.zeros(3, np.int64)
    scores = {"score": np.ones(3, np.float32), "given_label": labels, "predicted_label": labels}
    return {"index": np.arange(3), **scores}


def suspects():
    names = ("index", "score", "given_label", "predicted_label")
    return {name: np.zeros(1, np.int64) for name in names}


class Recorder(Sink):
    """Notes what it is told, and raises the next of its errors."""

    name = "recorder"

    def __init__(self, *errors):
        self.told = []
        self._errors = list(errors)

    def step(self, values, step, time):
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error
        self.told.append(step)

    def recover(self):
        self.told.append("recover")


def tell(*sinks, steps=4):
    said = []
    fan = Sinks(sinks, said.append)
    for step in range(steps):
        fan.step({}, step, 0.0)
    return said


def test_a_sink_that_fails_ends_alone_and_is_said_once():
    broken, whole = Recorder(ValueError("no such table")), Recorder()
    (problem,) = tell(broken, whole)
    assert problem == (
        "writing to recorder is off, measuring and training go on: ValueError: no such table"
    )
    assert broken.told == []
    assert whole.told == [0, 1, 2, 3]


PASSING = [OSError(errno.ENOSPC, "full"), OSError(errno.ESTALE, "stale"), MemoryError("much")]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_may_pass_is_tried_again_at_the_next_report(error):
    sink = Recorder(error)
    (problem,) = tell(sink)
    assert problem.startswith("writing to recorder failed and is tried again: ")
    assert sink.told == ["recover", 1, 2, 3]


def test_at_the_end_nothing_is_promised():
    class Last(Sink):
        def close(self, suspects):
            full()

    said = []
    Sinks([Last()], said.append).close(suspects)
    assert said[0].startswith("writing to sink is off")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_goes_through(error):
    with pytest.raises(error):
        tell(Recorder(error()))


def test_a_full_disk_that_is_freed_loses_nothing_of_the_folder(tmp_path, monkeypatch, said):
    folder = RunFolder(tmp_path / "run", print)
    log = Log()
    sinks = Sinks([folder], log.once)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        sinks.begin(INFO)
        for epoch in (1, 2):
            sinks.epoch(record(epoch), samples)
    assert len(said()) == 1
    assert "failed and is tried again: OSError: No space left on device" in said()[0]
    sinks.epoch(record(3), samples)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full)
        sinks.epoch(record(4), samples)
    sinks.epoch(record(5), samples)
    run = read_run(tmp_path / "run")
    assert run.epochs == [record(number) for number in range(1, 6)]
    assert len(run.samples["index"]) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_that_is_freed_loses_nothing_of_the_events(tmp_path, monkeypatch, said):
    """A writer of TensorBoard that has failed once fails for good."""
    log = Log()
    folder = RunFolder(tmp_path, log.once)
    sinks = Sinks(all_sinks(log, folder, None), log.once)
    sinks.begin(INFO)
    sinks.step({"coherence": 0.0}, 1, 1.0)
    sinks.flush()
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "_write", full)
        for step in (2, 3):
            sinks.step({"coherence": float(step)}, step, 1.0)
            sinks.flush()
    assert len(said()) == 1
    sinks.step({"coherence": 4.0}, 4, 1.0)
    sinks.close(suspects)
    assert len(said()) == 1
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("prioritymonitor/coherence")
    assert [(e.step, e.value) for e in events] == [(1, 0.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_events_that_cannot_be_written_are_kept_up_to_a_bound(tmp_path, said):
    log = Log()
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run", log.once)
    sinks = Sinks(all_sinks(log, folder, None), log.once)
    sinks.begin(INFO)
    for step in range(1_500):
        sinks.step({"coherence": 0.0}, step, 1.0)
    sinks.close(suspects)
    assert len(said()) == 1


def test_the_log_is_told_of_epochs_and_the_stop(caplog):
    caplog.set_level(logging.INFO, logger="prioritymonitor")
    log = Log()
    log.epoch({**record(2), "train_loss": None, "reason": "too early", "best_epoch": 1}, samples)
    log.stop(STOP, 20, suspects)
    log.once("a problem", "a problem")
    assert [record.getMessage() for record in caplog.records] == [
        "epoch 2 · clean priority +1.0000 · too early · best epoch 1",
        "stop after epoch 2: noisy labels took over",
        "a problem",
    ]


class Raising(logging.Handler):
    def emit(self, record):
        raise RuntimeError("no connection")


def test_a_handler_of_the_log_that_raises_does_not_reach_the_caller(capsys):
    """It reached the training loop."""
    logger, handler = logging.getLogger("prioritymonitor"), Raising()
    logger.addHandler(handler)
    try:
        Log().once("a problem")
    finally:
        logger.removeHandler(handler)
    said = capsys.readouterr().err
    assert "a handler of the log raised RuntimeError: no connection" in said
    assert "a problem" in said
