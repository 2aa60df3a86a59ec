"""An ordinary training loop with the monitor in it, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from ..errors import ArgumentValueError
from ..monitor import GradientMonitor
from ..records import Suspect
from .data import Problem

_HIDDEN = 256

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adam": lambda model: Adam(model.parameters(), lr=1e-3),
    "sgd": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9),
}


@dataclass(frozen=True)
class Outcome:
    """What a run gave. Accuracies are on the clean test set, in [0, 1]."""

    raw_accuracy: list[float]
    """Of the weights as the optimizer left them after each epoch."""
    returned_accuracy: float
    """Of the weights that `restore_best()` gave."""
    returned_epoch: int
    stopped_at: int | None
    """The epoch after which the monitor said stop; None if it did not."""
    priority: list[float]
    """Clean priority after each epoch until the stop."""
    noise_rate: float
    """Share of the training labels that the monitor estimates to be wrong, in [0, 1]."""
    precision: float
    """Share of the suspects whose label is wrong; NaN without suspects."""
    recall: float
    """Share of the wrong labels among the suspects; NaN without wrong labels."""
    folder: Path
    """Where the run was written to."""

    @property
    def best_raw_epoch(self) -> int:
        """The epoch after which the raw weights did best on the test set."""
        return self.raw_accuracy.index(max(self.raw_accuracy)) + 1


def train(
    problem: Problem, optimizer_name: str, epochs: Iterable[int], seed: int, log_dir: Path
) -> Outcome:
    """Train a small network, the monitor attached.

    Args:
        problem: What to learn. The monitor is not told which of its labels are wrong.
        optimizer_name: A key of `OPTIMIZERS`.
        epochs: The epochs to train, all of them: also those after the monitor's stop.
        seed: Decides the first weights and the order of the samples.
        log_dir: The run folder, numbered if another run is in it.
    """
    torch.set_num_threads(1)  # for so small a network more threads only wait for one another
    torch.manual_seed(seed)
    model = _network(problem)
    optimizer = OPTIMIZERS[optimizer_name](model)
    samples = TensorDataset(problem.images, problem.given_labels)
    train_loader = DataLoader(samples, batch_size=problem.batch_size, shuffle=True)
    raw_accuracy = []

    monitor = GradientMonitor(model, optimizer, train_loader, log_dir=log_dir)
    for _ in epochs:
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        raw_accuracy.append(_test_accuracy(model, problem))
        # Here a script says `if monitor.should_stop: break`. The demo goes on to show what follows.
        monitor.should_stop  # noqa: B018
    returned_epoch = monitor.restore_best()
    monitor.close()

    assert returned_epoch is not None, "an epoch was completed"
    if monitor.log_dir is None:
        raise ArgumentValueError(f"got the run folder {log_dir}, which can't be written to")
    precision, recall = _found(monitor.suspects(), problem.is_wrong)
    return Outcome(
        raw_accuracy=raw_accuracy,
        returned_accuracy=_test_accuracy(model, problem),
        returned_epoch=returned_epoch,
        stopped_at=monitor.decision.epoch if monitor.should_stop else None,
        priority=[record["priority"] for record in monitor.history() if "priority" in record],
        noise_rate=monitor.noise_rate,
        precision=precision,
        recall=recall,
        folder=monitor.log_dir,
    )


def _network(problem: Problem) -> nn.Module:
    return nn.Sequential(
        nn.Linear(problem.images.shape[1], _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, _HIDDEN),
        nn.ReLU(),
        nn.Linear(_HIDDEN, int(problem.test_labels.max()) + 1),
    )


@torch.no_grad()
def _test_accuracy(model: nn.Module, problem: Problem) -> float:
    predicted = model(problem.test_images).argmax(1)
    return float((predicted == problem.test_labels).double().mean())


def _found(suspects: list[Suspect], is_wrong: Tensor) -> tuple[float, float]:
    """Precision and recall of the samples taken as mislabelled."""
    taken = torch.zeros_like(is_wrong)
    taken[[suspect.index for suspect in suspects if suspect.score > 0.5]] = True
    found = (taken & is_wrong).sum().double()
    return (found / taken.sum()).item(), (found / is_wrong.sum()).item()
