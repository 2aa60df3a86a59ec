"""What the README and the docs print works, and names what there is."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.stopping import pages
from prioritymonitor import GradientMonitor, corrupt_labels
from prioritymonitor.tags import (
    ALL_PARAMETERS_TAGS,
    EPOCH_TAGS,
    POPULATION,
    RECORD_TAGS,
    STEP_TAGS,
)
from tests.support.cases import make_data, make_loader, mlp

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


@pytest.fixture
def digits():
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    noisy = corrupt_labels(labels, 0.4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images.float() / 16, noisy), labels


@pytest.mark.parametrize("page", [ROOT / "README.md", PAGES / "index.md"], ids=lambda p: p.name)
def test_the_two_line_script_works_as_printed(page, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset, labels = digits
    (diff,) = blocks(page, "diff")
    script = "".join(line[2:] + "\n" for line in diff.splitlines())
    names = {
        "torch": torch,
        "F": F,
        "DataLoader": DataLoader,
        "Classifier": Classifier,
        "dataset": dataset,
    }
    exec(script, names)
    monitor, model = names["monitor"], names["model"]
    assert monitor.should_stop
    assert (model(dataset.tensors[0]).argmax(1) == labels).float().mean() > 0.9
    assert list((tmp_path / "runs" / "a").glob("events.out.tfevents.*"))
    for line in blocks(ROOT / "README.md", "python")[0].splitlines():
        assert eval(line.split("#")[0], names), line
    monitor.close()


def test_the_whole_script_of_the_quick_start_works(capsys):
    script = next(code for code in blocks(PAGES / "index.md", "python") if "load_digits" in code)
    names = {}
    exec(script, names)
    printed = capsys.readouterr().out
    assert "noisy labels took over" in printed
    accuracy = float(re.search(r"accuracy: ([0-9.]+)", printed).group(1))
    assert accuracy > 0.85
    names["monitor"].close()


def table(tags):
    rows = [f"| `{t.name}` | {t.unit} | {t.range} | {t.meaning} |" for t in tags]
    return "\n".join(["| tag | unit | range | meaning |", "|---|---|---|---|", *rows, ""])


@pytest.mark.parametrize("part", [STEP_TAGS, ALL_PARAMETERS_TAGS, EPOCH_TAGS, RECORD_TAGS])
def test_the_documentation_says_of_the_tags_what_their_table_says(part):
    assert table(part) in (PAGES / "measured.md").read_text()


def stems(names):
    """Names of tags without what says which class, block or population."""
    return {name.split("/")[0].removesuffix(POPULATION) for name in names}


@pytest.mark.parametrize("scope", ["head", "all"])
def test_every_documented_tag_of_a_step_exists(scope):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=20)
    monitor = GradientMonitor(model, optimizer, loader, every=1, scope=scope)
    for x, y, _ in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    documented = [*STEP_TAGS, *(ALL_PARAMETERS_TAGS if scope == "all" else ())]
    assert stems(monitor.latest) == stems(tag.name for tag in documented)
    of_blocks = {name.split("/")[0] + "/BLOCK" for name in monitor.latest if name.endswith("/0")}
    families = {tag.name for tag in documented if tag.name.endswith("/BLOCK")}
    assert of_blocks >= families
    monitor.close()


def test_links_between_readme_and_docs_lead_somewhere():
    for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).is_file(), link


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES.glob("*.md")], ids=lambda p: p.name)
def test_no_figure_is_left_open(page):
    left = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", page.read_text()))
    assert left <= {"RUN_DIR", "PRIORITYMONITOR_DATA"}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_results(page):
    text = page.read_text()
    assert pages.fill(text) == text, "run python -m benchmarks.stopping.pages"
