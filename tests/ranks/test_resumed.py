"""A state of any rank is loaded by any number of ranks, and what it can't tell is said."""

import random

import pytest
import torch
import torch.distributed as dist

from tests.capture.test_no_disturbance import assert_identical
from tests.ranks.interrupted import EPOCHS, begun, gone_on
from tests.ranks.killed import compare, run_with_kills, uninterrupted
from tests.ranks.launched import launch
from tests.ranks.resumed_ranks import MIDDLE

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

LOST = "lacks what 1 of the ranks had seen of it"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    training = begun(*MIDDLE)
    torch.save(training.parts(), folder / "alone.pt")
    training.monitor.close()
    return launch("tests.ranks.resumed_ranks", folder)[0]


def without(result, *names):
    return {name: value for name, value in result.items() if name not in names}


def test_each_rank_goes_on_in_mid_epoch_with_its_own_state(ranks):
    for rank in ranks:
        assert rank["its own"]["said"] == []
        assert_identical(without(rank["its own"], "said"), rank["whole"])


def test_a_state_of_one_process_is_gone_on_with_by_two(ranks):
    for rank in ranks:
        assert rank["of one process"]["said"] == []
        for one, other in zip(
            rank["of one process"]["history"], rank["whole"]["history"], strict=True
        ):
            assert one["samples_seen"] == other["samples_seen"]
            assert one["priority"] == pytest.approx(other["priority"], abs=1e-8)
            assert one["agreement"] == other["agreement"]


def test_what_others_had_seen_is_lost_with_the_state_of_one_rank_and_that_is_said(ranks):
    first, second = (rank["the first's"] for rank in ranks)
    assert len(first["said"]) == 1
    assert LOST in first["said"][0]
    assert second["said"] == []
    assert_identical(without(first, "said", "log_dir"), without(second, "said", "log_dir"))
    epoch, _ = MIDDLE
    assert first["visits"].unique(return_counts=True)[1].tolist() == [140, 460]
    assert first["visits"].min() == EPOCHS - 1
    before = [one[epoch - 1] for one in (first["history"], ranks[0]["whole"]["history"])]
    assert_identical(*before)
    assert all(one["priority"] is not None for one in first["history"])


def test_one_process_goes_on_with_the_state_of_a_rank(ranks):
    result = gone_on(ranks[0]["saved"][0], *MIDDLE)
    assert LOST in result["said"][0]
    assert_identical(result["history"][1], without(ranks[0]["whole"]["history"][1]))
    assert result["visits"].min() == EPOCHS - 1


def test_whichever_rank_has_saved_it_the_run_goes_on_in_its_folder(folder, ranks):
    assert ranks[0]["of the other rank"]["log_dir"] == str(folder / "run")
    assert ranks[0]["of the other rank"]["said"] == []
    for rank in ranks:
        names = ("history", "visits", "suspects", "decision")
        assert_identical(*({n: rank[k][n] for n in names} for k in ("of the other rank", "whole")))
    assert not (folder / "run-2").exists()
    assert len((folder / "run" / "epochs.jsonl").read_text().splitlines()) == EPOCHS


def test_ranks_that_go_on_with_different_states_do_not_judge(ranks):
    for rank in ranks:
        assert rank["different ones"]["decision"][:2] == [False, "OUT_OF_TOUCH"]
    said = ranks[0]["different ones"]["said"]
    assert any(one.startswith("ranks resumed different states: epochs 2 and 3") for one in said)


def test_a_rank_that_saves_alone_waits_for_nobody(ranks):
    assert ranks[0]["saved by the first alone"]["longest"] < 10
    for rank in ranks:
        runs = (rank[kind]["history"][:2] for kind in ("saved by the first alone", "whole"))
        for one, other in zip(*runs, strict=True):
            assert one["priority"] == pytest.approx(other["priority"], abs=1e-6)  # float32 sums


def test_ranks_that_had_lost_touch_judge_again_once_they_are_resumed(ranks):
    for rank in ranks:
        run = rank["out of touch"]
        assert run["reason"] == "OUT_OF_TOUCH"
        assert run["decision"][1] != "OUT_OF_TOUCH"
        assert [one["priority"] is None for one in run["history"]] == [False, True, False, False]
    assert ranks[0]["out of touch"]["said"] == [
        "ranks had lost touch: epochs [2] were not judged, the next ones are"
    ]


def test_an_epoch_that_only_others_held_up_is_none_with_the_next(ranks):
    for rank in ranks:
        assert [one["samples_seen"] for one in rank["uneven"]["history"]] == [440] * 2


def test_a_run_that_is_killed_goes_on_to_the_same_end_with_other_ranks(tmp_path):
    whole = uninterrupted(tmp_path / "whole")
    launches = [(2, "all ranks at a time"), (1, None)]
    chance = random.Random(18)  # a third of a second after the first step
    folder, next_launch = tmp_path / "killed", lambda kills: launches[kills]
    run = run_with_kills(folder, "distributed", 18, chance, next_launch)
    assert [one.was_killed for one in run.launches] == [True, False]
    compare(folder, run, whole)
    assert run.is_as_uninterrupted, run
