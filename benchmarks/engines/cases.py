"""The models that `compare.py` compares the methods on, and training loops over random data."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD

from benchmarks.engines.architectures import ARCHITECTURES
from benchmarks.engines.gradient_groups import is_noisy, oracle, tags
from benchmarks.engines.methods import Plain, Refused

BATCHES = 2
"""The batch of the step and the next one, as a loader holds them."""

CHECKED = 16
"""Samples of the step on which a method is compared with the oracle."""
TOLERANCE = 1e-6
"""Largest relative deviation of a method from the oracle, in double precision."""

MOST_LETTERS = 160
"""Of a reason to refuse."""

MakeMethod = Callable[..., Plain]


@dataclass(frozen=True)
class Case:
    """An architecture, its batch size, and after how many steps two loops take turns."""

    architecture: str
    batch: int
    turn: int = 1

    def __str__(self) -> str:
        return f"{self.architecture}, batch {self.batch}"


CASES = [
    Case("mlp", 128, turn=4),
    Case("cnn", 64, turn=2),
    Case("cnn_batch_norm", 64, turn=2),
    Case("hand_written_text_transformer", 32),
    Case("resnet18", 32),
    Case("resnet18_no_inplace", 32),
    Case("resnet18_group_norm_no_inplace", 32),
]


class Training:
    """A training loop at its start: same weights and same batches each time."""

    def __init__(self, case: Case, make_method: MakeMethod, device: torch.device) -> None:
        torch.manual_seed(0)
        architecture = ARCHITECTURES[case.architecture]
        model = architecture.make_model().to(device)
        batches = [architecture.make_batch(case.batch) for _ in range(BATCHES)]
        self._batches = itertools.cycle([(x.to(device), y.to(device)) for x, y in batches])
        self._device = device
        # So slow that the random labels are not learnt: gradients stay of one size.
        self.method = make_method(model, SGD(model.parameters(), lr=1e-4, momentum=0.9))

    def take(self, steps: int) -> None:
        """Make so many steps and wait until the device has done its work."""
        for x, y in itertools.islice(self._batches, steps):
            self.method.step(x, y)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def refusal(case: Case, make_method: MakeMethod, device: torch.device) -> str | None:
    """Why a method cannot measure a model, or where it is wrong; None if its answer is right."""
    try:
        training = Training(case, make_method, device)
        training.take(1)
        training.method.latest()
        training.method.close()
        deviation = _deviation_from_oracle(case, make_method, device)
    except Exception as error:  # each library has its own way to say no
        return _first_sentence(error)
    return None if deviation <= TOLERANCE else f"wrong by {deviation:.1%}"


def _deviation_from_oracle(case: Case, make_method: MakeMethod, device: torch.device) -> float:
    """Largest relative deviation of what a method says of one step, in double precision."""
    torch.manual_seed(0)
    architecture = ARCHITECTURES[case.architecture]
    model = architecture.make_model().to(device).double()
    x, y = (tensor.to(device) for tensor in architecture.make_batch(CHECKED))
    x = x.double() if x.is_floating_point() else x
    right = oracle(copy.deepcopy(model), x, y)
    method = make_method(model, SGD(model.parameters(), lr=1e-4))
    groups = method.step(x, y)
    if groups is None:
        said, expected = method.latest(), tags(right, is_noisy(y))
        if any(isinstance(layer, _BatchNorm) for layer in model.modules()):
            # Rows of one batch say nothing about a population: the monitor leaves that out.
            expected = {tag: x for tag, x in expected.items() if not tag.endswith("_population")}
        pairs = [(torch.tensor(said[tag]), torch.tensor(expected[tag])) for tag in expected]
    else:
        pairs = [*zip(groups.sums, right.sums, strict=True), (groups.square, right.square)]
        pairs.append((groups.products, right.products))
    method.close()
    return max(_deviation(value, expected) for value, expected in pairs)


def _deviation(value: torch.Tensor, right: torch.Tensor) -> float:
    """Relative deviation; infinite where only one of them is not a number."""
    if value.isnan().equal(right.isnan()):
        value, right = value.nan_to_num(), right.nan_to_num()
    deviation = ((value - right).norm() / right.norm().clamp(min=1e-30)).item()
    return math.inf if math.isnan(deviation) else deviation


def _first_sentence(error: Exception) -> str:
    """Why, in one line; the package's own words."""
    words = str(error).split(". ")[0].splitlines()[0][:MOST_LETTERS]
    return words if isinstance(error, Refused) else f"{type(error).__name__}: {words}"
