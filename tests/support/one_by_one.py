"""Training runs next to an oracle that takes one sample at a time by plain autograd, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from tests.support.observed import observing
from tests.support.reference import expected_statistics, head_parameters, head_update

SAMPLES = 24


@dataclass
class Setting:
    """A model, a loss and data; what the loop does, and what it means for one sample."""

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[torch.dtype], tuple[torch.Tensor, torch.Tensor]]
    loss: Callable[..., torch.Tensor]
    """`(model, x, y, criterion) -> loss` of a batch, as a user writes it."""
    of_one: Callable[..., torch.Tensor]
    """`(model, x, y, batch_y) -> loss` of the only sample in x and y."""
    head: Callable[[nn.Module], nn.Module] = lambda model: model.head
    criterion: Callable[[torch.dtype], Any] = lambda dtype: None
    micro_batches: int = 1
    batch_size: int = 6
    true_labels: torch.Tensor | None = None
    """Makes segments; None: there is no single label per sample."""
    label: Callable[[torch.Tensor], torch.Tensor] = lambda y: y.flatten().long()

    def __str__(self):
        return self.name


def noisy_samples():
    return torch.arange(SAMPLES) % 3 == 0


def train(setting, dtype, every=1, **options):
    """Yield after each optimizer step: monitor, records seen so far, oracle, samples."""
    with observing() as seen:
        yield from _trained(setting, dtype, every, options, seen)


def _trained(setting, dtype, every, options, seen):
    torch.manual_seed(0)
    x, y = setting.data(dtype)
    model = setting.model().to(dtype)
    head = setting.head(model)
    criterion = setting.criterion(dtype)
    loader = DataLoader(
        TensorDataset(x, y, torch.arange(SAMPLES)), batch_size=setting.batch_size, shuffle=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    known = {"noisy": noisy_samples(), "true_labels": setting.true_labels} | options
    monitor = GradientMonitor(model, optimizer, loader, criterion=criterion, every=every, **known)
    pending = []
    for x, y, index in loader:
        if not pending:
            optimizer.zero_grad()
            before = head_parameters(head)
        rows = one_by_one(setting, model, head, x, y)
        pending.append((rows, y, index))
        setting.loss(model, x, y, criterion).backward()
        if len(pending) == setting.micro_batches:
            optimizer.step()
            yield monitor, seen, expected(setting, pending, head_update(head, before)), pending
            pending = []
    monitor.close()


def one_by_one(setting, model, head, x, y):
    """Gradient of each sample's own loss at the head, `[B, C, D (+1)]`."""
    twin = copy.deepcopy(model).double()
    names = {id(module): name for name, module in model.named_modules()}
    twin_head = twin.get_submodule(names[id(head)])
    inputs = x.double() if x.is_floating_point() else x
    rows = []
    for i in range(len(x)):
        # A tied weight has a second gradient, of the embedding; the head's own is wanted.
        calls = []
        hook = twin_head.register_forward_hook(lambda *call, calls=calls: calls.append(call))
        loss = setting.of_one(twin, inputs[i : i + 1], y[i : i + 1], y)
        hook.remove()
        ((_, (h,), z),) = calls
        (r,) = torch.autograd.grad(loss, z)
        rows.append(outer(r, h.detach(), twin_head))
    return torch.stack(rows)


def outer(r, h, head):
    """Gradient of the head's parameters by the chain rule, added up over positions."""
    r, h = (t.movedim(1, -1) if isinstance(head, nn.Conv2d) else t for t in (r, h))
    r, h = r.reshape(-1, r.shape[-1]), h.reshape(-1, h.shape[-1])
    gradient = r.T @ h
    return gradient if head.bias is None else torch.cat((gradient, r.sum(0)[:, None]), dim=1)


def expected(setting, pending, update):
    where = torch.cat([index for *_, index in pending])
    rows = torch.cat([rows for rows, *_ in pending])
    noisy = noisy_samples()[where]
    given = truth = torch.zeros(len(where))
    if setting.true_labels is not None:
        given = torch.cat([setting.label(y) for _, y, _ in pending])
        truth = setting.true_labels[where]
    ignored = rows.flatten(1).abs().sum(1) == 0
    statistics = expected_statistics(rows, noisy, given, truth, update, ignored)
    segments = {name for name in statistics if name.startswith("segment")}
    if setting.true_labels is None:
        return {name: statistics[name] for name in statistics.keys() - segments}
    if rows.shape[1] == 1:  # one logit z is the same as the two logits 0 and z
        pair = torch.cat((-rows, rows), dim=1)
        update = torch.cat((-update, update))
        two = expected_statistics(pair, noisy, given, truth, update, ignored)
        statistics |= {name: two[name] for name in two if name.startswith("segment")}
    return statistics
