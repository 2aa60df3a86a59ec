"""Benchmarks run from a clone, and reach into the package no further than its users may."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").rglob("*.py"))
PURE = (
    "errors",
    "records",
    "tags",
    "capture.projection",
    "gradients.groups",
    "gradients.statistics",
    "judge",
    "samples",
    "stopping",
)
"""What computes without effects on anything."""
PUBLIC = "integrations"
"""Public names that are imported from where they are."""


def imported(path):
    """Modules of the package that a file imports, without the package's name."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in getattr(node, "names", [])]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            package, *inside = name.split(".")
            folder = ROOT.joinpath("prioritymonitor", *inside)
            if package == "prioritymonitor" and inside:
                if not (folder.is_dir() or folder.with_suffix(".py").is_file()):
                    inside.pop()  # a name in a module
                yield ".".join(inside)


def is_pure(module):
    if not module or module.split(".")[0] == PUBLIC:
        return True
    return any(module == one or module.startswith(one + ".") for one in PURE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_public_names_and_pure_rooms_are_imported(path):
    assert [module for module in imported(path) if not is_pure(module)] == []


@pytest.mark.parametrize(
    ("line", "room"),
    [
        ("from prioritymonitor.capture.hooks import Guard", "capture.hooks"),
        ("from prioritymonitor.capture import hooks", "capture.hooks"),
        ("from prioritymonitor import monitor", "monitor"),
        ("import prioritymonitor.monitor", "monitor"),
    ],
)
def test_an_import_of_a_room_with_effects_would_be_seen(line, room, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"{line}\nfrom prioritymonitor import StopRule\n")
    assert [module for module in imported(script) if not is_pure(module)] == [room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_can_be_imported(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in ("benchmarks", "prioritymonitor"):
            raise
        pytest.skip(f"{missing.name} is not installed")


def test_a_script_starts_as_the_documentation_says():
    command = [sys.executable, "-m", "benchmarks.overhead.steps", "--help"]
    assert "--pairs" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
