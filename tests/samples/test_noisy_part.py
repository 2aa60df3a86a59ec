"""How noisy the clean priority takes a label to be, by its margins."""

import math

import pytest
import torch

from prioritymonitor.records import MOST_NOISE
from prioritymonitor.samples.noisiness import consistent_noise_rate, noisy_part, noisy_weight


def test_hard_samples_count_against_the_priority_though_they_are_no_suspects():
    """Where few labels are wrong, what is learnt of a label that the network disagrees with is
    mostly learnt by heart, wrong or not."""
    margin = torch.cat((torch.full((930,), 0.8), torch.linspace(-0.4, -0.05, 70)))
    assert (noisy_part(margin)[930:] > 0.6).all()
    assert (noisy_weight(margin, consistent_noise_rate(margin))[930:] > 0.5).float().mean() < 0.5


def test_where_most_labels_are_wrong_the_noise_rate_decides_the_side():
    margin = torch.cat((torch.full((700,), -0.6), torch.full((300,), 0.6)))
    assert torch.equal(noisy_part(margin), noisy_weight(margin, consistent_noise_rate(margin)))


def test_the_noise_rate_is_found_however_slowly_it_is_approached():
    assert consistent_noise_rate(torch.full((50,), -2e-3)) > 0.99
    assert consistent_noise_rate(torch.full((50,), 2e-3)) < 0.01


def test_before_anything_is_learnt_both_sides_are_even():
    margin = torch.full((100,), -0.5)
    assert consistent_noise_rate(margin) > MOST_NOISE
    assert torch.equal(noisy_part(margin), noisy_weight(margin, 0.5))


def test_a_negative_mean_margin_makes_a_label_noisy():
    weight = noisy_weight(torch.tensor([-1.0, -0.1, 0.0, 0.1, 1.0, float("nan")]), noise_rate=0.5)
    assert weight[0] > 0.99
    assert weight[1].item() == pytest.approx(1 / (1 + math.exp(-1)))
    assert weight[2] == weight[5] == 0.5
    assert weight[4] < 0.01


def test_where_few_labels_are_wrong_it_takes_more_disagreement_to_be_one_of_them():
    margin = torch.tensor([-0.1])
    assert noisy_weight(margin, 0.4) > 0.5 > noisy_weight(margin, 0.1)


def test_the_noise_rate_is_the_mean_of_the_weights_it_leads_to():
    torch.manual_seed(0)
    margin = torch.cat((torch.full((400,), -0.6), torch.full((600,), 0.6))) + torch.randn(1000) / 5
    rate = consistent_noise_rate(torch.cat((margin.clamp(-1, 1), torch.tensor([torch.nan]))))
    assert rate == pytest.approx(0.4, abs=0.02)
    assert noisy_weight(margin.clamp(-1, 1), rate).mean().item() == pytest.approx(rate, abs=1e-3)


def test_a_few_hard_samples_are_no_noise():
    """A tail of slightly negative margins is what clean data looks like while it is learnt."""
    margin = torch.cat((torch.full((930,), 0.8), torch.linspace(-0.4, 0.2, 70)))
    assert (noisy_weight(margin, consistent_noise_rate(margin)) > 0.5).float().mean() < 0.03


def test_no_sample_visited_leaves_the_noise_rate_open():
    assert consistent_noise_rate(torch.full((3,), torch.nan)) == 0.5
