"""Public scripts, what makes them read small local data, and the lines of the monitor in them.

None of their code is here: an edit names the place by a few words that stand there.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field

ATTACH = "GradientMonitor({}, log_dir='runs/a')"
LOG_DIR = "GradientMonitorCallback(log_dir='runs/a')"
INTEGRATIONS = "from prioritymonitor.integrations.{} import {}"


@dataclass(frozen=True)
class Edit:
    """A change to one line of a script."""

    at: str
    """Words of that line, which stand in no other."""
    text: str
    instead: str | None = None
    """What `text` takes the place of; None: `text` is a line of its own below, or above."""
    above: bool = False
    deeper: bool = False
    """It is indented by one step more than that line."""


@dataclass(frozen=True)
class Recipe:
    """One script, and how it is run."""

    name: str
    file: str
    """Repository and path in it; a folder of clones, or of files in such folders, has it."""
    labels: str
    """Whose labels its training samples have, by name in `files.write_files()`."""
    plain: str
    """The same training in a plain loop: a function in `plain.py`."""
    lines: tuple[Edit, ...]
    """The lines of the monitor."""
    imports: str = "from prioritymonitor import GradientMonitor"
    data: tuple[Edit, ...] = ()
    """What makes it read the local files; `FILES` stands for their folder."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Where it looks for data, below its working folder -> what is there, in the files."""
    arguments: tuple[str, ...] = ()


def edited(source: str, edits: tuple[Edit, ...], imports: str = "") -> str:
    """A script with changes in it.

    Raises:
        SystemExit: It does not have a line that an edit names.
    """
    lines = source.splitlines()
    for edit in edits:
        places = [number for number, line in enumerate(lines) if edit.at in line]
        if len(places) != 1:
            raise SystemExit(f"{len(places)} lines of the script hold {edit.at!r}; it has changed")
        place, line = places[0], lines[places[0]]
        if edit.instead is not None:
            lines[place] = line.replace(edit.instead, edit.text, 1)
        else:
            indent = len(line) - len(line.lstrip()) + 4 * edit.deeper
            lines.insert(place + (not edit.above), " " * indent + edit.text)
    if imports:
        lines.insert(_first_import("\n".join(lines)), imports)
    return "\n".join(lines) + "\n"


def _first_import(source: str) -> int:
    """Number of lines above the first import."""
    return next(
        node.lineno - 1
        for node in ast.parse(source).body
        if isinstance(node, ast.Import)
        or (isinstance(node, ast.ImportFrom) and node.module != "__future__")
    )


PAIRS = "{s: 'FILES/texts/' + s + '-pairs.json' for s in ('train', 'validation')}"
STOP = "if monitor.should_stop: break"

RUN_GLUE = (
    *("--model_name_or_path", "FILES/encoder", "--output_dir", "out", "--report_to", "none"),
    *("--train_file", "FILES/texts/train.json", "--validation_file", "FILES/texts/validation.json"),
    *("--do_train", "--do_eval", "--per_device_train_batch_size", "16", "--use_cpu"),
    *("--learning_rate", "2e-4", "--num_train_epochs", "5", "--max_seq_length", "64"),
    *("--pad_to_max_length", "False", "--save_strategy", "no"),
)


def _run_glue(what: str, *arguments: str) -> Recipe:
    return Recipe(
        f"run_glue, {what}" if what else "run_glue",
        "transformers/examples/pytorch/text-classification/run_glue.py",
        "texts",
        "run_glue" + "".join(f"_{word}" for word in what.split()),
        lines=(Edit("processing_class=tokenizer", f"callbacks=[{LOG_DIR}],"),),
        imports=INTEGRATIONS.format("transformers", "GradientMonitorCallback"),
        arguments=(*RUN_GLUE, *arguments),
    )


