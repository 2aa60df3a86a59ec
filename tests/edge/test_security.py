"""What is read is never executed, and what is shown is text."""

import ast
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import prioritymonitor
from prioritymonitor import GradientMonitor, PriorityMonitorError
from prioritymonitor.report.saved_run import read_run
from tests.support.small_run import SmallRun

PACKAGE = Path(prioritymonitor.__file__).parent
ROOT = PACKAGE.parent

EXECUTING = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy",
           "yaml", "subprocess", "code"}  # fmt: skip
ALLOWED = {
    ("script/as_main.py", "runpy"),  # `prioritymonitor run` runs the script that the user names
    ("integrations/transformers.py", "pickle.UnpicklingError"),  # what torch.load raises
}


def executing(source):
    """What in a module could run what it reads, by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if (node.module or "").split(".")[0] in MODULES:
                yield from (f"{node.module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in EXECUTING or called in ("os.system", "os.popen"):
                yield called
            if called in ("torch.load", "torch.jit.load") and options.get("weights_only") != "True":
                yield called
            if called in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
                yield called


def test_nothing_that_is_read_is_executed():
    found = {
        (file.relative_to(PACKAGE).as_posix(), name)
        for file in PACKAGE.rglob("*.py")
        for name in executing(file.read_text())
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "import subprocess",
    ],
)
def test_what_executes_would_be_noticed(source):
    assert [*executing(source)]


class Executed:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


def test_a_pickle_in_a_run_folder_is_not_executed(tmp_path):
    run = SmallRun()
    with run.watched(log_dir=tmp_path / "run") as monitor:
        run.train(1)
    made = tmp_path / "made"
    objects = np.array([Executed(made)], dtype=object)
    np.savez(monitor.log_dir / "samples.npz", score=objects)
    with pytest.raises(PriorityMonitorError, match="is damaged"):
        read_run(monitor.log_dir)
    assert not made.exists()


HOSTILE = ["\x1b[2J\x07cleared", "=HYPERLINK(1)", "line\nbreak", "</script>", '"; DROP', "‮gnp"]


def test_class_names_get_into_the_run_folder_as_json_and_into_no_other_file(tmp_path, caplog):
    caplog.set_level(logging.DEBUG, logger="prioritymonitor")
    run = SmallRun()
    with run.watched(log_dir=tmp_path / "run", class_names=HOSTILE[:5], every=1) as monitor:
        run.train(3)
    assert json.loads((monitor.log_dir / "run.json").read_bytes())["class_names"] == HOSTILE[:5]
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", (monitor.log_dir / "run.json").read_bytes())
    rows = (monitor.log_dir / "suspects.csv").read_text().splitlines()
    assert rows[0] == "index,score,given_label,predicted_label"
    assert all(re.fullmatch(r"\d+,[\d.]+,\d+,-?\d+", row) for row in rows[1:])
    assert not any(name in record.getMessage() for name in HOSTILE for record in caplog.records)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_files_are_shown_without_control_characters(name, tmp_path):
    folder = tmp_path / name.replace("/", "-")
    with pytest.raises(PriorityMonitorError) as raised:
        read_run(folder)
    assert str(raised.value).isprintable()


def test_names_in_the_log_are_shown_without_control_characters(tmp_path, caplog):
    folder = tmp_path / "run\x1b[2J\nforged line"
    for _ in range(2):  # the second one says that the folder is in use
        run = SmallRun()
        with run.watched(log_dir=folder):
            run.train(1)
    assert any("holds another run" in record.getMessage() for record in caplog.records)
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_errors_of_the_users_code_are_shown_without_control_characters(caplog):
    class Loss(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            return super().forward(logits, labels)

    class Writer:
        def add_scalar(self, *arguments):
            raise ValueError("\x1b[2J\nforged line")

    run = SmallRun()
    monitor = GradientMonitor(run.model, run.optimizer, run.loader, every=1, writer=Writer())
    run.train(2)
    monitor.close()
    assert any("forged line" in record.getMessage() for record in caplog.records)
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert torch.is_grad_enabled()
