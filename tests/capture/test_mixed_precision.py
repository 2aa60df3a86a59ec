"""Mixed precision: autocast and gradient scaling, overflows included, are measured as they are."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.followed import WAYS, Followed, Net

SCALE = 2.0**14

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW

OPTIMIZERS = {
    "SGD": lambda p: SGD(p, 0.1, momentum=0.9),
    "SGD, fused": lambda p: SGD(p, 0.1, momentum=0.9, fused=True),
    "AdamW": lambda p: AdamW(p, 0.01),
    "AdamW, fused": lambda p: AdamW(p, 0.01, fused=True),
}


def followed(way, optimizer=OPTIMIZERS["SGD"], **options):
    model = Net()
    return Followed(way, model, optimizer(model.parameters()), **options)


def backward(run, x, y, scaler, dtype=None):
    autocast = torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()
    with autocast:
        loss = F.cross_entropy(run.model(x), y)
    scaler.scale(loss).backward()
    return loss


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_scale_is_recovered_exactly(way, optimizer):
    run = followed(way, OPTIMIZERS[optimizer])
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)  # it changes
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        backward(run, x, y, scaler)
        run.before_step()
        scaler.step(run.optimizer)
        scaler.update()
        run.check(1e-4)
    run.monitor.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW, fused"])
def test_autocast_is_measured_as_in_full_precision(way, dtype, optimizer, said):
    run = followed(way, OPTIMIZERS[optimizer])
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        backward(run, x, y, scaler, dtype)
        run.before_step()
        scaler.step(run.optimizer)
        scaler.update()
        run.check(0.05 if dtype is torch.bfloat16 else 0.01, floor=1)
    assert said() == []
    run.monitor.close()


class GivesFullPrecision(nn.Module):
    """What accelerate makes of a model: half precision within, its outputs copied to float32."""

    def __init__(self, dtype):
        super().__init__()
        self.net, self.dtype = Net(), dtype

    def forward(self, x, labels=None):
        with torch.autocast("cpu", self.dtype):
            logits = self.net(x)
            loss = F.cross_entropy(logits, labels) if labels is not None else None
        return logits.float() if loss is None else (loss, logits.float())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["inside the model", "outside", "both"])
def test_a_copy_of_the_logits_in_full_precision_hides_nothing(way, dtype, where, said):
    model = GivesFullPrecision(dtype)
    run = Followed(way, model.net, SGD(model.parameters(), 0.1), called=model)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        if where == "outside":
            loss = F.cross_entropy(model(x), y)
        else:
            loss, logits = model(x, labels=y)
            if where == "both":
                loss = (loss + F.cross_entropy(logits, y)) / 2
        loss.backward()
        run.before_step()
        run.optimizer.step()
        if where != "both":  # what reaches either of them is half a loss
            run.check(0.05 if dtype is torch.bfloat16 else 0.01, floor=1)
    assert (run.monitor.samples()["visits"] == 1).all()
    if where != "both" and way != "func":  # torch.func says that it can't map autocast
        assert said() == []
    run.monitor.close()


@pytest.mark.parametrize("way", WAYS)
def test_unscaling_and_clipping_show_in_the_update_alone(way):
    run = followed(way)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for x, y, index in run.loader:
        run.optimizer.zero_grad()
        run.take(x, y, index)
        backward(run, x, y, scaler)
        scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.05)
        run.before_step()
        scaler.step(run.optimizer)
        scaler.update()
        run.check(1e-4)
    run.monitor.close()


def overflow_in_the_logits(run, x, y, scaler):
    scaler.scale(F.cross_entropy(run.model(x), y) * torch.inf).backward()


def overflow_in_a_parameter(run, x, y, scaler):
    handle = run.model.first.weight.register_hook(lambda gradient: gradient * torch.inf)
    backward(run, x, y, scaler)
    handle.remove()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW, fused"])
@pytest.mark.parametrize("to_none", [True, False], ids=["dropped", "zeroed"])
@pytest.mark.parametrize("overflow", [overflow_in_the_logits, overflow_in_a_parameter])
@pytest.mark.parametrize("first", [True, False], ids=["first step", "later"])
def test_an_overflowed_step_leaves_nothing_in_the_next(way, optimizer, to_none, overflow, first):
    run = followed(way, OPTIMIZERS[optimizer])
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    failing = {0, 3} if first else {2}
    for number, (x, y, index) in enumerate(run.loader):
        run.optimizer.zero_grad(set_to_none=to_none)
        run.take(x, y, index)
        if number in failing:
            overflow(run, x, y, scaler)
        else:
            backward(run, x, y, scaler)
        run.before_step()
        scaler.step(run.optimizer)
        scaler.update()
        if number in failing:
            run.forget()
        else:
            run.check(1e-4)
    run.monitor.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("to_none", [True, False], ids=["dropped", "zeroed"])
def test_micro_batches_of_an_overflowed_step_are_forgotten_together(way, to_none):
    run = followed(way)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for number, (x, y, index) in enumerate(run.loader):
        run.optimizer.zero_grad(set_to_none=to_none)
        run.take(x, y, index)
        for part in (slice(0, 4), slice(4, 12)):
            loss = F.cross_entropy(run.model(x[part]), y[part], reduction="sum") / len(x)
            scaler.scale(loss * torch.inf if number == 1 and part.start else loss).backward()
        run.before_step()
        scaler.step(run.optimizer)
        scaler.update()
        if number == 1:
            run.forget()
        else:
            run.check(1e-4)
    run.monitor.close()