RECIPES = [
    Recipe(
        "mnist",
        "examples/mnist/main.py",
        "images",
        "mnist",
        lines=(
            Edit(
                "optimizer = optim.Adadelta",
                "monitor = " + ATTACH.format("model, optimizer, train_loader"),
            ),
            Edit("scheduler.step()", STOP),
        ),
        links={"../data": "mnist"},
        arguments=("--epochs", "6"),
    ),
    Recipe(
        "nlp_example",
        "accelerate/examples/nlp_example.py",
        "texts",
        "nlp_example",
        lines=(
            Edit(
                "# Now we train the model",
                "monitor = " + ATTACH.format("model, optimizer, train_dataloader"),
            ),
            Edit('accelerator.print(f"epoch {epoch}:"', STOP),
        ),
        data=(
            Edit('AutoTokenizer.from_pretrained("bert', '"FILES/encoder"', '"bert-base-cased"'),
            Edit('Classification.from_pretrained("bert', '"FILES/encoder"', '"bert-base-cased"'),
            Edit('load_dataset("nyu-mll', f'"json", data_files={PAIRS}', '"nyu-mll/glue", "mrpc"'),
            Edit('config = {"lr"', '2e-4, "num_epochs": 5', '2e-5, "num_epochs": 3'),
        ),
        arguments=("--cpu",),
    ),
    _run_glue(""),
    _run_glue("accumulation", "--gradient_accumulation_steps", "2"),
    _run_glue("smoothing", "--label_smoothing_factor", "0.1"),
    Recipe(
        "backbone_image_classifier",
        "pytorch-lightning/examples/pytorch/basics/backbone_image_classifier.py",
        "part of the images",
        "backbone_image_classifier",
        lines=(
            Edit(
                "LitClassifier, MyDataModule",
                f"trainer_defaults={{'callbacks': {LOG_DIR}}}, seed_everything",
                instead="seed_everything",
            ),
        ),
        imports=INTEGRATIONS.format("lightning", "GradientMonitorCallback"),
        data=(Edit("[55000, 5000]", "[1200, 300]", "[55000, 5000]"),),
        links={"data": "mnist", "examples/Datasets": "mnist"},
        arguments=("--trainer.max_epochs=30", "--trainer.accelerator=cpu"),
    ),
    Recipe(
        "train_fabric",
        "pytorch-lightning/examples/fabric/image_classifier/train_fabric.py",
        "images",
        "train_fabric",
        lines=(
            Edit(
                "fabric.setup(model, optimizer)",
                "monitor = " + ATTACH.format("model, optimizer, train_loader"),
            ),
            Edit("test_acc.reset()", STOP),
        ),
        links={"Datasets": "mnist"},
        arguments=("--epochs", "6"),
    ),
    Recipe(
        "timm train",
        "pytorch-image-models/train.py",
        "images",
        "timm_train",
        lines=(
            Edit(
                "results = []",
                "monitor = " + ATTACH.format("model, optimizer, loader_train"),
            ),
            Edit("results.append(latest_results)", STOP),
        ),
        arguments=(
            *("--dataset", "torch/mnist", "--data-dir", "FILES/mnist", "--train-split", "train"),
            *("--val-split", "validation", "--model", "test_resnet", "--num-classes", "10"),
            *("--input-size", "1", "28", "28", "--device", "cpu", "--epochs", "20", "-j", "1"),
            *("--mean", "0.13", "--std", "0.31", "--experiment", "a", "--batch-size", "64"),
        ),
    ),
    Recipe(
        "ignite mnist",
        "ignite/examples/mnist/mnist.py",
        "images",
        "ignite_mnist",
        lines=(
            Edit(
                "trainer.run(train_loader",
                "GradientMonitorHandler(log_dir='runs/a')"
                ".attach(trainer, model, optimizer, train_loader)",
                above=True,
            ),
        ),
        imports=INTEGRATIONS.format("ignite", "GradientMonitorHandler"),
        links={"MNIST": "mnist/MNIST"},
        arguments=("--epochs", "30"),
    ),
]
