"""The command line: the demo from start to end, the suspects as CSV, and its complaints."""

import csv
import gzip
import os
import re
import subprocess
import sys

import matplotlib.image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from prioritymonitor import __version__
from prioritymonitor.cli import app, main
from prioritymonitor.demo.data import digits
from prioritymonitor.demo.folder import fresh_folder

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
    for name in ("u_shape.png", "suspects.csv", "history.json"):
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


def test_suspects_names_a_folder_that_holds_none(complaint, tmp_path):
    said = complaint("suspects", tmp_path)
    assert said.startswith(f"prioritymonitor: got {tmp_path}, which holds no suspects.csv")
    assert said.count("\n") == 1


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


def test_a_run_folder_in_use_is_left_alone(tmp_path):
    wanted = tmp_path / "demo"
    assert fresh_folder(wanted) == wanted
    assert fresh_folder(wanted) == wanted, "it is still empty"
    (wanted / "suspects.csv").touch()
    assert fresh_folder(wanted) == tmp_path / "demo-2"
    (tmp_path / "demo-2" / "suspects.csv").touch()
    assert fresh_folder(wanted) == tmp_path / "demo-3"


def test_version_is_that_of_the_package():
    assert run("--version") == f"prioritymonitor {__version__}\n"


@pytest.mark.parametrize("module", ["typer", "matplotlib"])
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
