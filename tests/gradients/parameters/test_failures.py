"""What fails in an engine ends the smallest part, and what is not ours goes on its way."""

import signal
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from prioritymonitor import GradientMonitor
from tests.support.engine_driver import small_batch, small_mlp

ENGINES = ["closed_form", "func", "opacus"]


class Trouble(nn.Module):
    """A layer without a formula, which an engine computes once more; that may go wrong."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.float64))
        self.when_again = None
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2 and self.when_again is not None:
            self.when_again()
        return x * self.scale


def monitored(model, engine):
    optimizer = SGD(model.parameters(), lr=0.1)
    noisy = torch.arange(6) % 2 == 0
    options = {"scope": "all", "engine": engine, "every": 1, "noisy": lambda *_: noisy}
    return GradientMonitor(model, optimizer, **options), optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    x, y = small_batch()
    model[0].calls = 0
    cross_entropy(model(x), y).backward()
    optimizer.step()


def no_memory():
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("engine", ["closed_form", "func"])
def test_a_step_without_memory_is_lost_and_the_next_is_measured(engine, caplog):
    model = nn.Sequential(Trouble(), small_mlp())
    monitor, optimizer = monitored(model, engine)
    step(model, optimizer)
    before = monitor.latest
    model[0].when_again = no_memory
    step(model, optimizer)
    assert "dominance_ratio" not in monitor.latest
    assert "a step was not measured" in caplog.text
    model[0].when_again = None
    step(model, optimizer)
    assert monitor.latest.keys() == before.keys()
    assert monitor.latest["coverage"] == 1
    monitor.close()


class OutOfTime(RuntimeError):
    """Raised by a handler of the user's."""


def time_is_up(number, frame):
    raise OutOfTime


@pytest.mark.parametrize("engine", ["closed_form", "func"])
def test_what_a_signal_handler_raises_in_an_engine_ends_the_loop(engine):
    model = nn.Sequential(Trouble(), small_mlp())
    monitor, optimizer = monitored(model, engine)
    earlier = signal.signal(signal.SIGUSR1, time_is_up)
    try:
        model[0].when_again = lambda: signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(OutOfTime):
            step(model, optimizer)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
        monitor.close()


def hooks_on(model):
    tables = ("_forward_hooks", "_forward_pre_hooks")
    on_modules = sum(len(getattr(module, table)) for module in model.modules() for table in tables)
    return on_modules + sum(bool(p._post_accumulate_grad_hooks) for p in model.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_that_is_interrupted_in_the_making_leaves_no_hooks(engine):
    if engine == "opacus":
        pytest.importorskip("opacus")
    model, made = small_mlp(), []
    monitored(model, engine)[0].close()
    assert hooks_on(model) == 0

    def interrupt(frame, event, argument):
        if any(room in frame.f_code.co_filename for room in ("capture", "gradients", "attached")):
            if event == "line" and frame.f_code.co_name in ("__init__", "to_training"):
                made.append(frame.f_lineno)
                if len(made) == at:
                    raise KeyboardInterrupt
            return interrupt
        return None

    at = 0
    while True:
        at += 1
        made.clear()
        sys.settrace(interrupt)
        try:
            monitor, _ = monitored(model, engine)
        except KeyboardInterrupt:
            assert hooks_on(model) == 0, f"line {made[-1]}"
            continue
        finally:
            sys.settrace(None)
        monitor.close()
        break
    assert at > 20


def test_the_engines_are_loaded_for_all_parameters_only():
    script = (
        "import sys, torch\n"
        "from prioritymonitor import GradientMonitor\n"
        "model = torch.nn.Linear(3, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for scope in ('head', 'all'):\n"
        "    GradientMonitor(model, optimizer, scope=scope).close()\n"
        "    print('prioritymonitor.gradients.parameters' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
