"""How public scripts are changed and run by the benchmark of trainers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.trainers.files import Labels
from benchmarks.trainers.recipes import RECIPES, Edit, edited
from benchmarks.trainers.scripts import same_weights, watched

ROOT = Path(__file__).parents[2]
SCRIPT = """\
'''from here on import is a word'''
from __future__ import annotations
import torch

layer = torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)
data = torch.utils.data.TensorDataset(torch.randn(30, 4), torch.arange(30) % 3)
loader = torch.utils.data.DataLoader(data, 10)
for epoch in range(2):
    for x, y in loader:
        torch.nn.functional.cross_entropy(layer(x), y).backward()
        optimizer.step()
"""
LINE = "monitor = GradientMonitor(layer, optimizer, loader, log_dir='runs/a')"
LINES = (
    Edit("optimizer.step()", "print('a step')"),
    Edit("for epoch in", LINE, above=True),
    Edit("for x, y in loader", "print('a batch')", deeper=True),
)
IMPORT = "from prioritymonitor import GradientMonitor"


def test_lines_are_put_where_words_stand_and_as_deep():
    lines = edited(SCRIPT, LINES, IMPORT).splitlines()
    assert lines[1:4] == ["from __future__ import annotations", IMPORT, "import torch"]
    place = lines.index("for epoch in range(2):")
    assert lines[place - 1] == LINE
    assert lines[place + 2] == "        print('a batch')"
    assert lines[-1] == "        print('a step')"


def test_a_part_of_a_line_is_replaced():
    changed = edited(SCRIPT, (Edit("DataLoader(", "20", instead="10"),))
    assert changed == SCRIPT.replace("(data, 10)", "(data, 20)")


@pytest.mark.parametrize("words", ["not there", "loader"])
def test_words_that_stand_in_no_line_or_in_several_are_an_error(words):
    with pytest.raises(SystemExit, match="has changed"):
        edited(SCRIPT, (Edit(words, "x"),))


def test_each_script_gets_two_lines_or_one_callback():
    for recipe in RECIPES:
        assert len(recipe.lines) == (1 if "integrations" in recipe.imports else 2), recipe.name


def run(folder, source):
    folder.mkdir()
    (folder / "script.py").write_text(source)
    told = folder / "told.json"
    command = [sys.executable, "-m", "benchmarks.trainers.child", told, "script.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return json.loads(told.read_text())


def test_a_run_tells_the_weights_after_each_step_and_what_the_monitor_knows(tmp_path):
    plain = run(tmp_path / "plain", SCRIPT)
    lines = run(tmp_path / "lines", edited(SCRIPT, LINES, IMPORT))
    other = run(tmp_path / "other", SCRIPT.replace("0.1)", "0.2)"))
    assert len(set(plain["weights"])) == 6
    assert same_weights(plain, lines) == {"steps": 6, "same": True}
    assert same_weights(plain, other) == {"steps": 6, "same": False}
    right = torch.arange(30) % 3
    true = right.clone()
    true[:9] = (true[:9] + 1) % 3
    known = watched(tmp_path / "lines" / "runs" / "a", Labels(right, true))
    assert known["identity"]
    assert (known["epochs"], known["visited"], known["visits"]) == (2, 1.0, 2.0)
    turned = np.roll(right.numpy(), 1)
    shifted = watched(tmp_path / "lines" / "runs" / "a", Labels(torch.from_numpy(turned), true))
    assert not shifted["identity"]
