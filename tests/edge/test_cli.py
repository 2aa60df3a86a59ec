"""The command line: the demo from start to end, the suspects as CSV, and its complaints."""

import csv
import gzip
import os
import re
import shutil
import subprocess
import sys

import matplotlib.image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from prioritymonitor import __version__
from prioritymonitor.cli import app, main
from prioritymonitor.demo.data import digits
from prioritymonitor.report.saved_run import read_run

HEADER = ["index", "score", "given_label", "predicted_label"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(text):
    return list(csv.reader(text.splitlines()))


def value(report, row):
    """What the demo's table says in a row."""
    return re.search(rf"{row}.*│ (.*?) *│", report).group(1)


def accuracy(report, row):
    return float(value(report, row).removesuffix("%"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Folder and report of one demo with all defaults."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return folder, run("demo", "--log-dir", folder)


@pytest.fixture
def complaint(monkeypatch, capsys):
    """Runs the command as the shell does; gives what it says when it exits with code 2."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["prioritymonitor", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        assert exited.value.code == 2
        return capsys.readouterr().err

    return call


def test_the_demo_is_no_loop_that_is_told_to_read_the_advice(tmp_path, caplog):
    run("demo", "--log-dir", tmp_path / "demo", "--epochs", 3)
    assert not any("should_stop" in record.getMessage() for record in caplog.records)


def test_the_demo_hands_back_better_weights_than_those_of_the_last_epoch(demo):
    _, report = demo
    assert accuracy(report, "returned weights") > accuracy(report, "last epoch")
    assert value(report, "stopped at") != "no stop"


def test_going_on_after_the_stop_changes_nothing_that_the_monitor_gives(demo, tmp_path):
    _, report = demo
    stop = re.search(r"epoch (\d+) of 60", value(report, "stopped at")).group(1)
    until_stop = run("demo", "--log-dir", tmp_path, "--epochs", stop)
    assert value(until_stop, "stopped at") == f"epoch {stop} of {stop}"
    for row in ("returned weights", "precision", "recall", "estimated noise rate"):
        assert value(until_stop, row) == value(report, row)


def test_the_demo_says_where_everything_is(demo):
    folder, report = demo
    for name in ("u_shape.png", "suspects.csv", "epochs.jsonl"):
        assert str(folder / name) in report
        assert (folder / name).is_file()
    assert f"tensorboard --logdir {folder}" in report
    assert f"prioritymonitor suspects {folder}" in report


def test_the_picture_is_a_png(demo):
    folder, _ = demo
    height, width, _ = matplotlib.image.imread(folder / "u_shape.png", "png").shape
    assert width > height > 500


def test_the_events_of_the_demo_hold_the_priority_and_the_ratio(demo):
    folder, _ = demo
    events = EventAccumulator(str(folder)).Reload()
    assert {"prioritymonitor/priority", "prioritymonitor/dominance_ratio"} <= set(
        events.Tags()["scalars"]
    )


def test_suspects_prints_the_mislabelled_samples_likeliest_first(demo):
    folder, _ = demo
    header, *rows = rows_of(run("suspects", folder))
    assert header == HEADER
    scores = [float(score) for _, score, _, _ in rows]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0.5

    problem = digits(noise=0.4, seed=0)
    assert all(int(given) == problem.given_labels[int(index)] for index, _, given, _ in rows)
    right = [bool(problem.is_wrong[int(index)]) for index, _, _, _ in rows]
    assert sum(right) > 0.9 * len(right)


def test_top_and_min_score_choose_how_many_suspects_are_printed(demo):
    folder, _ = demo
    every = rows_of(run("suspects", folder, "--min-score", 0))
    assert len(every) == 1 + len(digits(noise=0.4, seed=0).images)
    assert rows_of(run("suspects", folder, "--top", 3)) == every[:4]


@pytest.mark.parametrize("top", ["3", "1000"], ids=["within the buffer", "beyond the buffer"])
def test_suspects_ends_quietly_when_its_reader_goes_away(demo, top):
    folder, _ = demo
    command = [sys.executable, "-c", "from prioritymonitor.cli import main; main()"]
    with subprocess.Popen(
        [*command, "suspects", str(folder), "--top", top],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_suspects_names_a_folder_of_no_run(complaint, tmp_path):
    said = complaint("suspects", tmp_path)
    assert said.startswith(f"prioritymonitor: got {tmp_path}, which holds no run.json")
    assert said.count("\n") == 1
    assert "there is no such folder" in complaint("suspects", tmp_path / "none")


def test_suspects_names_a_damaged_file(complaint, demo, tmp_path):
    """A traceback came."""
    folder, _ = demo
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "suspects.csv").write_text("index,score,given_label,predicted_label\n1,x\n")
    said = complaint("suspects", tmp_path / "run")
    assert f"got {tmp_path / 'run' / 'suspects.csv'}, which is damaged: " in said
    assert said.count("\n") == 1


def test_suspects_of_a_killed_run_are_those_of_its_last_epoch(demo, tmp_path):
    folder, _ = demo
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "suspects.csv").unlink()
    assert run("suspects", tmp_path / "run") == run("suspects", folder)


def write_fashion_mnist(folder, images=40, pixels=16):
    for part in ("train", "t10k"):
        labels = bytes(i % 10 for i in range(images))
        inks = bytes(20 * label + k for label in labels for k in range(pixels))
        for name, header, content in (("labels-idx1", 8, labels), ("images-idx3", 16, inks)):
            with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + content)


def test_the_demo_runs_on_the_files_of_fashion_mnist(tmp_path):
    write_fashion_mnist(tmp_path)
    options = ("--epochs", 2, "--noise", 0.25, "--optimizer", "sgd", "--log-dir", tmp_path / "a")
    report = run("demo", "--data", tmp_path, *options)
    assert report.startswith("Fashion-MNIST: 10 of 40 training labels are wrong.")
    assert value(report, "stopped at") == "no stop"
    assert (tmp_path / "a" / "u_shape.png").is_file()


def test_the_demo_runs_without_wrong_labels(tmp_path):
    report = run("demo", "--epochs", 1, "--noise", 0, "--log-dir", tmp_path)
    assert value(report, "recall") == "-"


def test_the_demo_names_a_missing_data_file(complaint, tmp_path):
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    said = complaint("demo", "--data", tmp_path, "--log-dir", tmp_path / "a")
    assert f"got {tmp_path}, which holds no t10k-images-idx3-ubyte.gz" in said
    assert not (tmp_path / "a").exists()


def test_the_demo_names_a_data_file_that_is_cut_short(complaint, tmp_path):
    write_fashion_mnist(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-8])
    assert f"got {path}, which is no complete gzip file" in complaint("demo", "--data", tmp_path)


def test_a_share_of_wrong_labels_above_one_is_refused(complaint):
    assert "--noise" in complaint("demo", "--noise", 1.5)


def test_the_demo_leaves_a_run_folder_in_use_alone(tmp_path):
    for folder in ("demo", "demo-2"):
        report = run("demo", "--epochs", 1, "--log-dir", tmp_path / "demo")
        assert str(tmp_path / folder / "u_shape.png") in report
        assert (tmp_path / folder / "u_shape.png").is_file()
        assert len(read_run(tmp_path / folder).epochs) == 1


def test_the_demo_names_a_folder_that_cannot_be_written_to(complaint, tmp_path):
    (tmp_path / "file").touch()
    said = complaint("demo", "--epochs", 1, "--log-dir", tmp_path / "file" / "run")
    assert f"got the run folder {tmp_path / 'file' / 'run'}, which can't be written to" in said


def test_version_is_that_of_the_package():
    assert run("--version") == f"prioritymonitor {__version__}\n"


@pytest.mark.parametrize("module", ["typer", "rich", "matplotlib"])
def test_without_the_extra_one_line_says_what_to_install(module, tmp_path):
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from prioritymonitor.cli import main; main()\n"
    )
    command = [sys.executable, "-c", script, "demo", "--log-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert f"got no module '{module}" in result.stderr
    assert "pip install 'prioritymonitor[cli]'" in result.stderr
    assert result.stderr.count("\n") == 1


HEAVY = ["torch", "sklearn", "matplotlib", "tensorboard"]


def loaded_by(*arguments):
    """Heavy modules that a process of the command line has loaded at its end."""
    script = f"""if True:
        import atexit, sys
        atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr))
        from prioritymonitor.cli import main
        main()
    """
    command = [sys.executable, "-c", script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.strip()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["suspects", "--help"]])
def test_help_and_version_load_nothing_heavy(arguments):
    assert loaded_by(*arguments) == "[]"


def test_reading_a_run_loads_nothing_heavy(demo):
    folder, _ = demo
    assert loaded_by("suspects", folder) == "[]"


def test_heavy_modules_would_be_noticed(tmp_path):
    assert "torch" in loaded_by("demo", "--epochs", 1, "--log-dir", tmp_path)


@pytest.mark.parametrize("module", ["torch", "sklearn", "matplotlib"])
def test_a_run_can_be_read_where_they_are_not_installed(module, demo):
    folder, _ = demo
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from prioritymonitor.cli import main; main()\n"
    )
    command = [sys.executable, "-c", script, "suspects", str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout == run("suspects", folder)
