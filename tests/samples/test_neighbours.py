"""What neighbours say, beside one sample at a time in double precision."""

import subprocess
import sys
from collections import Counter

import pytest
import torch

from prioritymonitor.samples.neighbours import NEIGHBOURS, best_votes, neighbour_votes

MOST_MIB = 160


def oracle(vectors, label, asked, neighbours=NEIGHBOURS):
    vectors = vectors.double() - vectors.double().mean(0)
    votes = []
    for row in asked.tolist():
        cosine = torch.cosine_similarity(vectors[row : row + 1], vectors)
        nearest = [i for i in cosine.argsort(descending=True).tolist() if i != row][:neighbours]
        count = Counter(label[nearest].tolist())  # in order of appearance: the nearer first
        votes.append(max(count, key=count.__getitem__))
    return torch.tensor(votes)


@pytest.mark.parametrize("classes", [2, 3, 50])
@pytest.mark.parametrize("samples", [2, 9, 300, 1234])
def test_votes_are_those_of_the_nearest_others(samples, classes):
    vectors, label = torch.randn(samples, 5) + 3, torch.randint(classes, (samples,))
    asked = torch.randperm(samples)[: samples // 2 + 1]
    assert torch.equal(neighbour_votes(vectors, label, asked), oracle(vectors, label, asked))


@pytest.mark.parametrize("neighbours", [1, 3, 30])
def test_any_number_of_neighbours_may_vote(neighbours):
    vectors, label, asked = torch.randn(500, 5), torch.randint(4, (500,)), torch.arange(0, 500, 7)
    found = neighbour_votes(vectors, label, asked, neighbours)
    assert torch.equal(found, oracle(vectors, label, asked, neighbours))


def test_where_as_many_say_one_thing_as_another_the_nearer_ones_decide():
    angle = torch.tensor([0.0, 0.1, 0.2, -0.3, -0.4])
    vectors = torch.stack((angle.cos(), angle.sin()), 1)
    vectors = torch.cat((vectors, -vectors))  # so that the mean is zero
    label = torch.tensor([9, 1, 2, 2, 1, 7, 7, 7, 7, 7])
    assert neighbour_votes(vectors, label, torch.tensor([0]), 4).item() == 1
    assert neighbour_votes(vectors, label, torch.tensor([0]), 2).item() == 1
    label[1], label[4] = 2, 2
    assert neighbour_votes(vectors, label, torch.tensor([0]), 4).item() == 2


def test_a_sample_alone_has_no_vote():
    assert neighbour_votes(torch.randn(1, 4), torch.tensor([3]), torch.tensor([0])).tolist() == [-1]
    assert neighbour_votes(torch.randn(5, 4), torch.arange(5), torch.arange(0)).tolist() == []


def in_clusters(samples, classes=4):
    label = torch.arange(samples) % classes
    return torch.nn.functional.one_hot(label, classes) + 0.1 * torch.randn(samples, classes), label


def test_the_representation_whose_votes_agree_with_the_labels_is_taken():
    clusters, label = in_clusters(600)
    noise, asked = torch.randn(600, 4), torch.arange(600)
    for representations in ((clusters, noise), (noise, clusters)):
        assert torch.equal(best_votes(representations, label, asked), label)


def test_samples_that_a_representation_does_not_know_neither_vote_nor_are_voted_on():
    clusters, label = in_clusters(400)
    unknown = torch.arange(400) % 5 == 0
    clusters[unknown] = torch.nan
    nothing = torch.full_like(clusters, torch.nan)
    nothing[:3] = 0.0  # known of few: not taken, however well it does
    votes = best_votes((clusters, nothing), label, torch.arange(400))
    assert torch.equal(votes, torch.where(unknown, -1, label))


def test_large_data_is_searched_in_little_memory():
    """In a process of its own, whose peak is its own."""
    script = f"""
import resource, torch
from prioritymonitor.samples.neighbours import neighbour_votes
label = torch.arange(60_000) % 7
vectors = torch.nn.functional.one_hot(label, 64) + 0.05 * torch.randn(60_000, 64)
neighbour_votes(vectors[:500], label[:500], torch.arange(9))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
asked = torch.arange(0, 60_000, 100)
assert torch.equal(neighbour_votes(vectors, label, asked), label[asked])
mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert mib < {MOST_MIB}, mib
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
