"""Trainers on two ranks: their checkpoint, of the first rank, is enough for both."""

import pytest
import torch.distributed as dist

from tests.capture.test_no_disturbance import assert_identical
from tests.ranks.launched import launch
from tests.ranks.resumed_trainers import ALL

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trainers")


@pytest.fixture(scope="module")
def ranks(folder):
    return launch("tests.ranks.resumed_trainers", folder)[0]


@pytest.mark.parametrize("trainer", ["accelerate", "lightning"])
def test_a_resumed_training_knows_what_an_uninterrupted_one_knows(trainer, folder, ranks):
    for rank in ranks:
        resumed, whole = rank[trainer], rank[f"{trainer} whole"]
        assert len(whole["history"]) == ALL
        for name in ("history", "suspects"):
            assert_identical(resumed[name], whole[name])
    assert ranks[0][trainer]["log_dir"] == str(folder / trainer / "run")
    lines = (folder / trainer / "run" / "epochs.jsonl").read_text().splitlines()
    assert len(lines) == ALL
