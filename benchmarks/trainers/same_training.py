"""The same training in every trainer: the same curve, the same stop, the same suspects.

`python -m benchmarks.trainers.same_training` writes `results/trainers/same_training.json`. The
training is that of `tests/integrations/same_training.py`, by which each trainer is tested, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.environment import versions, write_results
from benchmarks.tables import print_table
from prioritymonitor import GradientMonitor
from tests.integrations.same_training import (
    BATCH,
    MOST_EPOCHS,
    Curve,
    OrderOfEpochs,
    Rows,
    WithLoss,
    curve_of,
    in_a_plain_loop,
    loader_of,
    model,
    noisy_data,
    optimizer_of,
    pairs,
)

PACKAGES = ("lightning", "transformers", "accelerate", "pytorch-ignite", "skorch")
BAR = 1e-5
"""Largest difference of the priority of an epoch."""
TWO_LINES = ["monitor = GradientMonitor(model, optimizer, loader)", "if monitor.should_stop: break"]


def lightning_trainer(accumulate: int) -> Curve:
    import lightning

    from prioritymonitor.integrations.lightning import GradientMonitorCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.body = model()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)  # type: ignore[no-any-return]

        def training_step(self, batch: Any) -> torch.Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self)

    callback = GradientMonitorCallback()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=MOST_EPOCHS,
        accumulate_grad_batches=accumulate,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader_of(pairs()))
    return curve_of(callback.monitor)


def transformers_trainer(accumulate: int) -> Curve:
    import transformers

    from prioritymonitor.integrations.transformers import GradientMonitorCallback

    class InThatOrder(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> OrderOfEpochs:
            return OrderOfEpochs()

    network, callback = WithLoss(), GradientMonitorCallback()
    with tempfile.TemporaryDirectory() as folder:
        InThatOrder(
            network,
            transformers.TrainingArguments(
                folder,
                use_cpu=True,
                num_train_epochs=MOST_EPOCHS,
                per_device_train_batch_size=BATCH,
                gradient_accumulation_steps=accumulate,
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Rows(),
            optimizers=(optimizer_of(network), None),
            callbacks=[callback],
        ).train()
    return curve_of(callback.monitor)


def accelerate_loop(accumulate: int) -> Curve:
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    network, loader = model(), loader_of(pairs())
    network, optimizer, loader = accelerator.prepare(network, optimizer_of(network), loader)
    monitor = GradientMonitor(network, optimizer, loader)
    for _ in range(MOST_EPOCHS):
        for x, y in loader:
            with accelerator.accumulate(network):
                accelerator.backward(F.cross_entropy(network(x), y))
                optimizer.step()
                optimizer.zero_grad()
        if monitor.should_stop:
            break
    return closed(monitor)


def fabric_loop(accumulate: int) -> Curve:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu")
    network = model()
    network, optimizer = fabric.setup(network, optimizer_of(network))
    loader = fabric.setup_dataloaders(loader_of(pairs()))
    monitor = GradientMonitor(network, optimizer, loader)
    for _ in range(MOST_EPOCHS):
        for number, (x, y) in enumerate(loader, 1):
            fabric.backward(F.cross_entropy(network(x), y) / accumulate)
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if monitor.should_stop:
            break
    return closed(monitor)


def ignite_engine(accumulate: int) -> Curve:
    from ignite.engine import create_supervised_trainer

    from prioritymonitor.integrations.ignite import GradientMonitorHandler

    network, loader = model(), loader_of(pairs())
    optimizer = optimizer_of(network)
    trainer = create_supervised_trainer(
        network, optimizer, nn.CrossEntropyLoss(), gradient_accumulation_steps=accumulate
    )
    handler = GradientMonitorHandler()
    handler.attach(trainer, network, optimizer, loader)
    trainer.run(loader, max_epochs=MOST_EPOCHS)
    return closed(handler.monitor)


def skorch_net(accumulate: int) -> Curve:
    from skorch import NeuralNetClassifier

    from prioritymonitor.integrations.skorch import GradientMonitorCallback

    class Network(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*model())

    data, callback = noisy_data(), GradientMonitorCallback()
    net = NeuralNetClassifier(
        Network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=3e-3,
        batch_size=BATCH,
        max_epochs=MOST_EPOCHS,
        iterator_train__sampler=OrderOfEpochs(),
        train_split=None,
        verbose=0,
        callbacks=[("monitor", callback)],
    )
    net.fit(data.inputs, data.given)
    (of_net,) = (one for name, one in net.callbacks_ if name == "monitor")
    return curve_of(of_net.monitor)


def closed(monitor: Any) -> Curve:
    curve = curve_of(monitor)
    monitor.close()
    return curve


CALLBACK = ["callbacks=[GradientMonitorCallback()]"]
TRAINERS: dict[str, tuple[Callable[[int], Curve], list[str], tuple[int, ...]]] = {
    "plain loop": (lambda accumulate: in_a_plain_loop(accumulate), TWO_LINES, (1, 2)),
    "Lightning": (lightning_trainer, CALLBACK, (1, 2)),
    "transformers Trainer": (transformers_trainer, CALLBACK, (1, 2)),
    "Accelerate": (accelerate_loop, TWO_LINES, (1, 2)),
    "Fabric": (fabric_loop, TWO_LINES, (1, 2)),
    "Ignite": (
        ignite_engine,
        ["GradientMonitorHandler().attach(trainer, model, optimizer, loader)"],
        (1, 2),
    ),
    "skorch": (skorch_net, CALLBACK, (1,)),
}
"""What it runs, the lines of the monitor in it, and the micro-batches of a step that it can do."""


def main() -> None:
    torch.set_num_threads(1)
    expected = {accumulate: in_a_plain_loop(accumulate) for accumulate in (1, 2)}
    runs = [
        compared(name, train(accumulate), expected[accumulate], accumulate, lines)
        for name, (train, lines, possible) in TRAINERS.items()
        for accumulate in possible
    ]
    report(runs)
    results = {"packages": versions(*PACKAGES), "bar": BAR, "runs": runs}
    print(f"results: {write_results('trainers/same_training', results)}")


def report(runs: list[dict[str, Any]]) -> None:
    columns = ["trainer", "accumulate", "lines", "largest_difference", "stop_epoch", "same"]
    rows = [
        [
            one["trainer"],
            one["accumulate"],
            len(one["lines"]),
            f"{one['largest_difference']:.1e}",
            one["stop_epoch"],
            one["same"],
        ]
        for one in runs
    ]
    print_table("The same training in every trainer", columns, rows)


def compared(
    trainer: str, curve: Curve, expected: Curve, accumulate: int, lines: list[str]
) -> dict[str, Any]:
    """What tells the run of a trainer from that of the plain loop."""
    count = len(expected.priority)
    differences = [abs(a - b) for a, b in zip(curve.priority, expected.priority, strict=False)]
    told: dict[str, Any] = {
        "trainer": trainer,
        "accumulate": accumulate,
        "lines": lines,
        "epochs": len(curve.priority),
        "largest_difference": max(differences) if len(curve.priority) == count else float("nan"),
        "stop_epoch": curve.stop_epoch,
        "best_epoch": curve.best_epoch,
        "suspects": len(curve.suspects),
        "same_suspects": sorted(curve.suspects) == sorted(expected.suspects),
        "identity": curve.wrong_given == [] and curve.suspects != [],
    }
    told["same"] = bool(
        told["largest_difference"] <= BAR
        and (curve.stop_epoch, curve.best_epoch) == (expected.stop_epoch, expected.best_epoch)
        and told["same_suspects"]
        and told["identity"]
    )
    return told


if __name__ == "__main__":
    main()
