"""How likely a label is wrong: by the errors of the network, its pair, and the neighbours' vote."""

import math

import pytest
import torch
import torch.nn.functional as F

from prioritymonitor.samples.noisiness import (
    EVEN_ERROR,
    chance_at_first_visit,
    is_plausible,
    wrong_label_chance,
)

SAMPLES = 2000


def nobody(samples=SAMPLES):
    """Neighbours of whom none was asked."""
    return torch.full((samples,), -1)


def one_pair(samples=SAMPLES):
    """Labels of one class, which the network takes for one other if it does."""
    return torch.full((samples,), 0), torch.full((samples,), 1)


# The error


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_a_label_is_a_suspect_from_nearly_the_error_on_of_a_network_that_knows_nothing(classes):
    knows_nothing = torch.full((classes,), 1 / classes)
    even = (knows_nothing - F.one_hot(torch.tensor(0), classes)).norm() * EVEN_ERROR
    error = torch.tensor([0.0, even - 0.1, even, even + 0.1, 2**0.5, torch.nan])
    chance = chance_at_first_visit(error, classes)
    between = 1 / (1 + math.e)
    expected = [0, between, 0.5, 1 - between, 1, 0.5]
    assert chance.tolist() == pytest.approx(expected, abs=0.015)
    pairs = torch.arange(6), torch.arange(6) + 1  # with one sample each, none tells anything
    found = wrong_label_chance(error, *pairs, nobody(6), classes)
    torch.testing.assert_close(found[:5], chance[:5], atol=0.01, rtol=0)
    assert found[5].isnan()


def test_of_two_classes_a_label_is_a_suspect_if_the_network_holds_it_the_less_probable_one():
    own = torch.tensor([0.7, 0.55, 0.45, 0.3])
    error = 2**0.5 * (1 - own)  # √(2 (1 − p)²)
    chance = wrong_label_chance(error, *one_pair(4), nobody(4), 2)
    assert (chance > 0.5).tolist() == [False, False, True, True]


def test_no_sample_visited_leaves_every_label_open():
    none = nobody(3)
    assert wrong_label_chance(torch.full((3,), torch.nan), none, none, none, 5).isnan().all()


# The pair


def test_where_two_classes_were_confused_it_takes_less_to_be_wrong():
    """Twenty labels are as doubtful as twenty others, but many like them are clearly wrong."""
    given, rival = torch.full((SAMPLES,), 3), torch.full((SAMPLES,), 5)
    rival[1000:] = 7
    error = torch.full((SAMPLES,), 0.1)
    error[:500] = 1.2
    error[500:520] = error[1500:1520] = 0.87
    chance = wrong_label_chance(error, given, rival, nobody(), 10)
    assert (chance[500:520] > 0.5).all()
    assert (chance[1500:1520] < 0.3).all()
    assert chance[600:1000].max() < 0.01 < 0.9 < chance[:500].min()


@pytest.mark.parametrize("classes", [2, 5])
def test_samples_with_several_labels_have_neither_pair_nor_vote(classes):
    error, none = torch.rand(300) * 2**0.5, nobody(300)
    chance = wrong_label_chance(error, none, none, none, classes)
    torch.testing.assert_close(chance, chance_at_first_visit(error, classes))


# The vote


def some_wrong():
    """Some labels are clearly wrong, and most neighbours vote against those alone."""
    given, rival = one_pair()
    error, vote = torch.full((SAMPLES,), 0.1), torch.zeros(SAMPLES, dtype=torch.int64)
    error[:600], vote[:550] = 1.2, 1
    vote[1900:] = 1
    return error, given, rival, vote


@pytest.mark.parametrize("other", [1, 2])
def test_a_vote_against_a_label_raises_its_chance_and_one_for_it_lowers_it(other):
    """For whichever other class."""
    error, given, rival, vote = some_wrong()
    error[1000:1003] = 0.9
    vote[1000], vote[1001], vote[1002] = other, 0, -1
    against, backed, unasked = wrong_label_chance(error, given, rival, vote, 10)[1000:1003]
    assert backed < 0.3 < unasked < 0.65 < 0.7 < against


