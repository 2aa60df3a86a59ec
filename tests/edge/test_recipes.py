"""The scripts of the page Recipes run, go on after an interruption, and print what it says."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
PAGE = (ROOT / "docs" / "pages" / "recipes.md").read_text()

TRAINERS = {
    "plain.py": "torch",
    "lightning_fit.py": "lightning",
    "transformers_trainer.py": "transformers",
    "accelerate_loop.py": "accelerate",
    "fabric_loop.py": "lightning",
    "ignite_engine.py": "ignite",
    "skorch_net.py": "skorch",
    "timm_loop.py": "timm",
    "keras_loop.py": "keras",
}
"""Scripts that end at a stop, and the package that each needs."""

MANY = "nn.Linear(512, 21)"
"""So many classes that no class has values of its own."""

OURS = re.compile(r"\b(GradientMonitor\w*|monitor|callback|handler)\b")


def needs(package):
    if package == "timm" and importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm needs torchvision, whose builds don't go with a torch for CPUs only")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def run(folder, *command, **variables):
    """Run Python there; its output."""
    alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "KERAS_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=os.environ | alone | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "identity" not in done.stderr
    return done


def without_numbers(text):
    return re.sub(r"\d[\d.]*", "#", text)


def printed_on_the_page(name):
    """What the page says after a script: the next block of text."""
    return re.search(rf'"{name}".*?```text\n(.*?)\n *```', PAGE, re.DOTALL).group(1)


@pytest.mark.parametrize(("name", "package"), TRAINERS.items(), ids=TRAINERS)
def test_a_recipe_goes_on_after_an_interruption_and_ends_at_the_stop(name, package, tmp_path):
    needs(package)
    source = (RECIPES / name).read_text()
    interrupted = tmp_path / name
    interrupted.write_text(re.sub(r"\b60\b", "3", source))
    assert interrupted.read_text() != source
    assert "noisy labels took over" not in run(tmp_path, interrupted).stdout

    lines = run(tmp_path, RECIPES / name).stdout.splitlines()[-2:]
    assert without_numbers("\n".join(lines)) == without_numbers(printed_on_the_page(name))
    wrong, suspects = map(int, re.findall(r"\d+", lines[1]))
    assert wrong > 0.9 * suspects > 450  # of 719 wrong labels; skorch holds a fifth out
    (folder,) = (tmp_path / "runs").iterdir()
    records = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [*range(1, len(records) + 1)]
    assert records[-1]["reason"] == "NOISY_DOMINATES"


def test_an_unchanged_script_is_watched_by_the_command_line(tmp_path):
    command = re.search(r"prioritymonitor run train.py ([^\n]*)", PAGE).group(1).split()
    script = RECIPES / "train.py"
    done = run(tmp_path, "-m", "prioritymonitor", "run", script, *command)
    assert done.stdout == run(tmp_path, script, *command).stdout
    said = done.stderr.splitlines()[-1]
    assert said.startswith("prioritymonitor: noisy labels took over after epoch")
    assert "run folder runs/train" in said
    assert (tmp_path / "runs" / "train" / "best_weights.pt").exists()


def test_mlflow_gets_the_values_that_are_written(tmp_path):
    needs("mlflow")
    # Its file store holds no value beside values of single classes below its name.
    script = tmp_path / "mlflow_run.py"
    without_classes = (RECIPES / script.name).read_text().replace("nn.Linear(512, 10)", MANY)
    script.write_text(without_classes)
    store = tmp_path / "store"
    variables = {"MLFLOW_TRACKING_URI": store.as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    run(tmp_path, script, **variables)

    (values,) = store.glob("*/*/metrics/prioritymonitor")
    lines = (tmp_path / "runs" / "mlflow" / "epochs.jsonl").read_text().splitlines()
    for name in ("epoch", "agreement", "train_loss"):
        got = [[*map(float, row.split()[1:])] for row in (values / name).read_text().splitlines()]
        written = [[record[name], record["step"]] for record in map(json.loads, lines)]
        assert got == [pytest.approx(pair, rel=1e-6) for pair in written]
    assert (values / "dominance_ratio").exists()
    assert [*store.glob("*/*/artifacts/epochs.jsonl")]


def test_cleanlab_takes_the_suspects_as_its_issues(tmp_path):
    needs("cleanlab")
    printed = run(tmp_path, RECIPES / "cleanlab_table.py").stdout
    columns, rows, *_ = printed_on_the_page("cleanlab_table.py").split("index")
    assert printed.startswith(columns.rstrip())
    assert len(rows.strip().splitlines()) == len(printed.splitlines()) - 2
    with_all, with_others = (float(line.split()[-1]) for line in printed.splitlines()[-2:])
    assert with_others > with_all


@pytest.mark.parametrize("name", [path.name for path in sorted(RECIPES.glob("*.py"))])
def test_the_page_shows_each_recipe_whole_and_marks_the_lines_of_the_monitor(name):
    lines = (RECIPES / name).read_text().splitlines()
    assert len(lines) <= 45
    ours = [number for number, line in enumerate(lines[1:], start=2) if OURS.search(line)]
    marked = re.search(
        rf'```python title="{name}"(?: hl_lines="([\d ]+)")?\n *--8<--\n *{name}\n *--8<--', PAGE
    )
    assert [*map(int, (marked.group(1) or "").split())] == ours
