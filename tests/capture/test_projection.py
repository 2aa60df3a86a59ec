"""Long rows are taken to 64 numbers in which their distances are nearly the same."""

import copy

import pytest
import torch

from prioritymonitor import ArgumentValueError
from prioritymonitor.capture.projection import Projection


def low_rank(rows, size, rank):
    """Rows that differ in few directions, far from zero."""
    return 5 + torch.randn(rows, rank) @ torch.randn(rank, size)


@pytest.mark.parametrize("size", [3, 64])
def test_short_rows_are_kept_about_the_mean_of_the_first_ones(size):
    rows = torch.randn(30, size) + 4
    projection = Projection()
    first, later = projection(rows[:20]), projection(rows[20:])
    centre = rows[:20].mean(0)
    expected = torch.zeros(30, 64)
    expected[:, :size] = rows - centre
    torch.testing.assert_close(torch.cat((first, later)), expected)


@pytest.mark.parametrize("rank", [5, 40])
def test_distances_are_kept_exactly_along_the_directions_in_which_the_first_rows_differ(rank):
    """Also those of later rows."""
    rows = low_rank(300, 500, rank)
    projection = Projection()
    found = torch.cat((projection(rows[:100]), projection(rows[100:])))
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    kept = torch.cdist(found, found, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(kept, distance, rtol=1e-3, atol=1e-2)


def test_of_more_directions_the_64_in_which_rows_differ_most_count():
    scale = torch.where(torch.arange(300) < 64, 10.0, 0.01)
    rows = torch.randn(128, 300) * scale
    found = Projection()(rows)
    shown = rows[:, :64]
    torch.testing.assert_close(
        torch.cdist(found, found), torch.cdist(shown, shown), rtol=1e-2, atol=0.1
    )


def test_directions_that_the_first_rows_do_not_show_are_nearly_kept_all_the_same():
    """By random ones, as where the first batch is small or its rows are the same."""
    rows = torch.randn(200, 2000)
    for first in (rows[:1], rows[:8], rows[:1].expand(20, -1)):
        projection = Projection()
        projection(first)
        found, shown = projection(rows[100:]), rows[100:]
        ratio = (torch.cdist(found, found) / torch.cdist(shown, shown)).triu(1)
        ratio = ratio[ratio > 0]
        assert 0.9 < ratio.mean() < 1.1
        assert ratio.std() < 0.15


def test_very_long_rows_keep_their_distances_nearly_too():
    rows = torch.randn(40, 50_000)
    rows[20:] += 2
    projection = Projection()
    found = torch.cat((projection(rows[:30]), projection(rows[30:])))
    assert projection.state_dict()["matrix"].shape == (2**14, 64)
    ratio = torch.cdist(found[:30], found[:30]) / torch.cdist(rows[:30], rows[:30])
    assert ratio[~torch.eye(30, dtype=torch.bool)].sub(1).abs().max() < 0.1
    near, far = torch.cdist(found[30:], found[20:30]), torch.cdist(found[30:], found[:20])
    assert near.mean() < 0.9 * far.mean()


def test_rows_of_another_length_are_not_known():
    projection = Projection()
    projection(torch.randn(4, 100))
    assert projection(torch.randn(4, 99)).isnan().all()
    assert projection(torch.randn(4, 100)).isfinite().all()


def test_a_row_that_is_not_finite_is_alone_in_that():
    rows = low_rank(50, 100, 5)
    rows[3, 7], rows[4, 9] = torch.nan, torch.inf
    found = Projection()(rows)
    is_finite = found.isfinite().all(1)
    assert is_finite.tolist() == [place not in (3, 4) for place in range(50)]


def test_a_projection_goes_on_from_its_state_and_forgets_when_told_to():
    rows, others = low_rank(60, 200, 5), low_rank(60, 200, 9)
    projection, resumed = Projection(), Projection()
    projection(rows)
    state = projection.state_dict()
    resumed.resuming(state)()
    assert torch.equal(resumed(others), projection(others))
    fresh = Projection()
    assert not torch.equal(fresh(others), projection(others))
    projection.forget()
    assert torch.equal(projection(others), Projection()(others))
    assert Projection().state_dict() == {"size": None, "centre": None, "matrix": None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matrix", None),
        ("matrix", torch.zeros(199, 64)),
        ("matrix", torch.zeros(200, 64, dtype=torch.float64)),
        ("centre", None),
        ("centre", torch.zeros(63)),
        ("size", None),
        ("size", 64),
        ("size", "200"),
    ],
)
def test_a_damaged_state_is_refused(name, value):
    projection = Projection()
    projection(low_rank(60, 200, 5))
    state = copy.deepcopy(projection.state_dict())
    state[name] = value
    resumed = Projection()
    with pytest.raises(ArgumentValueError, match="damaged state"):
        resumed.resuming(state)()
    assert resumed.state_dict()["size"] is None
