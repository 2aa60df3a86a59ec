"""Activation checkpointing: measured, without holding what it drops, and never broken by us."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from prioritymonitor.gradients.parameters.calls import TrainedCall
from prioritymonitor.gradients.parameters.closed_form import ClosedFormEngine
from prioritymonitor.gradients.parameters.layer_hooks import LayerHooks
from prioritymonitor.samples.history import SampleHistory
from tests.capture.test_any_loop import followed, make_step
from tests.support.cases import CLASSES, INPUTS
from tests.support.followed import WAYS

kinds = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.second(self.first(self.norm(x)).relu())


class Deep(nn.Module):
    """Two whole blocks are computed once more in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(INPUTS, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(8, CLASSES)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:  # the oracle's single samples need none
            x = checkpoint(block, x, use_reentrant=self.reentrant) if len(x) > 1 else block(x)
        return self.head(x)


@kinds
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_blocks_are_measured(way, every, reentrant, said):
    run = followed(way, Deep(reentrant), every=every)
    for number, (x, y, index) in enumerate(run.loader):
        run.optimizer.zero_grad()
        run.take(x, y, index)
        for part in (slice(0, 6), slice(6, 12)):
            (F.cross_entropy(run.model(x[part]), y[part]) / 2).backward()
        if number % every == 0:
            make_step(run)
        else:
            run.forget()
            run.optimizer.step()
    assert said() == []
    run.monitor.close()


def held_inside(run, x):
    """How much of what the checkpointed blocks compute a forward pass keeps in memory."""
    inside = []

    def seen(layer, args, output):
        inside.extend(StorageWeakRef(t.untyped_storage()) for t in (*args, output))

    handles = [layer.register_forward_hook(seen) for layer in run.model.blocks[0].children()]
    logits = run.model(x)
    gc.collect()
    alive = sum(not memory.expired() for memory in inside)
    for handle in handles:
        handle.remove()
    logits.sum().backward()
    return alive


@kinds
@pytest.mark.parametrize("way", WAYS)
def test_what_checkpointing_drops_is_not_held(way, reentrant):
    run = followed(way, Deep(reentrant))
    x, *_ = next(iter(run.loader))
    watched = held_inside(run, x)
    run.monitor.close()
    assert watched == held_inside(run, x)


def fail(*args, **kwargs):
    raise ArithmeticError("as a defect of ours would")


@kinds
@pytest.mark.parametrize(
    "place",
    [
        (LayerHooks, "end_pass"),
        (ClosedFormEngine, "backward_began"),
        (ClosedFormEngine, "step_begins"),
        (TrainedCall, "by_sample"),
    ],
    ids=lambda place: place[1],
)
@pytest.mark.parametrize("every", [1, 2])
def test_a_failure_of_ours_leaves_the_second_computation_whole(
    place, every, reentrant, monkeypatch, said
):
    gradients = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        run = followed("closed_form", Deep(reentrant), every=every)
        if not is_watched:
            run.monitor.close()
        for number, (x, y, _) in enumerate(run.loader):
            run.optimizer.zero_grad()
            if is_watched and number == 1:
                monkeypatch.setattr(*place, fail)
            F.cross_entropy(run.model(x), y).backward()
            run.optimizer.step()
        gradients.append([p.grad for p in run.model.parameters()])
        run.monitor.close()
    assert all(map(torch.equal, *gradients))
    assert any("ArithmeticError" in problem for problem in said())


@kinds
def test_turning_everything_off_in_the_middle_of_a_step_leaves_it_whole(
    reentrant, said, monkeypatch
):
    run = followed("closed_form", Deep(reentrant))
    for number, (x, y, _) in enumerate(run.loader):
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(x), y)
        if number == 2:
            monkeypatch.setattr(SampleHistory, "record", fail)
        loss.backward()
        run.optimizer.step()
    assert any("ArithmeticError" in problem for problem in said())
    run.monitor.close()


@kinds
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("every", [1, 2])
def test_a_backward_pass_after_the_next_optimizer_step_is_let_be(way, every, reentrant):
    run = followed(way, Deep(reentrant), every=every)
    earlier = None
    for x, y, _ in run.loader:
        loss = F.cross_entropy(run.model(x), y)
        if earlier is not None:
            earlier.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        earlier = loss if earlier is None else None
    run.monitor.close()
