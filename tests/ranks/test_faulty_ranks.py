"""A rank that is late, fails, closes or has no monitor holds up nobody, and changes no training."""

import pytest
import torch.distributed as dist

from tests.capture.test_no_disturbance import assert_identical
from tests.ranks.faulty_ranks import EPOCHS, PATIENCE
from tests.ranks.launched import launch

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

KINDS = (
    "closes early",
    "sleeps",
    "the first sleeps",
    "sleeps in mid-epoch",
    "steps fail",
    "fails",
    "does not read",
    "loses identity",
    "no batches",
    "has none",
)

OWN_PART = "statistics of steps are those of this rank's part of the batch from here on: "
OWN_STEPS = f"{OWN_PART}ranks are not in touch"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch("tests.ranks.faulty_ranks", tmp_path_factory.mktemp("ranks"), 2, "all")[0]


def said_of(ranks, kind):
    return [rank[kind]["said"] for rank in ranks]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_without_monitors_on_each_rank(kind, ranks):
    for rank in ranks:
        alone = rank.get(f"{kind}, unwatched", rank["unwatched"])
        for name in ("weights", "random", "collectives"):
            assert_identical(rank[kind][name], alone[name])


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_waits_longer_than_the_patience(kind, ranks):
    slept = 2 * PATIENCE * ("sleeps" in kind)
    for rank in ranks:
        assert rank[kind]["seconds"] < rank["unwatched"]["seconds"] + slept + PATIENCE + 10


@pytest.mark.parametrize(
    "kind", ["sleeps", "the first sleeps", "fails", "loses identity", "no batches"]
)
def test_where_a_rank_is_lost_whose_monitor_is_in_use_no_rank_judges(kind, ranks):
    for rank in ranks:
        stop, reason, _ = rank[kind]["decision"]
        assert not stop
        assert reason in ("OUT_OF_TOUCH", "FAILED", "NO_IDENTITY", "TOO_EARLY")
    assert len(ranks[0][kind]["history"]) >= 1
    assert ranks[0][kind]["decision"][1] == "OUT_OF_TOUCH"


def test_the_first_rank_says_what_became_of_another(ranks):
    late = f"rank 1 was late by more than {PATIENCE:g} s: no suspects and no stop from here on"
    assert said_of(ranks, "sleeps")[0] == [late, OWN_STEPS]
    assert said_of(ranks, "loses identity")[1] == []
    lost, own_steps = said_of(ranks, "loses identity")[0]
    assert lost.startswith("on rank 1 samples have no identity")
    assert own_steps == OWN_STEPS
    failed, own_steps = said_of(ranks, "fails")[0]
    assert own_steps == OWN_STEPS
    assert failed.startswith("on rank 1 measuring is off after step")
    why = "on rank 1 train_loader gave no batch, so epochs can't be told"
    no_stop = f"{why}: no suspects and no stop from here on"
    assert said_of(ranks, "no batches")[0][:2] == [OWN_PART + why, no_stop]
    gone = "rank 1 has no monitor, or has closed it"
    for kind in ("closes early", "has none"):
        (line,) = said_of(ranks, kind)[0]
        assert line.startswith(gone)


def test_a_late_rank_says_itself_that_others_have_gone_on(ranks):
    for kind, number in (("sleeps", 1), ("the first sleeps", 0)):
        line = said_of(ranks, kind)[number][0]
        assert line.startswith(f"rank {number} was late by more than {PATIENCE:g} s, and the")


def test_where_the_first_rank_is_late_the_next_one_says_it(ranks):
    (line,) = said_of(ranks, "the first sleeps")[1]
    assert line.startswith(f"rank 0 was late by more than {PATIENCE:g} s: no suspects")


@pytest.mark.parametrize("kind", ["closes early", "has none"])
def test_without_a_monitor_on_one_rank_the_other_judges_its_own_samples(kind, ranks):
    first = ranks[0][kind]
    assert first["decision"][1] != "OUT_OF_TOUCH"
    assert len(first["history"]) == EPOCHS
    assert first["history"][-1]["priority"] is not None


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("sleeps in mid-epoch", f"rank 1 was late by more than {PATIENCE:g} s"),
        ("steps fail", "another rank could not measure its part"),
    ],
)
def test_without_the_steps_of_another_rank_both_judge_the_same_and_measure_their_own(
    kind, why, ranks
):
    first, second = (rank[kind] for rank in ranks)
    assert first["said"] == [OWN_PART + why]
    assert first["history"] == second["history"]
    assert first["history"][-1]["priority"] is not None
    assert first["latest"]["dominance_ratio"] > 0
    assert len(first["history"]) == EPOCHS


def test_a_rank_that_does_not_read_decides_the_same(ranks):
    first, second = (rank["does not read"] for rank in ranks)
    assert first["history"] == second["history"]
    assert first["decision"] == second["decision"]


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raised")
    return launch("tests.ranks.faulty_ranks", folder, 2, "not on the first", check=False)


def test_a_monitor_on_another_rank_than_the_first_is_silent_and_judges(raised):
    ranks, _ = raised
    alone, watched = (ranks[1][kind] for kind in ("unwatched", "not on the first"))
    assert_identical(watched["weights"], alone["weights"])
    assert len(watched["history"]) == EPOCHS
    assert watched["said"] == []


def test_a_rank_that_raises_ends_the_run_as_it_would_without_monitors(raised):
    _, done = raised
    assert done.returncode != 0
    assert "of the user's" in done.stderr
