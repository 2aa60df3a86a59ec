"""An interrupted run continues to the same decision as one that was not interrupted."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.distributed.checkpoint.state_dict import get_state_dict

from prioritymonitor import ArgumentValueError, GradientMonitor
from tests.capture.test_no_disturbance import assert_identical
from tests.support.cases import make_data, make_loader
from tests.support.observed import content_of
from tests.support.separable import separable


class Run:
    """A training run that can be saved and continued, in the middle of an epoch too."""

    def __init__(self, batches_in_memory, **options):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(7, 128), torch.nn.ReLU(), torch.nn.Linear(128, 5)
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-2)
        self.loader = make_loader(separable(), batch_size=20, sampler=batches_in_memory)
        self.monitor = GradientMonitor(self.model, self.optimizer, self.loader, **options)

    def train(self, first, last):
        for number, (x, y, _) in enumerate(self.loader):
            if number == last:
                break
            if number >= first:
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(x), y).backward()
                self.optimizer.step()

    def save(self, file):
        parts = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "monitor": self.monitor.state_dict(),
        }
        torch.save(parts, file)

    def load(self, file):
        parts = torch.load(file, weights_only=True)
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.monitor.load_state_dict(parts["monitor"])

    def outcome(self):
        self.monitor.restore_best()
        return {
            "decision": vars(self.monitor.decision),
            "history": [record | {"time": None} for record in self.monitor.history()],
            "suspects": self.monitor.suspects(min_score=0),
            "best": {k: v.clone() for k, v in self.model.state_dict().items()},
            "latest": {
                tag: value
                for tag, value in self.monitor.latest.items()
                if tag != "overhead_fraction"  # of the clock
            },
        }


class Shuffled:
    """An order that depends on nothing but the epoch, as a resumed run needs it."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(400, generator=generator).tolist())

    def __len__(self):
        return 400


def run_to_the_stop(interrupted_at, tmp_path, known=None, **options):
    order = Shuffled()
    options |= {"noisy": separable().noisy} if known else {}
    run = Run(order, **options)
    for epoch in range(60):
        order.epoch = epoch
        if interrupted_at is not None and interrupted_at[0] == epoch:
            batch = interrupted_at[1]
            run.train(0, batch)
            run.save(tmp_path / "checkpoint.pt")
            run.monitor.close()
            run = Run(order, **options)
            run.load(tmp_path / "checkpoint.pt")
            run.train(batch, 100)
        else:
            run.train(0, 100)
        if run.monitor.should_stop:
            break
    return run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = run_to_the_stop(None, tmp_path_factory.mktemp("run"))
    assert run.monitor.should_stop
    return run.outcome()


@pytest.mark.parametrize("where", [(1, 0), (3, 0), (6, 7), (9, 19)], ids=str)
def test_a_resumed_run_ends_as_the_uninterrupted_one(where, uninterrupted, tmp_path):
    assert_identical(run_to_the_stop(where, tmp_path).outcome(), uninterrupted)


def test_a_resumed_run_with_known_noise_ends_as_the_uninterrupted_one(tmp_path):
    resumed = run_to_the_stop((4, 5), tmp_path, known=True).outcome()
    assert_identical(resumed, run_to_the_stop(None, tmp_path, known=True).outcome())


def test_a_resumed_run_tries_the_same_held_out_samples(tmp_path):
    def run(interrupted_at):
        shuffled = {"shuffle": True, "generator": torch.Generator()}
        held_out = make_loader(make_data(torch.float32, 2300), batch_size=30, **shuffled)
        return run_to_the_stop(interrupted_at, tmp_path, validation=held_out).outcome()

    uninterrupted = run(None)
    assert len({record["validation"] for record in uninterrupted["history"]}) > 2
    assert_identical(run((4, 5)), uninterrupted)


def test_a_stopped_run_stays_stopped_after_resuming(tmp_path):
    stopped = run_to_the_stop(None, tmp_path)
    stopped.save(tmp_path / "checkpoint.pt")
    resumed = Run(Shuffled())
    resumed.load(tmp_path / "checkpoint.pt")
    assert resumed.monitor.should_stop
    assert_identical(resumed.outcome(), stopped.outcome())
    resumed.train(0, 100)
    assert resumed.monitor.decision == stopped.monitor.decision


def test_the_state_does_not_change_when_the_run_goes_on():
    run = Run(Shuffled())
    for _ in range(2):
        run.train(0, 100)
    run.train(0, 3)
    state = run.monitor.state_dict()
    before = copy.deepcopy(state)
    for _ in range(2):
        run.train(0, 100)
    for name in ("steps", "epoch", "records", "judge"):
        same(content_of(state)[name], content_of(before)[name])


def same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    elif isinstance(one, dict):
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert one == other


def test_a_state_of_other_data_or_settings_is_refused():
    state = Run(Shuffled()).monitor.state_dict()
    model = torch.nn.Linear(7, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    other_data = GradientMonitor(model, optimizer, make_loader(make_data(samples=30)))
    with pytest.raises(ArgumentValueError, match=r"400 samples.* for one of 30"):
        other_data.load_state_dict(state)
    no_loader = GradientMonitor(model, optimizer)
    with pytest.raises(ArgumentValueError, match="same train_loader"):
        no_loader.load_state_dict(state)


def test_a_distributed_checkpoint_takes_a_monitor_and_loads_it_in_place(tmp_path):
    saved = Run(Shuffled())
    saved.train(0, 100)
    saved.train(0, 7)
    dcp.save({"monitor": saved.monitor}, checkpoint_id=tmp_path)
    loaded = Run(Shuffled())
    dcp.load({"monitor": loaded.monitor}, checkpoint_id=tmp_path)
    found = content_of(loaded.monitor.state_dict())
    assert_identical(without_nan(found), without_nan(content_of(saved.monitor.state_dict())))


def without_nan(state):
    if isinstance(state, torch.Tensor):
        return state.nan_to_num(nan=-99)
    return {k: without_nan(v) for k, v in state.items()} if isinstance(state, dict) else state


def test_to_make_an_optimizer_its_state_is_no_step(tmp_path):
    """As a distributed checkpoint does, before there is anything to load into."""
    run = Run(Shuffled(), log_dir=tmp_path / "run")
    get_state_dict(run.model, run.optimizer)
    assert content_of(run.monitor.state_dict())["steps"] == 0
    assert not (tmp_path / "run").exists()
