"""Which steps are measured: the rule with made-up seconds, then in real training."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prioritymonitor import GradientMonitor, stopwatch
from prioritymonitor.cadence import LONGEST_INTERVAL, Costs, next_decision, next_interval
from prioritymonitor.capture.hooks import Guard, Hook
from prioritymonitor.distributed import Alone
from prioritymonitor.pace import BudgetPace
from prioritymonitor.stopwatch import Reading

from .cases import make_data, make_loader, mlp
from .test_no_disturbance import Everything, assert_identical

DECISIONS = {32, 64, 128, *range(256, 7937, 256)}


class Simulated:
    """A run whose seconds are made up; it stands in for the stopwatch of the pace it drives."""

    def __init__(self, budget):
        self.now = self.spent = 0.0
        self.said = []
        self.pace = BudgetPace(budget, self, self.said.append, lambda say: Alone())
        self.steps = 0
        self.intervals = [self.pace.interval]

    def read(self):
        return Reading(self.now, self.spent)

    def step(self, fixed, measured, own):
        cost = fixed + measured * self.pace.is_measured(self.steps)
        self.spent += cost
        self.now += cost + own
        self.steps += 1
        self.pace.step_made(self.steps)
        self.intervals.append(self.pace.interval)

    def steps_of(self, count, fixed, measured, own):
        for _ in range(count):
            self.step(fixed, measured, own)
        return self


seconds = st.floats(1e-6, 0.1)
budgets = st.floats(0.001, 0.9)


@given(fixed=seconds, measured=seconds, own=st.floats(1e-3, 1.0), budget=budgets)
@settings(max_examples=50, deadline=None)
def test_a_steady_run_is_within_a_budget_that_can_be_met_and_measures_no_less_than_it_may(
    fixed, measured, own, budget
):
    run = Simulated(budget).steps_of(1024, fixed, measured, own)
    interval, costs = run.pace.interval, Costs(fixed / own, measured / own)
    if costs.share(LONGEST_INTERVAL) <= budget * 0.999:
        assert costs.share(interval) <= budget * 1.001
    if interval > 1:
        assert costs.share(interval // 2) > 0.69 * budget
    assert math.log2(interval).is_integer()


shares = st.floats(0, 10)
intervals = st.integers(0, 8).map(lambda power: 2**power)


@given(shares, shares, shares, shares, budgets, intervals)
def test_a_dearer_monitor_never_measures_more_often(fixed, measured, more, more_so, budget, now):
    cheap, dear = Costs(fixed, measured), Costs(fixed + more, measured + more_so)
    assert next_interval(cheap, budget, now) <= next_interval(dear, budget, now)
    assert next_interval(dear, budget, now) <= next_interval(dear, budget / 2, now)


def test_the_share_in_a_run_with_work_every_16_steps_and_at_epoch_ends_is_within_the_budget():
    run = Simulated(budget=0.05)
    for step in range(4096):
        if step == 2048:
            before = run.read()
        fixed = 1e-4 + 3e-3 * (step % 16 == 15) + 0.03 * (step % 128 == 127)
        run.step(fixed, 5e-3, 0.02)
    spent, now = run.spent - before.spent, run.now - before.now
    assert 0.6 * 0.05 < spent / now <= 0.05


def test_the_interval_changes_at_agreed_steps_only():
    run = Simulated(budget=0.02)
    for step in range(4096):
        run.step(1e-5, 0.002 * (1 + step // 512 % 5), 0.01)
    changes = {step for step in range(1, 4097) if run.intervals[step] != run.intervals[step - 1]}
    assert len(changes) > 3
    assert changes <= DECISIONS


def test_decisions_come_early_and_then_regularly():
    assert {next_decision(steps) for steps in range(7936)} == DECISIONS


def test_slow_first_steps_tell_nothing():
    warm = Simulated(0.02).steps_of(16, 1.0, 30.0, 2.0).steps_of(240, 1e-5, 1e-3, 0.01)
    assert warm.intervals[32:] == Simulated(0.02).steps_of(256, 1e-5, 1e-3, 0.01).intervals[32:]


@pytest.mark.parametrize("hiccup", [{"fixed": 5.0}, {"measured": 5.0}, {"own": 3600.0}], ids=str)
@pytest.mark.parametrize("step", [300, 512, 1025])
def test_one_hiccup_or_pause_changes_nothing(hiccup, step):
    usual = {"fixed": 1e-5, "measured": 1e-3, "own": 0.01}
    run = Simulated(0.02).steps_of(step, **usual)
    settled = run.pace.interval
    run.steps_of(run.pace.interval, **usual | hiccup).steps_of(2048, **usual)
    assert set(run.intervals[step:]) == {settled}


def test_costs_that_vary_do_not_make_the_interval_swing():
    draw = torch.rand(8192, generator=torch.Generator().manual_seed(0)).tolist()
    run = Simulated(0.02)
    for noise in draw:
        run.step(1e-5, 1.6e-3 * (0.5 + noise), 0.01)  # 8 is just within the budget at the mean
    changes = sum(a != b for a, b in zip(run.intervals, run.intervals[1:], strict=False))
    assert changes <= 1


def test_a_budget_that_cannot_be_met_is_said_once_with_the_share():
    run = Simulated(budget=0.02).steps_of(2048, 1e-3, 1e-3, 0.01)
    assert run.pace.interval == LONGEST_INTERVAL
    (message,) = run.said
    assert "9.1%" in message
    assert "budget=0.02" in message


@pytest.fixture
def clock(monkeypatch):
    """The clock of the stopwatch, to be moved by hand."""
    time = [100.0]
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: time[0])

    def forward(by):
        time[0] += by

    return forward


def test_hooks_within_hooks_count_once_and_errors_too(clock):
    failed = []
    guard, other = Guard(failed.append), Guard(failed.append)

    def inner():
        clock(2.0)
        raise ValueError

    def outer():
        clock(1.0)
        Hook(inner, guard)()
        clock(1.0)
        assert guard.stopwatch.read().spent == 4.0

    Hook(outer, guard)()
    clock(12.0)
    assert len(failed) == 1
    assert guard.stopwatch.read() == (116.0, 4.0)
    assert guard.stopwatch.share() == 0.25
    clock(1.0)
    assert guard.stopwatch.share() == 0.0
    assert guard.stopwatch.share() == 0.0  # no time has passed
    assert other.stopwatch.read().spent == 0.0


class Run:
    """Real training, with the interval before each step."""

    def __init__(self, model=None, **options):
        torch.manual_seed(0)
        self.model = model or mlp()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.loader = make_loader(make_data(torch.float32), batch_size=10, shuffle=True)
        self.monitor = GradientMonitor(self.model, self.optimizer, self.loader, **options)
        self.intervals = []

    def train(self, epochs):
        for _ in range(epochs):
            for x, y, _ in self.loader:
                self.intervals.append(self.monitor._watch.pace.interval)
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(x), y).backward()
                self.optimizer.step()
        return self


def read(folder, tag):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events.Scalars(f"prioritymonitor/{tag}")


@pytest.mark.parametrize("budget", [0.02, 0.9])
def test_the_steps_in_the_event_file_are_those_of_the_interval(budget, tmp_path):
    run = Run(every="auto", budget=budget, log_dir=tmp_path).train(45)  # 270 steps
    run.monitor.close()
    intervals = run.intervals
    expected = [step + 1 for step, k in enumerate(intervals) if step % k == 0]
    assert [event.step for event in read(tmp_path, "coherence")] == expected
    assert set(intervals[:32]) == {8}


@pytest.mark.parametrize("every", [1, 5, "auto"])
def test_the_overhead_is_written_with_each_report_whatever_the_cadence(every, tmp_path):
    run = Run(every=every, log_dir=tmp_path).train(6)
    latest = run.monitor.latest["overhead_fraction"]
    run.monitor.close()
    written = [event.value for event in read(tmp_path, "overhead_fraction")]
    assert len(written) >= 4  # a report per epoch in which a step was measured
    assert all(0 < value <= 1 for value in written)
    assert written[-1] == pytest.approx(latest)


def test_a_number_is_kept_to():
    run = Run(every=3)
    assert [step for step in range(10) if run.monitor._watch.pace.is_measured(step)] == [0, 3, 6, 9]
    assert set(run.train(12).intervals) == {3}


def test_training_is_bit_identical():
    torch.manual_seed(1)
    models = [Everything(), Everything()]
    models[1].load_state_dict(models[0].state_dict())
    watched = Run(models[0], every="auto").train(12)
    assert watched.intervals[-1] != 8
    state = torch.get_rng_state()
    alone = Run(models[1], every=8)
    alone.monitor.close()
    alone.train(12)
    assert_identical(watched.model.state_dict(), alone.model.state_dict())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_resumed_run_goes_on_with_the_interval(tmp_path):
    run = Run(every="auto", budget=0.001).train(10)
    assert run.intervals[-1] == LONGEST_INTERVAL
    torch.save(run.monitor.state_dict(), tmp_path / "state.pt")
    resumed = Run(every="auto", budget=0.001)
    resumed.monitor.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert set(resumed.train(3).intervals) == {LONGEST_INTERVAL}
    fixed = Run(every=4)
    fixed.monitor.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert set(fixed.train(1).intervals) == {4}
