"""Data flows one way: capture, attribution, statistics, decision, reporting; and light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import prioritymonitor

PACKAGE = Path(prioritymonitor.__file__).parent

LEAVES = {"records", "errors"}
ENGINE = LEAVES | {
    "capture.hooks",
    "capture.parameters",
    "capture.engines.check",
    "capture.engines.engine",
    "capture.engines.sums",
}
ALLOWED = {
    "records": set(),
    "errors": set(),
    # pure: torch and the records, nothing else of ours
    "attribution": LEAVES,
    "blocks": LEAVES,
    "statistics": LEAVES,
    "membership": LEAVES,
    "decision": LEAVES,
    "health": LEAVES,
    "cadence": set(),
    # effects, each with its own kind of thing
    "stopwatch": set(),
    "capture.hooks": {"stopwatch"},
    "capture.losses.observed": LEAVES,
    "capture.losses.targets": LEAVES | {"capture.losses.observed"},
    "capture.losses.form": set(),
    "capture.losses.cross_entropy": LEAVES | {"capture.losses.observed"},
    "capture.losses.criterion": {
        "capture.losses",
        "capture.losses.form",
        "capture.losses.observed",
    },
    "capture.losses.dense": LEAVES | {"capture.losses.observed"},
    "capture.positions": set(),
    "capture.origin": set(),
    "capture.head": {
        *("capture.hooks", "capture.origin", "capture.positions", "capture.quiet"),
        "capture.uncompiled",
    },
    "capture.quiet": set(),
    "capture.uncompiled": {"capture.hooks", "capture.quiet"},
    "capture.batches": set(),
    "capture.loader": {"capture.batches", "capture.hooks"},
    "capture.passes": LEAVES
    | {
        *("capture.batches", "capture.head", "capture.origin", "capture.positions"),
        *("capture.losses.criterion", "capture.losses.form"),
    },
    "capture.observer": LEAVES
    | {
        *("capture.passes", "capture.losses.observed", "capture.losses.criterion"),
        *("capture.losses.cross_entropy", "capture.losses.dense"),
    },
    "capture.step": LEAVES
    | {
        *("capture.batches", "capture.hooks", "capture.head", "capture.loader", "capture.passes"),
        *("capture.observer", "capture.origin", "capture.all_parameters", "capture.parameters"),
        "capture.undone",
    },
    "capture.undone": {"capture.hooks"},
    "capture.engines.check": LEAVES
    | {"capture.hooks", "capture.parameters", "capture.quiet", "capture.engines.engine"},
    "capture.engines.sums": LEAVES,
    "capture.engines.engine": LEAVES | {"capture.hooks"},
    "capture.engines.uses": set(),
    "capture.engines.convolution": {"capture.engines.uses"},
    "capture.engines.calls": LEAVES | {"capture.engines.uses", "capture.quiet"},
    "capture.engines.layouts": {
        *("capture.head", "capture.quiet", "capture.engines.calls", "capture.engines.engine"),
        "capture.engines.ledger",
    },
    "capture.engines.attention": {
        *("capture.quiet", "capture.engines.calls", "capture.engines.uses"),
    },
    "capture.engines.formulas": {
        *("capture.engines.attention", "capture.engines.calls", "capture.engines.uses"),
        "capture.engines.convolution",
    },
    "capture.engines.recompute": {
        *("capture.engines.calls", "capture.quiet", "capture.engines.uses"),
    },
    "capture.engines.layer_watch": {
        *("capture.hooks", "capture.parameters", "capture.quiet", "capture.engines.calls"),
    },
    "capture.engines.broadcasts": {"capture.hooks"},
    "capture.engines.ledger": LEAVES
    | {
        *("capture.parameters", "capture.engines.calls", "capture.engines.check"),
        "capture.engines.uses",
    },
    "capture.engines.closed_form": LEAVES
    | {
        *("capture.hooks", "capture.parameters", "capture.quiet", "capture.engines.broadcasts"),
        *("capture.engines.calls", "capture.engines.engine", "capture.engines.formulas"),
        *(
            "capture.engines.ledger",
            "capture.engines.recompute",
            "capture.engines.uses",
            "capture.engines.layer_watch",
            "capture.engines.sums",
            "capture.engines.layouts",
        ),
    },
    "capture.parameters": {"capture.hooks"},
    "capture.all_parameters": LEAVES
    | {
        *("capture.hooks", "capture.parameters", "capture.passes"),
        "capture.engines.engine",
    },
    "capture.engines.mapped": LEAVES | {"capture.head"},
    "capture.engines.layer_samples": {"capture.hooks"},
    "capture.engines.func": ENGINE | {"capture.engines.mapped", "capture.quiet"},
    "capture.engines.opacus": ENGINE | {"capture.engines.layer_samples", "capture.quiet"},
    "history": LEAVES,
    "averaging": LEAVES,
    "noise": LEAVES,
    "distributed": set(),
    "reporting.tensorboard": LEAVES,
    "reporting.log": LEAVES,
    "reporting.run_folder": LEAVES,
    "reporting.reports": LEAVES
    | {"reporting.log", "reporting.run_folder", "reporting.tensorboard"},
    # what puts the stages together, in their order
    "meter": LEAVES | {"attribution", "blocks", "statistics"},
    "pace": {"cadence", "distributed", "stopwatch"},
    "path": LEAVES | {"history", "membership", "statistics", "decision"},
    "grouping": LEAVES | {"membership", "noise", "path"},
    "arguments": LEAVES | {"capture.head", "decision"},
    "settings": {"decision", "noise"},
}
COMPOSES = {"watch", "monitor", "__init__"}
EDGE = ("cli", "demo")


def module_name(file):
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(file):
    """Modules of ours that a file imports, as dotted names within the package."""
    here = file.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in base if part)
            found |= {base} if base else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prioritymonitor"):
            found.add(node.module.removeprefix("prioritymonitor").strip("."))
    return found


def forbidden_arrows(files):
    arrows = []
    for file in files:
        name = module_name(file)
        if name in COMPOSES or name.startswith(EDGE) or name.endswith("__init__"):
            continue
        arrows += [f"{name} -> {other}" for other in imports_of(file) - ALLOWED[name]]
    return arrows


def test_no_import_goes_against_the_flow():
    assert forbidden_arrows(PACKAGE.rglob("*.py")) == []


def test_a_forbidden_import_would_be_noticed(monkeypatch):
    monkeypatch.setitem(ALLOWED, "meter", LEAVES)
    assert sorted(forbidden_arrows([PACKAGE / "meter.py"])) == [
        "meter -> attribution",
        "meter -> blocks",
        "meter -> statistics",
    ]


def test_nothing_but_the_edge_imports_the_edge():
    for file in PACKAGE.rglob("*.py"):
        if not module_name(file).startswith(EDGE):
            assert not any(name.startswith(EDGE) for name in imports_of(file)), file


def test_the_public_names_are_the_documented_ones():
    assert {name for name in vars(prioritymonitor) if name[0].isupper()} == {
        "GradientMonitor",
        "StopRule",
        "Decision",
        "StopReason",
        "Suspect",
        "PriorityMonitorError",
        "ArgumentTypeError",
        "ArgumentValueError",
    }
    assert callable(prioritymonitor.corrupt_labels)


def test_importing_the_package_imports_nothing_optional():
    optional = ["typer", "rich", "matplotlib", "sklearn", "lightning", "transformers", "opacus"]
    script = f"import sys, prioritymonitor; print([m for m in {optional} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert printed.stdout.strip() == "[]"
