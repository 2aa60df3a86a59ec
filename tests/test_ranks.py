"""Ranks measure the same steps, and a rank that is missing holds up nobody."""

import datetime
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from prioritymonitor.cadence import Costs, next_interval
from prioritymonitor.distributed import Alone, Together, meet
from prioritymonitor.pace import BudgetPace

from .test_cadence import Run, Simulated, read

ROOT = Path(__file__).parents[1]
LONG = datetime.timedelta(seconds=60)
MOMENT = datetime.timedelta(seconds=0.2)


class Group:
    """Ranks that are threads of this process."""

    def __init__(self, count, patience=LONG, made=None):
        self.store = dist.HashStore()
        self.said = [[] for _ in range(count)]
        self.ranks = [
            Together(self.store, rank, count, self.said[rank].append, patience)
            for rank in range(count if made is None else made)
        ]

    def each(self, act):
        """What `act(rank, its number)` returns on each rank, all at the same time."""
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            waiting = [pool.submit(act, rank, number) for number, rank in enumerate(self.ranks)]
            return [future.result(timeout=20) for future in waiting]


def test_all_ranks_hear_the_largest_values():
    group = Group(3)
    for step in (32, 64):
        said = group.each(lambda rank, number: rank.largest(step, [number, -number, 0.1 * step]))  # noqa: B023
        assert said == [[2, 0, 0.1 * step]] * 3
    assert group.said == [[], [], []]
    assert group.store.num_keys() == 3 + 1 + 2  # monitors of each rank, those present, verdicts


def test_a_rank_without_a_monitor_is_not_waited_for():
    group = Group(3, made=2)
    assert group.each(lambda rank, number: rank.largest(32, [1.0])) == [None, None]
    assert group.each(lambda rank, number: rank.largest(64, [1.0])) == [None, None]
    assert all(len(said) == 1 and "on all ranks" in said[0] for said in group.said[:2])


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_rank_that_leaves_tells_the_others_at_once(leaver):
    group = Group(3)
    assert group.each(lambda rank, number: rank.largest(32, [number])) == [[2]] * 3

    def act(rank, number):
        return rank.leave(64) if number == leaver else rank.largest(64, [1.0])

    assert group.each(act) == [None] * 3
    assert [len(said) for said in group.said] == [number != leaver for number in range(3)]


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_late_comes_to_the_verdict_of_those_that_waited_in_vain(late):
    group = Group(2, patience=MOMENT)
    assert group.ranks[1 - late].largest(32, [1.0]) is None
    assert group.ranks[late].largest(32, [1.0]) is None


def test_the_nth_monitors_of_each_rank_belong_together():
    group = Group(2)
    second = Group.__new__(Group)
    second.ranks = [Together(group.store, rank, 2, print, LONG) for rank in range(2)]
    assert group.each(lambda rank, number: rank.largest(32, [number])) == [[1]] * 2
    assert second.each(lambda rank, number: rank.largest(32, [10 + number])) == [[11]] * 2


def test_a_store_that_fails_is_said_once_and_leaves_the_interval():
    class Broken(dist.HashStore):
        def set(self, key, value):
            raise ConnectionError("gone")

    said = []
    rank = Together(Broken(), 0, 2, said.append)
    assert rank.largest(32, [1.0]) is None
    assert rank.largest(64, [1.0]) is None
    assert len(said) == 2
    assert "ConnectionError: gone" in said[0]
    Together(Broken(), 0, 2, said.append).leave(32)


def test_a_process_without_a_group_is_alone():
    assert isinstance(meet(print), Alone)


@pytest.mark.parametrize("fails", [False, True])
def test_a_monitor_that_is_closed_or_fails_leaves_before_its_next_decision(fails, monkeypatch):
    left = []

    class Others(Alone):
        def leave(self, step):
            left.append(step)

    run = Run(every="auto")
    monkeypatch.setattr(run.monitor._watch.pace, "_find_ranks", lambda say: Others())
    run.train(6)  # 36 steps
    if fails:
        monkeypatch.setattr(run.monitor._watch._meter, "measure", lambda *a: 1 / 0)
        monkeypatch.setattr(run.monitor._watch.pace, "interval", 1)
        run.train(1)
    else:
        run.monitor.close()
    assert left == [64]


def test_ranks_of_different_cost_take_the_same_interval_at_the_same_steps():
    group = Group(2)

    def act(rank, number):
        run = Simulated(budget=0.02)
        run.pace = BudgetPace(0.02, run, run.said.append, lambda say: rank)
        return run.steps_of(600, 1e-5, 4e-4 * (1 + 3 * number), 0.01).intervals

    one, other = group.each(act)
    assert one == other
    dearest = Costs(1e-3, 1.6e-3 / 0.01)
    assert one[-1] == next_interval(dearest, 0.02, 8) > next_interval(Costs(1e-3, 4e-2), 0.02, 8)


WORKER = """
    import sys, time, torch, torch.distributed as dist, torch.nn.functional as F
    from torch.utils.data import DistributedSampler
    from prioritymonitor import GradientMonitor
    from tests.cases import make_data, make_loader, mlp

    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def slow_on_rank_1(inputs, targets, index):
        time.sleep(0.005 * rank)
        return torch.zeros(len(targets), dtype=torch.bool)

    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    data = make_data(torch.float32, samples=540)
    sampler = DistributedSampler(data.inputs, num_replicas=2, rank=rank)
    loader = make_loader(data, batch_size=10, sampler=sampler)
    folder, closes = sys.argv[1], int(sys.argv[2])
    options = {"budget": 0.3, "noisy": slow_on_rank_1, "log_dir": f"{folder}/{rank}"}
    monitor = GradientMonitor(model, optimizer, loader, every="auto", **options)
    steps = 0
    for _ in range(10):
        for x, y, _ in loader:
            time.sleep(0.003 * (1 - rank))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            steps += 1
            if steps == 20 and rank == closes:
                monitor.close()
    monitor.close()
    dist.destroy_process_group()
"""


def torchrun(folder, closes=-1):
    """What two ranks said, and which steps each measured; `closes` closes its monitor early."""
    script = folder / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(folder), str(closes)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    measured = [[e.step - 1 for e in read(folder / str(rank), "coherence")] for rank in (0, 1)]
    return done.stderr, *measured


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_of_different_cost_measure_the_same_steps(tmp_path):
    said, one, other = torchrun(tmp_path)
    assert one == other == [0, 8, 16, 24, 256]  # rank 1 is far over the budget, rank 0 within
    assert "not every rank" not in said


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_a_process_that_closes_its_monitor_leaves_the_other_as_it_is(tmp_path):
    said, closed, other = torchrun(tmp_path, closes=0)
    assert closed == [0, 8, 16]
    assert other == list(range(0, 270, 8))
    assert said.count("not every rank takes part") == 1
