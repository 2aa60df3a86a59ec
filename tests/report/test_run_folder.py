"""The run folder: chosen at the first step, whole at any time, read by the same room."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import numpy as np
import pytest

from prioritymonitor import ArgumentValueError, Decision, StopReason
from prioritymonitor.report.folder import RunFolder
from prioritymonitor.report.saved_run import read_run, read_suspects
from prioritymonitor.report.sink import RunInfo
from prioritymonitor.report.sinks import Sinks

STOP = Decision(True, StopReason.NOISY_DOMINATES, 2, 1, "noisy labels took over")
FILES = {"run.json", "epochs.jsonl", "samples.npz", "suspects.csv"}


def record(epoch, **more):
    return {"epoch": epoch, "step": 10 * epoch, "priority": 0.5 * epoch, **more}


def samples():
    return {
        "index": np.arange(4),
        "given_label": np.array([0, 1, 2, -1], np.int32),
        "predicted_label": np.array([1, 0, 0, -1], np.int32),
        "loss": np.array([0.1, 2.0, 3.0, np.nan], np.float32),
        "score": np.array([0.25, 0.75, 0.5, np.nan], np.float32),
    }


def suspects():
    return {
        "index": np.array([1, 2, 0]),
        "score": np.array([0.75, 0.5, 0.25]),
        "given_label": np.array([1, 2, 0]),
        "predicted_label": np.array([0, 0, 1]),
    }


def info(id="a", **more):
    return RunInfo(id, {"every": 8, "stop": None}, {"samples": 4, "classes": 3}, **more)


def begun(log_dir, run=None, said=None):
    """A sink that has begun, alone, as the fan-out would tell it."""
    folder = RunFolder(log_dir, (said if said is not None else []).append)
    sinks = Sinks([folder], (said if said is not None else []).append)
    sinks.begin(run or info())
    return sinks, folder


@pytest.fixture
def ended(tmp_path):
    """The folder of a run of two epochs that was closed."""
    sinks, folder = begun(tmp_path / "run")
    for epoch in (1, 2):
        sinks.epoch(record(epoch), samples)
    sinks.close(suspects)
    return folder.path


def test_a_run_that_was_closed_is_read_back(ended):
    run = read_run(ended)
    assert {path.name for path in ended.iterdir()} == FILES
    assert run.epochs == [record(1), record(2)]
    for read, written in ((run.samples, samples()), (run.suspects, suspects())):
        assert list(read) == list(written)
        assert all(np.array_equal(read[c], written[c], equal_nan=True) for c in written)
    assert [run.samples[name].dtype for name in ("loss", "given_label")] == ["f4", "i4"]


def test_settings_and_versions_are_there_from_the_first_step_on(tmp_path):
    begun(tmp_path, info(class_names=np.array(["cat", "dog", "cow"])))
    told = read_run(tmp_path).info
    assert told["id"] == "a"
    assert told["settings"] == {"every": 8, "stop": None}
    assert told["shapes"] == {"samples": 4, "classes": 3}
    assert told["class_names"] == ["cat", "dog", "cow"]
    assert told["versions"]["numpy"] == np.__version__
    assert {"python", "torch", "prioritymonitor", "tensorboard"} <= set(told["versions"])


def test_settings_become_plain_values(tmp_path):
    from torch import nn

    from prioritymonitor import StopRule

    settings = {"stop": StopRule(), "criterion": nn.CrossEntropyLoss(), "log_dir": tmp_path}
    settings["most"] = np.int64(3)
    begun(tmp_path, RunInfo("a", settings, {}))
    told = read_run(tmp_path).info["settings"]
    assert told["stop"]["patience"] == StopRule().patience
    assert (told["criterion"], told["most"]) == ("CrossEntropyLoss", 3)
    assert told["log_dir"] == str(tmp_path)


def test_epochs_and_samples_are_there_while_the_run_goes_on(tmp_path):
    sinks, _ = begun(tmp_path)
    sinks.epoch(record(1, noisy_loss=float("nan")), samples)
    run = read_run(tmp_path)
    assert run.epochs == [record(1, noisy_loss=None)]
    assert run.suspects["index"].tolist() == [1, 2, 0], "as they stand in the samples"
    assert run.suspects["score"].tolist() == [0.75, 0.5, 0.25]


def test_before_the_first_epoch_there_are_no_suspects(tmp_path):
    begun(tmp_path)
    run = read_run(tmp_path)
    assert (run.epochs, dict(run.samples)) == ([], {})
    assert all(len(column) == 0 for column in run.suspects.values())


def test_suspects_are_there_from_the_stop_on(tmp_path):
    sinks, _ = begun(tmp_path)
    sinks.epoch(record(1), samples)
    sinks.stop(STOP, 10, suspects)
    lines = (tmp_path / "suspects.csv").read_text().splitlines()
    assert lines[:2] == ["index,score,given_label,predicted_label", "1,0.750000,1,0"]


def test_a_run_without_a_step_writes_nothing(tmp_path):
    sinks = Sinks([RunFolder(tmp_path / "run", print)], print)
    sinks.flush()
    sinks.close(suspects)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_left_alone(ended):
    before = {path.name: path.read_bytes() for path in ended.iterdir()}
    said = []
    for number in (2, 3):
        _, folder = begun(ended, info(f"run {number}"), said)
        assert folder.path == ended.with_name(f"run-{number}")
    assert {path.name: path.read_bytes() for path in ended.iterdir()} == before
    assert f"log_dir {ended} holds another run; this one writes to {ended}-2" in said


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_folder_with_a_file_of_a_run_that_is_not_known_is_left_alone(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{}")
    _, folder = begun(tmp_path / "run")
    assert folder.path == tmp_path / "run-2"
    assert (tmp_path / "run" / name).read_text() == "{}"


def test_a_folder_with_the_users_own_files_is_used(tmp_path):
    (tmp_path / "model.pt").touch()
    (tmp_path / "events.out.tfevents.1").touch()
    assert begun(tmp_path)[1].path == tmp_path


def test_a_resumed_run_goes_on_in_its_folder_without_the_epochs_that_it_lost(ended):
    started = read_run(ended).info["started"]
    sinks, folder = begun(ended, info(epochs=[record(1)]))
    assert folder.path == ended
    assert read_run(ended).epochs == [record(1)]
    assert not (ended / "suspects.csv").exists(), "they were of a later state"
    sinks.epoch(record(2, priority=9.0), samples)
    assert read_run(ended).epochs == [record(1), record(2, priority=9.0)]
    assert read_run(ended).info["started"] == started


def test_a_run_resumed_in_its_first_epoch_has_no_epochs(ended):
    begun(ended)
    assert read_run(ended).epochs == []


def test_a_resumed_run_finds_at_once_what_is_in_its_way(ended):
    (ended / "suspects.csv").unlink()
    os.mkfifo(ended / "suspects.csv")
    said = []
    _, folder = begun(ended, said=said)
    assert "is no ordinary file" in said[0]
    assert folder.path == ended, "where the events go on"


def test_a_state_loaded_in_the_middle_takes_back_later_epochs(tmp_path):
    sinks, _ = begun(tmp_path)
    for epoch in (1, 2, 3):
        sinks.epoch(record(epoch), samples)
    sinks.resume_at(10, samples)
    assert read_run(tmp_path).epochs == [record(1)]


@pytest.mark.parametrize("name", ["epochs.jsonl", "samples.npz", "suspects.csv"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_is_written_through_a_link_or_a_pipe(name, kind, tmp_path):
    """A link was followed, and a pipe blocked `close()` for ever."""
    said = []
    sinks, folder = begun(tmp_path / "run", said=said)
    (tmp_path / "precious").write_text("mine")
    path = folder.path / name
    path.unlink(missing_ok=True)
    {
        "link": lambda: path.symlink_to(tmp_path / "precious"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    sinks.epoch(record(1), samples)
    sinks.close(suspects)
    assert (tmp_path / "precious").read_text() == "mine"
    (problem,) = said
    assert problem.startswith("writing to log_dir is off, measuring and training go on: ")
    assert f"{path} is no ordinary file" in problem
    assert not path.is_file() or path.is_symlink()


def test_names_that_a_former_version_wrote_to_are_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    os.mkfifo(tmp_path / "history.json.unfinished")
    (tmp_path / "suspects.csv.unfinished").symlink_to(tmp_path / "precious")
    sinks, _ = begun(tmp_path)
    sinks.epoch(record(1), samples)
    sinks.close(suspects)
    assert (tmp_path / "precious").read_text() == "mine"
    assert len(read_suspects(tmp_path)["index"]) == 3


def test_a_run_killed_at_any_time_can_be_read(tmp_path):
    script = f"""
        from tests.report.test_run_folder import *
        sinks, _ = begun(Path({str(tmp_path)!r}))
        big = {{name: np.repeat(column, 20_000) for name, column in samples().items()}}
        for epoch in range(1, 10**6):
            sinks.epoch(record(epoch), lambda: big)
            sinks.stop(STOP, 10 * epoch, suspects)
            print(epoch, flush=True)
    """
    script = "from pathlib import Path\n" + textwrap.dedent(script)
    epoch = 0
    for wait in (1, 2, 5, 11):
        for path in tmp_path.iterdir():
            path.unlink()
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            for _ in range(wait):
                epoch = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        run = read_run(tmp_path)
        assert len(run.epochs) >= epoch
        assert run.epochs == [record(number) for number in range(1, len(run.epochs) + 1)]
        assert len(run.samples["loss"]) == 80_000
        assert len(run.suspects["index"]) == 3


def test_a_line_that_a_kill_cut_short_is_left_out(ended):
    with (ended / "epochs.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    assert read_run(ended).epochs == [record(1), record(2)]


def test_samples_of_short_epochs_are_on_disk_when_it_counts(tmp_path):
    """Not each time: that would cost as much as the epochs themselves."""
    sinks, _ = begun(tmp_path)
    for number in range(1, 50):
        sinks.epoch(record(number), lambda number=number: samples() | {"loss": np.full(4, number)})
    assert len(read_run(tmp_path).epochs) == 49
    sinks.flush()
    assert read_run(tmp_path).samples["loss"].tolist() == [49] * 4


def complaint(folder):
    with pytest.raises(ArgumentValueError) as raised:
        read_run(folder)
    said = str(raised.value)
    assert "\n" not in said
    return said


def test_a_folder_that_is_missing_or_of_no_run_is_named(tmp_path):
    assert "there is no such folder" in complaint(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "there is no such folder" in complaint(tmp_path / "file")
    assert "holds no run.json; name the log_dir" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b""),
        ("run.json", b"[1, 2]"),
        ("run.json", b'{"name": "of another program"}'),
        ("run.json", b"[" * 100_000),
        ("epochs.jsonl", b'{"epo\n{"epoch": 1}\n'),
        ("epochs.jsonl", b"7\n"),
        ("epochs.jsonl", b"\xff\xfe\n"),
        ("samples.npz", b""),
        ("samples.npz", b"PK\x03\x04 and no more"),
        ("samples.npz", b"\x93NUMPY"),
        ("suspects.csv", b""),
        ("suspects.csv", b"index,score,given_label,predicted_label\n1,high,2,3\n"),
        ("suspects.csv", b"index,score,given_label,predicted_label\n1,0.5\n"),
        (
            "suspects.csv",
            b"index,score,given_label,predicted_label\n1,0.5,2,99999999999999999999\n",
        ),
        ("suspects.csv", b"index,score\n1,0.5\n"),
        ("suspects.csv", b"\xff\xfe\x00"),
    ],
)
def test_a_damaged_file_is_named(name, content, ended):
    (ended / name).write_bytes(content)
    assert complaint(ended).startswith(f"got {ended / name}, which is damaged: ")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_with_bytes_exchanged_is_read_or_named(name, ended):
    right = (ended / name).read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        wrong = bytearray(right)
        for place in random.integers(0, len(right), 3):
            wrong[place] = random.integers(0, 256)
        (ended / name).write_bytes(wrong[: random.integers(0, 2 * len(right))])
        with suppress(ArgumentValueError):
            read_run(ended)


def test_a_pipe_is_named_and_not_waited_for(ended):
    (ended / "suspects.csv").unlink()
    os.mkfifo(ended / "suspects.csv")
    assert complaint(ended) == f"got {ended / 'suspects.csv'}, which is no ordinary file"


def test_a_file_that_cannot_be_read_is_named(ended, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert complaint(ended) == f"got {ended / 'run.json'}, which can't be read: Permission denied"


def test_a_run_of_a_later_version_is_named(ended):
    told = json.loads((ended / "run.json").read_text())
    (ended / "run.json").write_text(json.dumps(told | {"schema": 99}))
    assert "is of a later prioritymonitor" in complaint(ended)


def test_a_million_samples_come_back_as_they_were(tmp_path):
    size = 1_000_000
    scores = np.linspace(1, 0, size)
    zeros = np.zeros(size, np.int32)
    many = {"index": np.arange(size), "score": scores, "given_label": zeros}
    sinks, folder = begun(tmp_path)
    sinks.epoch(record(1), lambda: many)
    sinks.close(lambda: many | {"predicted_label": zeros})
    read = read_suspects(folder.path)
    assert np.array_equal(read["index"], many["index"])
    assert np.allclose(read["score"], scores, atol=5e-7, rtol=0)