def test_a_clearly_wrong_label_stays_a_suspect_whatever_neighbours_say():
    error, given, rival, vote = some_wrong()
    chance = wrong_label_chance(error, given, rival, vote, 10)
    assert (chance[550:600] > 0.5).all()
    assert (chance[1900:] < 0.5).all()


def test_votes_that_tell_nothing_change_nothing():
    error, given, rival, _ = some_wrong()
    blind = torch.arange(SAMPLES) % 2
    found, alone = (wrong_label_chance(error, given, rival, vote, 10) for vote in (blind, nobody()))
    torch.testing.assert_close(found, alone, atol=0.01, rtol=0)


def test_the_chances_are_those_of_the_definition():
    classes = 4
    error = torch.rand(600).double() * 2**0.5
    given, rival = torch.randint(0, 3, (600,)), torch.randint(0, classes, (600,))
    vote = torch.where(torch.rand(600) < 0.7, given, torch.randint(-1, classes, (600,)))
    error[given == rival] = torch.nan
    error[(given == 0) & (rival == 1)] += 0.2
    error[vote != given] += 0.2
    seen, asked, backed = ~error.isnan(), vote >= 0, vote == given
    pairs = [(given == a) & (rival == b) for a in range(3) for b in range(classes) if a != b]
    alone = (error - 0.95 * math.sqrt(1 - 1 / classes)) / 0.1
    chance = alone.sigmoid()
    for _ in range(100):
        rate, log_odds = chance[seen].mean(), alone.clone()
        for members in pairs:
            own = (chance[members].sum() + 100 * rate) / (members.sum() + 100)
            log_odds[members] += (own.logit() - rate.logit()) / 2
        wrong, right = chance[seen & asked], 1 - chance[seen & asked]
        says = backed[seen & asked]
        of_wrong = (wrong[says].sum() + 1) / (wrong.sum() + 2)
        of_right = (right[says].sum() + 1) / (right.sum() + 2)
        log_odds[backed] += (of_wrong / of_right).log() / 2
        log_odds[asked & ~backed] += ((1 - of_wrong) / (1 - of_right)).log() / 2
        chance = log_odds.sigmoid()
    found = wrong_label_chance(error, given, rival, vote, classes)
    torch.testing.assert_close(found, chance, atol=1e-4, rtol=0, equal_nan=True)


# How many labels can be wrong


@pytest.mark.parametrize("with_votes", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_what_an_untrained_network_would_name_is_not_plausible(classes, with_votes):
    label = torch.arange(1000) % classes
    probability = (0.1 * torch.randn(1000, classes)).softmax(1)
    error = (probability - F.one_hot(label, classes)).norm(dim=1)
    vote = torch.where(torch.rand(1000) < 0.6, label, (label + 1) % classes)
    vote = vote if with_votes else nobody(1000)
    rival = probability.scatter(1, label[:, None], 0).argmax(1)
    chance = wrong_label_chance(error, label, rival, vote, classes)
    assert not is_plausible(chance, label, vote)


def test_at_most_as_many_labels_are_wrong_as_neighbours_vote_against():
    given = torch.zeros(100)
    vote = torch.full((100,), -1)
    vote[:50], vote[:10] = 0, 1  # against ten of fifty that were asked
    for named, plausible in ((20, True), (21, False)):
        chance = torch.where(torch.arange(100) < named, 0.9, 0.1)
        assert is_plausible(chance, given, vote) is plausible


@pytest.mark.parametrize("vote", [-1, 1], ids=["no votes", "all votes against"])
def test_nine_tenths_are_too_many(vote):
    """Where neighbours tell nothing of many classes, they vote against nearly every label."""
    for named, plausible in ((89, True), (90, False)):
        chance = torch.where(torch.arange(100) < named, 0.9, 0.1)
        votes = torch.full((100,), vote)
        assert is_plausible(chance, torch.zeros(100), votes) is plausible


def test_samples_that_were_never_visited_are_neither_named_nor_not():
    chance = torch.cat((torch.full((10,), 0.9), torch.full((90,), torch.nan)))
    assert not is_plausible(chance, torch.zeros(100), nobody(100))
    assert not is_plausible(chance[10:], torch.zeros(90), nobody(90))
