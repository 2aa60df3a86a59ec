"""Whatever is wrong with a state, loading it raises one error and changes nothing."""

import copy
import random

import pytest
import torch

from prioritymonitor import ArgumentValueError
from tests.capture.test_no_disturbance import assert_identical
from tests.support.observed import content_of
from tests.support.small_run import SmallRun

WRONG = [
    None,
    "text",
    -1,
    1.5,
    [],
    {},
    object(),
    torch.zeros(3),
    torch.zeros(2, 2, dtype=torch.int64),
    torch.tensor(7),
]


def places(state, path=()):
    """Every place in a state, as the keys that lead to it."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def damaged(state, chance):
    """A copy in which one place is missing, or holds something else."""
    state = copy.deepcopy(state)
    *path, key = chance.choice(list(places(content_of(state))))
    inner = content_of(state)
    for step in path:
        inner = inner[step]
    value, way = inner[key], chance.randrange(4)
    if way == 0:
        del inner[key]
    elif way == 1 and isinstance(value, torch.Tensor):
        inner[key] = value.double() if value.is_floating_point() else value.short()
    elif way == 2 and isinstance(value, torch.Tensor):
        inner[key] = torch.cat((value.flatten(), value.flatten()))
    else:
        inner[key] = chance.choice(WRONG)
    return state, (*path, key)


def same(one, other, path=""):
    """As `assert_identical`, where NaN is NaN."""
    assert_identical(comparable(one), comparable(other), path)


def comparable(state):
    if isinstance(state, dict):
        return {key: comparable(value) for key, value in state.items() if key != "time"}
    if isinstance(state, (list, tuple)):
        return [comparable(value) for value in state]
    if isinstance(state, torch.Tensor):
        return state.dtype, state.nan_to_num(nan=-99)
    return state


def run_of(epochs):
    run = SmallRun()
    monitor = run.watched(every=1)
    run.train(epochs)
    return run, monitor


def test_a_damaged_state_is_refused_whole_and_training_goes_on():
    chance = random.Random(0)
    _, saved = run_of(3)
    state = saved.state_dict()
    saved.close()
    run, monitor = run_of(2)
    plain, undisturbed = run_of(2)
    before, refused = monitor.state_dict(), 0
    for _ in range(100):
        broken, place = damaged(state, chance)
        try:
            monitor.load_state_dict(broken)
        except ArgumentValueError:
            refused += 1
        else:  # what nothing can be told from, such as another loss
            monitor.load_state_dict(before)
        same(monitor.state_dict(), before, str(place))
    assert refused > 70
    for one in (run, plain):
        torch.manual_seed(1)
        one.train(2)
    assert_identical(run.result(), plain.result())
    assert len(monitor.history()) == 4
    monitor.close()
    undisturbed.close()


@pytest.mark.parametrize("state", [None, 3, [], {}, {"version": 99}, {"version": None}])
def test_what_is_no_state_is_refused(state):
    _, monitor = run_of(1)
    before = monitor.state_dict()
    with pytest.raises(ArgumentValueError, match="got a state of version"):
        monitor.load_state_dict(state)
    same(monitor.state_dict(), before)
    monitor.close()
