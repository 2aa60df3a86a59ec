"""Ranks of a data-parallel run judge as one process that trains on their joined batches."""

import functools

import pytest
import torch
import torch.distributed as dist

from tests.capture.test_no_disturbance import assert_identical
from tests.ranks.launched import as_text, launch
from tests.ranks.training import RANKS, train

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

SAME = ("decision", "message", "best", "noise_rate", "suspects", "history", "stopped", "restored")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    return launch("tests.ranks.healthy_ranks", folder)[0]


@functools.cache
def one_process():
    assert RANKS == 1
    return train(epochs=40, every=1)


def assert_as_one_process(ranks):
    expected = one_process()
    assert expected["decision"][0]
    for rank in ranks:
        for name in ("decision", "best", "noise_rate", "restored"):
            assert rank[name] == expected[name], name
        assert [one[0] for one in rank["suspects"]] == [one[0] for one in expected["suspects"]]
        for name in ("priority", "agreement", "train_loss"):
            found, wanted = ([one[name] for one in run["history"]] for run in (rank, expected))
            assert len(found) == len(wanted)
            known = [place for place, value in enumerate(wanted) if value is not None]
            assert [found[place] is None for place in known] == [False] * len(known)
            torch.testing.assert_close(
                torch.tensor([found[place] for place in known], dtype=torch.float64),
                torch.tensor([wanted[place] for place in known], dtype=torch.float64),
                rtol=0,
                atol=1e-8 if name == "priority" else 1e-6,
            )
        torch.testing.assert_close(rank["kept"], expected["kept"], rtol=1e-9, atol=1e-9)


def test_two_ranks_stop_as_one_process_on_the_joined_batches(ranks):
    assert_as_one_process([rank["until the stop"] for rank in ranks])


def test_four_ranks_stop_as_one_process_on_the_joined_batches(tmp_path):
    ranks, _ = launch("tests.ranks.healthy_ranks", tmp_path, 4, "until the stop")
    assert_as_one_process([rank["until the stop"] for rank in ranks])
    assert len({as_text([rank["until the stop"][name] for name in SAME]) for rank in ranks}) == 1


@pytest.mark.parametrize("kind", ["until the stop", "padded", "accumulated", "join", "held out"])
def test_every_rank_knows_the_same_bit_for_bit(kind, ranks):
    first, second = (rank[kind] for rank in ranks)
    if kind == "join":  # one of them makes fewer steps: its own count, and average of the weights
        for record in (*first["history"], *second["history"]):
            del record["step"]
    else:
        assert_identical(first["kept"], second["kept"])
    for name in SAME:
        assert as_text(first[name]) == as_text(second[name]), name


@pytest.mark.parametrize(
    ("kind", "alone"),
    [("watched", "alone"), ("accumulated", "accumulated alone"), ("join", "join alone")],
)
def test_training_and_the_users_group_are_those_without_monitors(kind, alone, ranks):
    for rank in ranks:
        for name in ("weights", "random", "collectives"):
            assert_identical(rank[kind][name], rank[alone][name])


def test_only_the_first_rank_writes_and_logs(folder, ranks):
    first, second = (rank["until the stop"] for rank in ranks)
    assert first["log_dir"] == str(folder / "run")
    assert second["log_dir"] == "None"
    assert sorted(one.name for one in folder.iterdir() if one.is_dir()) == ["run"]
    assert len((folder / "run" / "epochs.jsonl").read_text().splitlines()) == len(first["history"])
    assert len(first["said"]) == 1
    assert first["said"][0].startswith("stop after epoch")
    assert all(run["said"] == [] for run in ranks[1].values())


def test_a_sample_that_padding_repeats_counts_once(ranks):
    """The samples of a rank, which `set_epoch()` draws anew, are followed on all of them."""
    for rank in ranks:
        assert rank["padded"]["visits"].tolist() == [3] * 603
        assert [one["samples_seen"] for one in rank["padded"]["history"]] == [603] * 3


def test_ranks_with_other_numbers_of_batches_end_an_epoch_where_the_next_begins(ranks):
    for rank in ranks:
        run = rank["join"]
        assert run["said"] == []
        assert run["seconds"] < 30
        assert [one["samples_seen"] for one in run["history"]] == [440] * 3
        assert run["visits"].tolist() == [3] * 440 + [0] * 160


def test_held_out_labels_of_all_ranks_are_tried(ranks):
    counts = {one["validation_samples"] for rank in ranks for one in rank["held out"]["history"]}
    assert counts == {134}


@pytest.mark.parametrize(
    ("kind", "why"),
    [("own data", "ranks show different labels for 600"), ("other sizes", "data sets of ranks")],
)
def test_ranks_with_data_of_their_own_are_not_taken_for_one_run(kind, why, ranks):
    assert why in ranks[0][kind]["said"][0]
    for rank in ranks:
        assert rank[kind]["decision"][1] == "NO_IDENTITY"
