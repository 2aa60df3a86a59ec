"""Public training scripts with the lines of the monitor in them, beside plain loops.

`python -m benchmarks.trainers.scripts --data DIR --scripts DIR` writes
`results/trainers/scripts.json`. `--scripts` names a folder with clones of the repositories that
`recipes.py` names, or with single files at the same paths. Each script is run in a process of its
own: unchanged but for the data, with the lines, its training once more in a plain loop, and
unchanged by `prioritymonitor run`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.data.images import add_data_option
from benchmarks.environment import earlier_runs, versions, write_results
from benchmarks.tables import print_table
from benchmarks.trainers.files import Labels, write_files
from benchmarks.trainers.offline import make_importable
from benchmarks.trainers.recipes import RECIPES, Recipe, edited

ROOT = Path(__file__).parents[2]
RESULTS = "trainers/scripts"
PACKAGES = ("lightning", "transformers", "accelerate", "timm", "pytorch-ignite", "torchvision")
BAR = 0.01
"""By so much the AUROC may be below that of the plain loop."""
_DECIDED = ("epochs", "stop_epoch", "reason", "best_epoch", "suspects")
_SUSPECT = 0.5
"""Scores above it are those of `suspects()`."""


@dataclass(frozen=True)
class Place:
    """Where a run of a recipe happens."""

    recipe: Recipe
    clones: Path
    files: Path
    folder: Path
    """Its working folder."""

    def script(self, with_lines: bool) -> list[str]:
        """Write the script and return its command line."""
        path = self.folder / self.recipe.file.partition("/")[2]
        source = (self.clones / self.recipe.file).read_text()
        edits, imports = self.recipe.data, ""
        if with_lines:
            edits, imports = (*edits, *self.recipe.lines), self.recipe.imports
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._local(edited(source, edits, imports)))
        return [str(path), *map(self._local, self.recipe.arguments)]

    def link_data(self) -> None:
        for link, target in self.recipe.links.items():
            path = self.folder / link
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(self.files / target)

    def _local(self, text: str) -> str:
        return text.replace("FILES", str(self.files))


VARIANTS: dict[str, Callable[[Place], list[str]]] = {
    "unchanged": lambda place: place.script(with_lines=False),
    "lines": lambda place: place.script(with_lines=True),
    "plain": lambda place: [
        f"benchmarks.trainers.plain:{place.recipe.plain}",
        place.script(with_lines=False)[0],
        str(place.files),
    ],
    "run": lambda place: [
        *("-m", "prioritymonitor", "run", "--stop", "--log-dir", "runs/a"),
        *place.script(with_lines=False),
    ],
}
"""What a process of `child.py` is given to run."""


def main() -> None:
    options = parse_options()
    make_importable()
    recipes = [one for one in RECIPES if not options.only or one.name in options.only]
    # Those that are not run stay as they are.
    runs = {one["script"]: one for one in earlier_runs(RESULTS)} if options.only else {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        shutil.rmtree(work, ignore_errors=True)
        labels = write_files(work / "files", options.data)
        with ThreadPoolExecutor(options.jobs) as pool:
            for one in pool.map(
                lambda recipe: compared(recipe, work, options.scripts, labels), recipes
            ):
                runs[one["script"]] = one
                kept = [runs[recipe.name] for recipe in RECIPES if recipe.name in runs]
                results = {"packages": versions(*PACKAGES), "bar": BAR, "runs": kept}
                path = write_results(RESULTS, results)
    report(kept)
    print(f"\nresults: {path}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--scripts", type=Path, required=True, help="folder with the clones")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in RECIPES])
    parser.add_argument("--jobs", type=int, default=1, help="how many scripts at a time")
    parser.add_argument("--work", type=Path, help="a folder to work in, which is emptied first")
    return parser.parse_args()


def compared(recipe: Recipe, work: Path, clones: Path, labels: dict[str, Labels]) -> dict[str, Any]:
    """All variants of a script, and what tells them apart."""
    files, told = work / "files", {}
    for variant, command in VARIANTS.items():
        folder = work / recipe.name / variant / "run"
        folder.mkdir(parents=True)
        place = Place(recipe, clones, files, folder)
        place.link_data()
        told[variant] = run(command(place), folder)
        told[variant] |= watched(folder / "runs" / "a", labels[recipe.labels])
        print(f"{recipe.name}, {variant}: {of_interest(told[variant])}", flush=True)
    return {
        "script": recipe.name,
        "file": recipe.file,
        "arguments": " ".join(recipe.arguments),
        "lines": [edit.text for edit in recipe.lines],
        "imports": recipe.imports,
        "edits_for_data": len(recipe.data),
        "training_unchanged": same_weights(told["unchanged"], told["lines"]),
        "run_as_with_lines": same_weights(told["lines"], told["run"])
        | {name: told["run"].get(name) == told["lines"].get(name) for name in _DECIDED},
        "auroc_below_plain": difference(told["plain"].get("auroc"), told["lines"].get("auroc")),
        "variants": {name: of_interest(one) for name, one in told.items()},
    }


def difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def run(command: list[str], folder: Path) -> dict[str, Any]:
    """Run it as a process and return what `child.py` tells, or how it failed."""
    told = folder / "told.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [sys.executable, "-m", "benchmarks.trainers.child", str(told), *command]
    ended = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    (folder / "output.txt").write_text(ended.stdout + ended.stderr)
    if not told.is_file():
        return {"failure": ended.stderr.strip().splitlines()[-1:], "weights": [], "said": []}
    return json.loads(told.read_text())  # type: ignore[no-any-return]


def watched(folder: Path, labels: Labels) -> dict[str, Any]:
    """What the run folder says: whether samples are what they are taken for, and how suspect."""
    if not (folder / "epochs.jsonl").is_file():
        return {}
    epochs = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    last = epochs[-1] if epochs else {}
    found: dict[str, Any] = {
        "epochs": len(epochs),
        "stop_epoch": last["epoch"] if last.get("stop") else None,
        "reason": last.get("reason"),
        "best_epoch": last.get("best_epoch"),
        "noise_rate": last.get("noise_rate"),
    }
    if not (folder / "samples.npz").is_file():
        return found | {"identity": False}
    samples = np.load(folder / "samples.npz")
    visited = samples["visits"] > 0
    given, true = (one.numpy()[samples["index"]] for one in (labels.given, labels.true))
    right = bool((samples["given_label"] == given)[visited].all())
    is_known = visited & ~np.isnan(samples["score"])
    found |= {
        "identity": right and bool(visited.mean() > 0.9),
        "visited": float(visited.mean()),
        "visits": float(samples["visits"].mean()),
        "auroc": None,
        "suspects": samples["index"][samples["score"] > _SUSPECT].tolist(),
    }
    if is_known.any():
        found["auroc"] = float(roc_auc_score((given != true)[is_known], samples["score"][is_known]))
    return found


def same_weights(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Whether two runs had bitwise the same weights after each step that both made."""
    steps = min(len(one["weights"]), len(other["weights"]))
    return {
        "steps": steps,
        "same": steps > 0 and one["weights"][:steps] == other["weights"][:steps],
    }


def of_interest(told: dict[str, Any]) -> dict[str, Any]:
    """Without what is compared already."""
    left_out = {"steps": len(told["weights"]), "suspects": len(told.get("suspects", ()))}
    return {name: value for name, value in told.items() if name != "weights"} | left_out


def report(runs: list[dict[str, Any]]) -> None:
    columns = [
        "script",
        "lines",
        "unchanged",
        "identity",
        "AUROC",
        "plain",
        "stop",
        "plain stop",
        "run",
    ]
    rows = []
    for one in runs:
        lines, plain = one["variants"]["lines"], one["variants"]["plain"]
        rows.append(
            [
                one["script"],
                len(one["lines"]),
                one["training_unchanged"]["same"],
                lines.get("identity"),
                *(variant.get("auroc") for variant in (lines, plain)),
                *(variant.get("stop_epoch") for variant in (lines, plain)),
                all(one["run_as_with_lines"].values()),
            ]
        )
    print_table(
        "Public scripts with the lines, and the same training in a plain loop", columns, rows
    )


if __name__ == "__main__":
    main()
