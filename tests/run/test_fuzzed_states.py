"""States made by a fuzzer: refused in one clear line and whole, or as good as any other."""

import logging

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.capture.test_no_disturbance import assert_identical
from tests.support.fuzz.outcome import Target, frozen, is_clear, works
from tests.support.fuzz.saved import PHASES, saved, watched
from tests.support.fuzz.states import damaged
from tests.support.observed import content_of
from tests.support.small_run import SmallRun

FIXED = settings(
    max_examples=120,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _silent():
    logger = logging.getLogger("prioritymonitor")
    logger.propagate = False
    yield
    logger.propagate = True


def test_a_state_is_refused_whole_in_one_clear_line_or_works(tmp_path):
    target, taken = Target(tmp_path), []

    @FIXED
    @given(damaged())
    def check(one):
        what, state = one
        said = target.load(state)
        if said is not None:
            assert is_clear(said), what
            return
        taken.append(what)
        assert works(state, tmp_path / f"taken-{len(taken)}") == [], what

    check()
    target.monitor.close()
    assert taken


@pytest.mark.parametrize("phase", PHASES)
def test_a_state_that_nobody_changed_works(phase, tmp_path):
    assert works(saved(phase), tmp_path) == []


def test_refused_states_leave_no_trace_in_the_training_that_goes_on():
    def run(tried):
        one = SmallRun()
        monitor = watched(one)
        one.train(1)
        batches = iter(one.loader)
        for _ in range(3):
            one.step(*next(batches)[:2])
        for damage in tried:
            state = saved("mid-epoch")
            damage(content_of(state))
            with pytest.raises(ValueError, match="got a"):
                monitor.load_state_dict(state)
        torch.manual_seed(1)
        one.train(2)
        monitor.close()
        state = content_of(monitor.state_dict())
        for record in state["records"]:
            del record["time"]
        del state["id"], state["latest"]["overhead_fraction"]
        return one.result(), frozen(state)

    refused = run(
        [
            lambda state: state["representations"]["features"].pop("matrix"),
            lambda state: state["judge"]["keeper"].update(steps=-1),
            lambda state: state.update(called="4", steps="7"),
            lambda state: state.update(phase="CLOSED"),
        ]
    )
    undisturbed = run([])
    assert_identical(refused[0], undisturbed[0])
    assert refused[1] == undisturbed[1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("steps",), 1),
        (("steps",), 2**60),
        (("id",), "../../elsewhere"),
        (("phase",), "CLOSED"),
        (("phase",), "STOPPED"),
        (("expected_steps",), float("nan")),
        (("latest", "group_cosine"), 1.5),
        (("latest", "no such statistic"), 0.5),
        (("decision", "epoch"), 9),
        (("decision", "peak_epochs"), (4,)),
        (("decision", "best_epoch"), 0),
        (("decision", "stop"), True),
        (("records", 1, "epoch"), 7),
        (("records", 1, "step"), 1),
        (("records", 1, "noise_rate"), 1.5),
        (("records", 1, "train_loss"), float("inf")),
        (("records", 1, "samples_seen"), 61),
        (("records", 1, "best_epoch"), 3),
        (("judge", "table", "known"), torch.full((61,), 1.5)),
        (("judge", "table", "history", "classes"), 3),
        (("judge", "table", "history", "past", "visits"), torch.full((60,), -1.0)),
        (("judge", "table", "history", "past", "visits"), torch.full((60,), 2.5)),
        (("judge", "table", "history", "past", "margin_sum"), torch.full((60,), -9.0)),
        (("judge", "table", "history", "past", "error_sum"), torch.full((60,), torch.nan)),
        (("judge", "table", "history", "past", "rival"), torch.full((60,), 5, dtype=torch.int32)),
        (("judge", "table", "history", "past", "loss"), torch.zeros(60).to_sparse()),
        (("judge", "table", "history", "past", "loss"), torch.zeros(60, device="meta")),
        (("judge", "keeper", "average"), {}),
        (("judge", "keeper", "expected_steps"), 0.0),
        (("representations", "inputs", "centre"), torch.full((64,), torch.nan)),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_no_run_can_have_led_to_is_refused(place, value):
    """Each would be taken by types alone, and break the run later or spoil what it tells."""
    state = saved("mid-epoch")
    inner = content_of(state)
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    monitor = watched(SmallRun())
    with pytest.raises(ValueError, match="got a ") as raised:
        monitor.load_state_dict(state)
    assert is_clear(str(raised.value))
    monitor.close()
