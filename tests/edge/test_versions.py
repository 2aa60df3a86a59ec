"""The versions that are said to work are those with which the tests are run."""

import re
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def installed_by(name):
    """What a file of constraints pins."""
    lines = (ROOT / ".ci" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def lower_bounds():
    """What users need, with all extras of theirs: package -> lower bound."""
    text = (ROOT / "pyproject.toml").read_text()
    needed = text[text.index("dependencies = [") : text.index("benchmarks = [")]
    return {name: Version(bound) for name, bound in re.findall(r'"([\w-]+)>=([\w.]+)"', needed)}


def test_the_oldest_versions_that_are_tried_are_the_lower_bounds():
    tried = {name: Version(version) for name, version in installed_by("oldest.txt").items()}
    bounds = lower_bounds()
    assert {"torch", "numpy", "tensorboard", "typer", "opacus", "accelerate"} <= {*bounds}
    assert {name: tried.get(name) for name in bounds} == bounds


def test_each_package_that_users_need_is_tried_at_its_newest_too():
    newest, bounds = installed_by("newest.txt"), lower_bounds()
    assert {*bounds} <= {*newest}
    assert all(Version(newest[name]) >= bound for name, bound in bounds.items())


@pytest.mark.parametrize("name", ["oldest.txt", "constraints.txt", "newest.txt"])
def test_the_documentation_names_the_torch_that_is_tried(name):
    page = (ROOT / "docs" / "pages" / "reference.md").read_text()
    assert f"| {installed_by(name)['torch']} |" in page[page.index("## Versions") :]
