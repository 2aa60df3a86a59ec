"""The rooms lie in layers: a module imports from its own room and from the layers below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prioritymonitor

PACKAGE = Path(prioritymonitor.__file__).parent

LAYERS = [
    {"connections", "errors", "records", "tags", "type_names"},
    {"loaded", "meetings"},
    {"capture", "samples", "stopping", "report", "ranks"},
    {"gradients"},
    {"arguments", "data_parallel"},
    {"joined_steps"},
    {"attached", "in_use", "judge", "loop", "state", "steps", "validation"},
    {"run"},
    {"readings"},
    {"monitor"},
    {"__init__"},
    {"integrations", "demo", "script"},
    {"cli"},
    {"__main__"},
]
"""The lowest first. Rooms of one layer know nothing of each other."""


def level_of(module):
    room = module.split(".")[0]
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


def imports_of(file):
    """Modules of ours that a file imports, as dotted names within the package."""
    here = list(file.relative_to(PACKAGE).parent.parts)
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # names for a reader, never loaded
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = here[: len(here) - node.level + 1]
            elif (node.module or "").split(".")[0] == "prioritymonitor":
                base = []
            else:
                continue
            named = (node.module or "").removeprefix("prioritymonitor").strip(".")
            base = [*base, *filter(None, named.split("."))]
            names = [alias.name for alias in node.names]
            yield from [".".join(base)] if base else map(_module_of, names)


def _module_of(name):
    """The module that a name of the package itself is, or stands in."""
    return name if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir() else "__init__"


def wrong_arrows():
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for other in imports_of(file):
            is_own = module.split(".")[0] == other.split(".")[0]
            if not is_own and level_of(other) >= level_of(module):
                yield f"{module} -> {other}"


def test_imports_point_downwards():
    assert sorted(wrong_arrows()) == []


def test_an_import_against_the_flow_would_be_noticed(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LAYERS", list(reversed(LAYERS)))
    assert "monitor -> run" in list(wrong_arrows())


def test_the_public_names_are_the_documented_ones():
    assert {*prioritymonitor.__all__} == {
        "GradientMonitor",
        "StopRule",
        "Decision",
        "StopReason",
        "Suspect",
        "PriorityMonitorError",
        "ArgumentTypeError",
        "ArgumentValueError",
        "corrupt_labels",
    }
    assert all(callable(getattr(prioritymonitor, name)) for name in prioritymonitor.__all__)


def test_the_names_are_shown_before_they_are_loaded():
    assert {*prioritymonitor.__all__, "__version__"} == {*dir(prioritymonitor)}
    with pytest.raises(AttributeError, match="has no attribute 'Monitor'"):
        prioritymonitor.Monitor  # noqa: B018


def test_importing_the_package_imports_nothing_optional():
    """Nor what is heavy."""
    optional = [
        "torch",
        "numpy",
        "tensorboard",
        "typer",
        "rich",
        "matplotlib",
        "sklearn",
        "lightning",
        "transformers",
        "ignite",
        "skorch",
        "opacus",
    ]
    script = f"import sys, prioritymonitor; print([m for m in {optional} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]"
