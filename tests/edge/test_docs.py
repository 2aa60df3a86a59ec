"""What the README and the docs print works, and names what there is."""

import ast
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.environment import read_results
from benchmarks.stopping import pages
from prioritymonitor import GradientMonitor, StopReason, corrupt_labels
from prioritymonitor.tags import (
    ALL_PARAMETERS_TAGS,
    EPOCH_TAGS,
    POPULATION,
    RECORD_TAGS,
    STEP_TAGS,
    VALIDATION_TAGS,
)
from tests.support.campaign.kinds import GROUPS
from tests.support.cases import make_data, make_loader, mlp
from tests.support.histories import history_of

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
READ = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES.rglob("*.md")]
"""What people read."""

WHY = (PAGES / "why.md").read_text()


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


class Classifier(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 10))


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


@pytest.mark.parametrize(
    "part", [STEP_TAGS, ALL_PARAMETERS_TAGS, EPOCH_TAGS, VALIDATION_TAGS, RECORD_TAGS]
)
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


def test_the_rule_of_ones_own_works_as_printed(digits):
    dataset, _ = digits
    model = Classifier()
    names = {
        "GradientMonitor": GradientMonitor,
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
        "loader": DataLoader(dataset, batch_size=128, shuffle=True),
    }
    (example,) = blocks(PAGES / "decides.md", "python")
    exec(example, names)
    for x, y in names["loader"]:
        names["optimizer"].zero_grad()
        F.cross_entropy(model(x), y).backward()
        names["optimizer"].step()
    assert names["monitor"].decision.best_epoch == 1
    fallen = history_of(
        priority=[1, *[0] * 7],
        prediction_changes=[None, 0.2, 0.1, *[0.4] * 5],
        **{"noise_rate": [0.01] * 8, "samples_seen": [9] * 8, "initial_loss": [2.0] * 8},
    )
    assert names["rule"](fallen).stop
    assert not names["where_much_is_wrong"](fallen).stop
    much = [record | {"noise_rate": 0.3} for record in fallen]
    assert names["where_much_is_wrong"](much).stop
    # Held-out labels can say stop before any label could be judged.
    unjudged = history_of(validation=[0.8, *[0.2] * 7], validation_samples=[2000] * 8)
    assert names["where_much_is_wrong"](unjudged).stop
    names["monitor"].close()


def anchors(page):
    """Of the headings of a page, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", READ, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = (page.parent / path) if path else page
        assert target.is_file(), path
        if anchor and target.name != "reference.md":  # whose headings are docstrings
            assert anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", READ, ids=lambda p: p.name)
def test_files_and_commands_that_are_named_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:benchmarks|docs|prioritymonitor|tests)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    for module, options in re.findall(r"python -m ([\w.]+)([^`#\n]*)", text):
        script = ROOT / (module.replace(".", "/") + ".py")
        known = script.read_text() + (ROOT / "benchmarks/data/images.py").read_text()
        assert "__main__" in known, module
        assert all(f'"{option}"' in known for option in re.findall(r"--[\w-]+", options)), options
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_the_tree_shows_every_room():
    (tree,) = blocks(ROOT / "CONTRIBUTING.md", "text")
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    rooms = {
        path.name
        for path in (ROOT / "prioritymonitor").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms <= shown
    for folder in re.findall(r"^ +(\w+)/", tree, re.MULTILINE):
        assert [*ROOT.glob(f"[bp]*/{folder}"), *ROOT.glob(f"prioritymonitor/*/{folder}")], folder


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES.glob("*.md")], ids=lambda p: p.name)
def test_no_figure_is_left_open(page):
    left = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", page.read_text()))
    assert left <= {"RUN_DIR", "PRIORITYMONITOR_DATA", "KERAS_BACKEND", *StopReason.__members__}


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_results(page):
    text = page.read_text()
    assert pages.fill(text) == text, "run python -m benchmarks.stopping.pages"


def test_each_reason_has_its_section():
    sections = re.findall(r"^## `(\w+)`$", (PAGES / "why.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(StopReason.__members__)


def messages():
    """All that the package may say, with … where values are put in."""
    for file in (ROOT / "prioritymonitor").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [one.value if isinstance(one, ast.Constant) else "…" for one in node.values]
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_what_it_is_quoted_to_say_it_says():
    said = "\n".join(messages())
    tables = re.findall(r"^\| (?:it said|the message) .*\n\|.*\n((?:\|.*\n)+)", WHY, re.MULTILINE)
    quoted = [line.split("|")[1] for table in tables for line in table.splitlines()]
    assert len(quoted) > 20
    for quote in quoted:
        assert all(part.strip() in said for part in quote.split("…")), quote


def test_the_faults_that_were_tried_are_those_of_the_table():
    text, _, _ = (PAGES / "failures.md").read_text().partition("## States and run folders")
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \|", text, re.MULTILINE)
    assert dict(rows) == {group: str(len(kinds)) for group, kinds in GROUPS.items()}


def test_the_figures_of_the_fuzzer_are_those_of_its_results():
    results, text = read_results("robustness/fuzz"), (PAGES / "failures.md").read_text()
    for what in ("states", "folders"):
        found = [str(results[what][name]) for name in ("tried", "refused", "taken", "wrong")]
        assert f"| {what} | {' | '.join(found)} |" in text


def test_the_figures_of_the_campaign_are_those_of_its_results():
    results = read_results("robustness/campaign")
    total, share = results["total"], results["stop still works, outside the capture"]
    text = " ".join((PAGES / "failures.md").read_text().split())
    assert (
        f"Of {total['runs']:,} runs, {total['lost']} ended, {total['changed']} came to another "
        f"training, in {total['left']} something was left, and {total['false_records']} had a "
        "false record"
    ) in text
    assert f"the stop still came in {share:.1%}".replace("%", " %") in text


def test_the_figures_of_the_kills_are_those_of_their_results():
    told = read_results("robustness/kills")
    text = " ".join((PAGES / "failures.md").read_text().split())
    assert (
        f"{told['runs']} runs were killed {told['kills']} times and started again, "
        f"{told['resumed with another number of ranks']} times with another number of ranks. "
        f"{told['other decisions']} came to another decision, other suspects or other values of an "
        f"epoch, {told['records missing or duplicated']} had a record missing or twice"
    ) in text
