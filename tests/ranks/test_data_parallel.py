"""Ranks of a data-parallel run judge as one process that trains on their joined batches."""

import functools

import pytest
import torch
import torch.distributed as dist

from prioritymonitor.tags import RECORD_KEYS
from tests.capture.test_no_disturbance import assert_identical
from tests.ranks.healthy_ranks import measured, until_the_stop
from tests.ranks.launched import as_text, launch
from tests.ranks.training import RANKS

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
    return until_the_stop()


@functools.cache
def one_process_measured():
    return measured()


def assert_as_one_process(ranks, kept):
    """The decision, and everything that it rests on.

    Args:
        ranks: What each knows.
        kept: The weights of the best epoch, once for each rank that has all of them.
    """
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
    for weights in kept:
        torch.testing.assert_close(weights, expected["kept"], rtol=1e-9, atol=1e-9)


def of_steps(scalars):
    by_epoch = {f"prioritymonitor/{name}" for name in (*RECORD_KEYS, "noisy_fraction")}
    cost = "prioritymonitor/overhead_fraction"
    return {tag: value for tag, value in scalars.items() if tag[0] not in by_epoch | {cost}}


def assert_steps_as_one_process(ranks, kind, alone):
    first, *rest = (rank[kind] for rank in ranks)
    found, expected = of_steps(first["scalars"]), of_steps(alone["scalars"])
    assert len({name for name, _ in expected}) > 15
    assert found.keys() == expected.keys()
    for tag, value in expected.items():
        assert found[tag] == pytest.approx(value, rel=1e-9, abs=1e-15, nan_ok=True), tag
    for other in rest:
        assert other["scalars"] == {}
        cost = {"overhead_fraction": None}
        assert as_text(other["latest"] | cost) == as_text(first["latest"] | cost)


def test_two_ranks_stop_as_one_process_on_the_joined_batches(ranks):
    runs = [rank["until the stop"] for rank in ranks]
    assert_as_one_process(runs, [run["kept"] for run in runs])


def test_two_ranks_that_each_hold_a_part_of_the_model_stop_as_one_process(ranks):
    """And what they keep stays spread."""
    runs = [rank["sharded"] for rank in ranks]
    kept = [torch.cat(parts) for parts in zip(*(run["kept"] for run in runs), strict=True)]
    assert all(len(part) < len(whole) for part, whole in zip(runs[0]["kept"], kept, strict=True))
    assert_as_one_process(runs, [kept])


@pytest.mark.parametrize("kind", ["until the stop", "sharded", "measured, accumulated", "all"])
def test_two_ranks_measure_steps_as_one_process_on_the_joined_batches(kind, ranks):
    assert_steps_as_one_process(ranks, kind, one_process_measured().get(kind) or one_process())


def test_of_a_model_that_is_spread_the_head_is_measured(ranks):
    first = ranks[0]["sharded, all"]
    assert len(first["said"]) == 1
    assert first["said"][0].endswith("statistics of steps are those of the head")
    assert first["latest"]["dominance_ratio"] > 0


def test_a_compiled_model_that_is_spread_is_not_run_once_more(ranks):
    """Another rank might not, and each pass is an exchange among all of them."""
    (said,) = ranks[0]["sharded, compiled"]["said"]
    assert "Statistics of the head are off" in said


def test_four_ranks_stop_and_measure_as_one_process_on_the_joined_batches(tmp_path):
    ranks, _ = launch("tests.ranks.healthy_ranks", tmp_path, 4, "until the stop")
    runs = [rank["until the stop"] for rank in ranks]
    assert_as_one_process(runs, [run["kept"] for run in runs])
    assert len({as_text([run[name] for name in SAME]) for run in runs}) == 1
    assert_steps_as_one_process(ranks, "until the stop", one_process())


@pytest.mark.parametrize(
    "kind", ["until the stop", "sharded", "padded", "accumulated", "join", "held out"]
)
def test_every_rank_knows_the_same_bit_for_bit(kind, ranks):
    first, second = (rank[kind] for rank in ranks)
    if kind == "join":  # one of them makes fewer steps: its own count, and average of the weights
        for record in (*first["history"], *second["history"]):
            del record["step"]
    elif kind != "sharded":
        assert_identical(first["kept"], second["kept"])
    for name in SAME:
        assert as_text(first[name]) == as_text(second[name]), name


@pytest.mark.parametrize(
    ("kind", "alone"),
    [
        ("watched", "alone"),
        ("accumulated", "accumulated alone"),
        ("join", "join alone"),
        ("sharded, all", "sharded alone"),
        ("sharded, compiled", "sharded, compiled, alone"),
    ],
)
def test_training_and_the_users_group_are_those_without_monitors(kind, alone, ranks):
    for rank in ranks:
        for name in ("weights", "random", "collectives"):
            assert_identical(rank[kind][name], rank[alone][name])


def test_only_the_first_rank_writes_and_logs(folder, ranks):
    first, second = (rank["watched"] for rank in ranks)
    assert first["log_dir"] == str(folder / "run")
    assert second["log_dir"] == "None"
    assert sorted(one.name for one in folder.iterdir() if one.is_dir()) == ["run"]
    assert len((folder / "run" / "epochs.jsonl").read_text().splitlines()) == 3
    (said,) = ranks[0]["until the stop"]["said"]
    assert said.startswith("stop after epoch")
    assert all(run["said"] == [] for run in ranks[1].values())


def test_a_sample_that_padding_repeats_counts_once(ranks):
    """The samples of a rank, which `set_epoch()` draws anew, are followed on all of them."""
    for rank in ranks:
        assert rank["padded"]["visits"].tolist() == [3] * 603
        assert [one["samples_seen"] for one in rank["padded"]["history"]] == [603] * 3


def test_ranks_with_other_numbers_of_batches_end_an_epoch_where_the_next_begins(ranks):
    for rank in ranks:
        run = rank["join"]
        assert run["seconds"] < 30
        assert [one["samples_seen"] for one in run["history"]] == [440] * 3
        assert run["visits"].tolist() == [3] * 440 + [0] * 160
    (said,) = ranks[0]["join"]["said"]
    assert said.startswith("statistics of steps are those of this rank's part of the batch")
    assert "ranks are not known to have the same number of batches" in said
    assert ranks[0]["join"]["latest"]["dominance_ratio"] > 0


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
