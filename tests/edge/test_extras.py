"""Without any extra: what works all the same, and what is said where something needs one."""

import functools
import importlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prioritymonitor.integrations.trainer_missing import says_what_to_install

ROOT = Path(__file__).parents[2]

SCRIPT = """if True:
    import contextlib, importlib, io, json, sys

    present, absent = map(frozenset, json.loads(sys.argv[1]))

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            is_absent = name.partition(".")[0] in absent
            return None if is_absent else self.finder.find_spec(name, path, target)

        def find_distributions(self, context):
            for found in getattr(self.finder, "find_distributions", lambda _: [])(context):
                if found.name.lower().replace("_", "-").replace(".", "-") in present:
                    yield found

        def invalidate_caches(self):
            getattr(self.finder, "invalidate_caches", lambda: None)()

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

    from tests.support.small_run import SmallRun

    run = SmallRun()
    monitor = run.watched(log_dir=sys.argv[2], scope="all")
    for _ in range(2):
        for x, y, _ in run.loader:
            run.step(x, y)
    monitor.close()

    said = {"epochs": len(monitor.history())}
    for trainer in ("ignite", "lightning", "skorch", "transformers"):
        try:
            importlib.import_module(f"prioritymonitor.integrations.{trainer}")
        except ImportError as error:
            said[trainer] = str(error)
    try:
        SmallRun().watched(scope="all", engine="opacus")
    except ValueError as error:
        said["opacus"] = str(error)
    with contextlib.redirect_stderr(io.StringIO()) as line:
        try:
            import prioritymonitor.cli
        except SystemExit:
            said["cli"] = line.getvalue()
    print(json.dumps(said))
"""


@functools.cache
def needed(name):
    """A distribution and all that it needs, without extras."""
    found, waiting = set(), [name]
    while waiting:
        one = canonicalize_name(waiting.pop())
        if one in found:
            continue
        try:
            requirements = metadata.requires(one) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(one)
        wanted = map(Requirement, requirements)
        waiting += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@functools.cache
def absent_without_extras():
    """Modules that a plain `pip install prioritymonitor` does not bring."""
    present = needed("prioritymonitor")
    return sorted(
        module
        for module, distributions in metadata.packages_distributions().items()
        if present.isdisjoint(map(canonicalize_name, distributions))
    )


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Run folder of a training without any extra, and what is said there."""
    folder = tmp_path_factory.mktemp("runs") / "bare"
    modules = json.dumps([sorted(needed("prioritymonitor")), absent_without_extras()])
    command = [sys.executable, "-c", SCRIPT, modules, str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout)


def test_each_extra_is_absent_where_none_is_installed():
    trainers = {"ignite", "lightning", "pytorch_lightning", "skorch", "transformers", "accelerate"}
    installed = {*metadata.packages_distributions()}
    command_line = {"typer", "rich", "matplotlib", "sklearn"}
    assert (trainers | command_line | {"opacus"}) & installed <= {*absent_without_extras()}
    assert {"torch", "numpy", "tensorboard", "prioritymonitor"}.isdisjoint(absent_without_extras())


def test_a_training_is_watched_and_written_without_any_extra(bare):
    folder, said = bare
    assert said["epochs"] == 2
    assert [*folder.glob("events.out.tfevents.*")]
    assert len((folder / "epochs.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("trainer", "module"),
    [
        ("ignite", "ignite"),
        ("lightning", "pytorch_lightning"),
        ("skorch", "skorch"),
        ("transformers", "transformers"),
    ],
)
def test_an_integration_without_its_trainer_says_what_to_install(bare, trainer, module):
    expected = f"got no module {module!r}; run: pip install 'prioritymonitor[{trainer}]'"
    assert bare[1][trainer] == expected


def test_an_engine_that_is_not_installed_says_what_to_install(bare):
    assert 'pip install "prioritymonitor[opacus]"' in bare[1]["opacus"]


def test_the_command_line_without_its_extra_says_what_to_install(bare):
    expected = "got no module 'typer'; run: pip install 'prioritymonitor[cli]'"
    assert bare[1]["cli"] == f"prioritymonitor: {expected}\n"


def test_a_module_that_a_trainer_lacks_is_an_error_of_its_own():
    alone = pytest.raises(ModuleNotFoundError, match=r"^No module named 'not_there'$")
    with alone, says_what_to_install("skorch", "skorch"):
        importlib.import_module("not_there")
