"""Over a long run memory stays flat, nothing waits for the device, and no hook is left over."""

import gc
import resource

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from prioritymonitor import GradientMonitor
from tests.capture.test_no_disturbance import hooks
from tests.support.cases import make_data, make_loader, mlp

WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::unique_dim",
    "aten::_unique2",
}


class Waits(TorchDispatchMode):
    """Notes operations for whose result the host would have to wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        by_mask = name in ("aten::index", "aten::index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] or ())
        )
        if name in WAITS or by_mask:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def setup(**options):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    loader = make_loader(make_data(torch.float32), batch_size=10)
    return model, optimizer, loader, GradientMonitor(model, optimizer, loader, **options)


def test_no_step_waits_for_the_device():
    """On a GPU these operations stall the queue; the first step and an epoch's end may."""
    model, optimizer, loader, monitor = setup(every=1)
    waits = Waits()
    for number, (x, y, _) in enumerate(loader):
        if number == 1:
            waits.__enter__()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if number == 4:
            break
    waits.__exit__(None, None, None)
    assert waits.seen == []
    monitor.close()


def test_waiting_would_be_noticed():
    with Waits() as waits:
        float(torch.ones(3).sum())
        torch.ones(3)[torch.ones(3) > 0]
    assert waits.seen == ["aten::_local_scalar_dense", "aten::index"]


@pytest.mark.parametrize("backward", [True, False], ids=["training", "forward only"])
def test_ten_thousand_steps_leave_memory_flat_and_no_hook_behind(backward):
    model, optimizer, loader, monitor = setup()
    hooks_while_attached = hooks(model, optimizer)
    batches = list(loader)

    def steps(count):
        for number in range(count):
            x, y, _ = batches[number % len(batches)]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if backward:
                loss.backward()
                optimizer.step()
        gc.collect()
        return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    objects_before, memory_before = steps(2_000)
    objects, memory = steps(8_000)
    assert objects - objects_before < 500
    assert memory - memory_before < 20_000  # KiB
    assert hooks(model, optimizer) <= hooks_while_attached
    monitor.close()
    assert hooks(model, optimizer) == 0
