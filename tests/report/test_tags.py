"""The table of tags covers what is reported, and each of its names has one meaning."""

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor import GradientMonitor
from prioritymonitor.tags import (
    ALL_PARAMETERS_TAGS,
    EPOCH_SCALARS,
    EPOCH_TAGS,
    RECORD_TAGS,
    STEP_TAGS,
    VALIDATION_TAGS,
    tag_of,
)
from tests.support.cases import make_data, make_loader, mlp

TAGS = [*STEP_TAGS, *ALL_PARAMETERS_TAGS, *EPOCH_TAGS, *VALIDATION_TAGS, *RECORD_TAGS]


@pytest.fixture(scope="module", params=["head", "all"])
def monitor(request):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = make_loader(make_data(torch.float32), batch_size=20)
    with GradientMonitor(model, optimizer, loader, every=1, scope=request.param) as monitor:
        for x, y, _ in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return monitor


def test_every_statistic_of_a_step_is_in_the_table(monitor):
    assert [name for name in monitor.latest if tag_of(name) is None] == []


def test_every_key_of_a_record_is_in_the_table(monitor):
    assert set(monitor.history()[0]) <= EPOCH_SCALARS | {tag.name for tag in RECORD_TAGS}


def test_steps_and_epochs_share_no_tag(monitor):
    assert not set(monitor.latest) & EPOCH_SCALARS


def test_no_name_stands_twice():
    assert len({tag.name for tag in TAGS}) == len(TAGS)


def test_each_meaning_is_one_line():
    assert all(tag.meaning and "\n" not in tag.meaning for tag in TAGS)


def test_a_tag_says_of_what_part_it_is():
    assert tag_of("noise_share/layer1").meaning.startswith("the share within a block")
    assert tag_of("noise_share/0").meaning == tag_of("noise_share/layer1").meaning
    assert tag_of("segment_ratio/3").meaning.startswith("the same for one class")
    assert tag_of("segment_ratio_population/3").meaning.endswith("pairs of different samples")


def test_the_table_knows_nothing_of_another_tag():
    assert tag_of("accuracy") is None
    assert tag_of("batch_loss/3") is None
