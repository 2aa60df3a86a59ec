"""A loop that a monitor follows, next to plain autograd that takes one sample at a time."""

import copy
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prioritymonitor import GradientMonitor
from tests.support.cases import CLASSES, INPUTS, make_data, make_loader
from tests.support.reference import expected_statistics, logits_of

STATISTICS = (
    *("dominance_ratio", "group_cosine", "noise_share", "coherence"),
    *("contribution_clean", "contribution_noisy", "dominance_ratio_population"),
)

WAYS = {
    "head": {"scope": "head"},
    "closed_form": {"scope": "all", "engine": "closed_form"},
    "func": {"scope": "all", "engine": "func"},
}
"""What can be measured, and how."""


class Net(nn.Module):
    """Linear layers and a normalisation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(INPUTS, 9)
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.first(x)).relu())


def loss_of_one(model, x, y):
    return cross_entropy(logits_of(model(x)), y)


class Followed:
    """A model, an optimizer and a monitor; the test writes the loop.

    Args:
        way: A key of `WAYS`.
        model: The user's own model.
        optimizer: Makes the optimizer from the parameters.
        dtype: Of the data.
        called: What the loop calls and the monitor gets, such as the compiled model.
        loader: What the loop iterates over; None: one of its own.
        loss: `(model, x, y) -> loss` of a single sample.
    """

    def __init__(
        self,
        way,
        model,
        optimizer,
        *,
        dtype=torch.float32,
        called=None,
        loader=None,
        loss=loss_of_one,
        **options,
    ):
        self.data = make_data(dtype)
        self.loader = loader or make_loader(self.data, batch_size=12)
        self.model, self.optimizer = model, optimizer
        self.called = model if called is None else called
        self.is_head = way == "head"
        self._loss = loss
        self._rows, self._where = [], []
        self.monitor = GradientMonitor(
            self.called,
            optimizer,
            self.loader,
            **{"noisy": self.data.noisy, "every": 1} | WAYS[way] | options,
        )

    def parameters(self):
        own = self.model.head.parameters() if self.is_head else self.model.parameters()
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [p for p in own if p.requires_grad and id(p) in held]

    def take(self, x, y, index):
        """The model is about to be trained on these; the oracle looks at them first."""
        self._rows.append(self._gradients(x, y))
        self._where.append(index)

    def _gradients(self, x, y):
        names = {id(p): name for name, p in self.model.named_parameters()}
        twin = copy.deepcopy(self.model).double()
        own = dict(twin.named_parameters())
        own = [own[names[id(p)]] for p in self.parameters()]
        rows = []
        for i in range(len(y)):
            inputs = x[i : i + 1].double() if x.is_floating_point() else x[i : i + 1]
            loss = self._loss(twin, inputs, y[i : i + 1])
            rows.append(_flat(torch.autograd.grad(loss, own, allow_unused=True), own))
        return torch.stack(rows) if rows else torch.zeros(0, sum(p.numel() for p in own))

    def before_step(self):
        self._trained = self.parameters()
        self._before = [p.detach().double().clone() for p in self._trained]

    def forget(self):
        """What was taken came to nothing."""
        self._rows, self._where = [], []

    def expected(self):
        """Statistics of the step that was just made."""
        rows, where = torch.cat(self._rows).unsqueeze(1), torch.cat(self._where)
        self.forget()
        pairs = zip(self._trained, self._before, strict=True)
        update = torch.cat([(p.detach().double() - before).flatten() for p, before in pairs])
        nobody = torch.zeros(len(where))
        expected = expected_statistics(rows, self.data.noisy[where], nobody, nobody, update)
        return {name: expected[name] for name in STATISTICS}

    def check(self, tolerance, floor=0.1):
        """The monitor says of the last step what the oracle says.

        Args:
            tolerance: Relative to the value.
            floor: A smaller value counts as this one: it is the difference of larger ones.
        """
        expected, latest = self.expected(), self.monitor.latest
        for name, value in expected.items():
            got = latest.get(name)
            assert got is not None, name
            if math.isnan(value):
                assert math.isnan(got), name
            else:
                assert got == value or abs(got - value) <= tolerance * max(abs(value), floor), (
                    f"{name}: got {got}, expected {value}"
                )


def _flat(gradients, parameters):
    pairs = zip(gradients, parameters, strict=True)
    rows = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in pairs]
    return torch.cat([row.flatten() for row in rows])
