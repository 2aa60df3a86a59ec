"""What ranks cost by the model, and what tells that a fault in one of them changed a training."""

import sys

import pytest

from benchmarks.ranks import costs, faults, faulty, overhead, scale
from benchmarks.ranks.costs import Constants
from benchmarks.ranks.faulty import END, GO_ON, LATE, drawn_place
from benchmarks.ranks.scale import of_table

CONSTANTS = Constants(answers=7_000.0, hop=1e-3, byte=1e-9)


def test_a_meeting_takes_as_long_as_the_store_needs_for_all_of_them():
    assert costs.meeting(CONSTANTS, 1_000) == pytest.approx(1.0)


def test_a_sum_goes_twice_around_the_ring():
    cost = costs.collectives(CONSTANTS, 5, 1e9, calls=1)
    assert (cost.bytes, cost.seconds) == (1.6e9, pytest.approx(1.6 + 2 * 4 * 1e-3))


def test_large_steps_wait_for_no_other():
    assert costs.steps_at_once(10, 512) == costs.MOST_WAITING
    assert costs.steps_at_once(1_000, 2_048) == 1


def test_the_bytes_of_an_epoch_are_those_that_the_table_exchanges():
    few, many = of_table(1_000), of_table(2_000)
    assert many["bytes"] - few["bytes"] == 32 * 1_000
    assert few["bytes, first epochs"] > few["bytes"]


LINES = ["a 1", "b 2", "c 3"]


@pytest.mark.parametrize(
    ("kind", "watched", "is_changed"),
    [
        (GO_ON[0], LINES, False),
        (GO_ON[0], ["a 1", "b 3", "c 3"], True),
        (GO_ON[0], LINES[:2], True),
        (GO_ON[0], None, True),
        (END[0], LINES[:2], False),  # the launcher ended this rank a step earlier
        (END[0], ["a 1", "x 2"], True),
    ],
)
def test_a_training_is_compared_step_by_step(kind, watched, is_changed, tmp_path):
    launched = faults.Launch(kind, 0, 2)
    healthy = 1 - drawn_place(kind, 0, 2).rank
    for rank in range(2):
        for variant, lines in (("without", LINES), ("with", watched if rank == healthy else LINES)):
            if lines is not None:
                (tmp_path / f"{kind}, {variant}-{rank}.txt").write_text("\n".join(lines))
    assert faults.verdict(launched, kind, tmp_path)["changed"] is is_changed


def test_what_was_launched_is_not_launched_again():
    made = [{"kind": kind, "seed": 0} for kind in (*GO_ON, LATE)]
    left = [(one.kind, one.seed, one.ranks) for one in faults.missing(2, 1, made)]
    kinds = [(kind, seed, 4 if seed else 2) for kind in END for seed in (0, 1)]
    assert left == [(LATE, 1, 4), ("go on", 1, 4), *kinds]


@pytest.mark.parametrize("script", [faults, faulty, overhead, scale], ids=lambda s: s.__name__)
def test_each_script_starts(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        script.main()
    assert "usage" in capsys.readouterr().out
