"""The neighbours' votes of a training run: whose, on how many samples, and where there are none."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from prioritymonitor.samples import first_visits
from tests.samples.test_neighbours import oracle
from tests.support.cases import CLASSES, INPUTS, make_data, mlp
from tests.support.votes import (
    SAMPLES,
    Counting,
    FailsInEvaluation,
    attached,
    hidden_classes,
    pretrained,
    right,
    votes_of,
)

# Whose votes


def test_votes_are_those_of_the_nearest_inputs_where_features_show_nothing():
    data = make_data(torch.float32, samples=300)
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
    votes = votes_of(model, data.inputs, data.given, epochs=2)
    expected = oracle(data.inputs, data.given, torch.arange(300))
    assert (votes == expected).double().mean() > 0.97  # they are kept as whole numbers of a byte


def test_features_of_a_pretrained_network_are_taken_where_inputs_show_less():
    inputs, given, true = hidden_classes()
    assert right(votes_of(pretrained(), inputs, given), true) > 0.95
    blind = pretrained()
    nn.init.zeros_(blind[0].weight)
    assert right(votes_of(blind, inputs, given), true) < 0.6


def test_features_are_those_of_the_initial_weights_without_dropout():
    inputs, given, _ = hidden_classes()
    still = votes_of(pretrained(), inputs, given, lr=0.0)
    trained = pretrained(dropout=0.5)
    assert torch.equal(votes_of(trained, inputs, given, lr=1.0), still)
    # So it would be noticed: the features after such a training are others.
    assert not torch.equal(votes_of(trained, inputs, given), still)


class SpoiltAfterTheFirstVisit(torch.utils.data.Dataset):
    """As under augmentation, a sample looks different at each visit."""

    def __init__(self, inputs, given):
        self.inputs, self.given, self.visited = inputs, given, set()

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        is_first = index not in self.visited
        self.visited.add(index)
        inputs = self.inputs[index]
        return inputs if is_first else 5 * torch.randn_like(inputs), self.given[index]


def test_the_first_visit_counts_where_an_epoch_makes_several():
    inputs, given, true = hidden_classes()
    twice = [*range(SAMPLES), *range(SAMPLES)]
    loader = DataLoader(SpoiltAfterTheFirstVisit(inputs, given), batch_size=20, sampler=twice)
    model = pretrained()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradientMonitor(model, optimizer, loader) as monitor:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert right(torch.from_numpy(monitor.samples()["vote"]), true) > 0.95


def test_votes_stay_as_they_were_made_at_the_end_of_the_first_epoch():
    inputs, given, _ = hidden_classes()
    once, later = (votes_of(pretrained(), inputs, given, lr=1.0, epochs=n) for n in (1, 4))
    assert torch.equal(once, later)


def test_texts_have_votes_by_features_though_token_ids_have_no_distances(said):
    label = torch.arange(SAMPLES) % 4
    tokens = 4 * torch.randint(50, (SAMPLES, 12)) + label[:, None]
    model = nn.Sequential(nn.EmbeddingBag(200, 16), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[:] = F.one_hot(torch.arange(200) % 4, 16) + 0.1 * torch.randn(200, 16)
    assert torch.equal(votes_of(model, tokens, label), label.int())
    assert said() == []


def test_a_head_that_only_shows_in_evaluation_mode_is_found():
    inputs, given, true = hidden_classes()

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = pretrained()

        def forward(self, x):
            logits = self.body(x)
            return logits + 0.1 * torch.randn_like(logits) if self.training else logits

    assert right(votes_of(Noisy(), inputs, given, lr=1.0), true) > 0.95


@pytest.mark.parametrize("keyword", [False, True])
def test_several_arguments_and_gradient_accumulation(keyword):
    inputs, given, true = hidden_classes()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = pretrained()

        def forward(self, x, options, scale=None):
            return {"logits": self.body(x * scale["by"])}

    model, scale = Two(), {"by": torch.ones(1)}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(TensorDataset(inputs, given), batch_size=40, shuffle=True)
    with GradientMonitor(model, optimizer, loader) as monitor:
        for x, y in loader:
            optimizer.zero_grad()
            for part, label in zip(x.split(10), y.split(10), strict=True):
                arguments = {"x": part, "options": None} if keyword else {}
                out = model(*(() if keyword else (part, None)), scale=scale, **arguments)
                (F.cross_entropy(out["logits"], label) / 4).backward()
            optimizer.step()
        assert right(torch.from_numpy(monitor.samples()["vote"]), true) > 0.95


# How many


def test_of_a_large_data_set_a_fixed_subset_votes_and_is_voted_on(monkeypatch):
    monkeypatch.setattr(first_visits, "MOST_CANDIDATES", 120)
    monkeypatch.setattr(first_visits, "MOST_VOTES", 70)
    inputs, given, true = hidden_classes()
    votes = [votes_of(pretrained(), inputs, given, **{"max_tracked": n}) for n in (None, 200)]
    for some in votes:
        assert (some >= 0).sum() == 70
    asked = votes[0] >= 0
    assert right(votes[0][asked], true[asked]) > 0.95
    assert torch.equal(votes_of(pretrained(), inputs, given) >= 0, asked)


def test_only_candidates_go_through_the_model_once_more(monkeypatch):
    monkeypatch.setattr(first_visits, "MOST_CANDIDATES", 60)
    inputs, given, true = hidden_classes()
    sizes = []
    votes = votes_of(Counting(sizes.append), inputs, given, epochs=3)
    assert sum(sizes) == 60
    assert right(votes[votes >= 0], true[votes >= 0]) > 0.95


def test_a_batch_that_goes_through_the_model_many_times_goes_once_more_only_once():
    inputs, given, _ = hidden_classes()
    sizes = []
    model = Counting(sizes.append)
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=4)
    loader = DataLoader(TensorDataset(inputs, given), batch_size=60)
    with GradientMonitor(model, optimizer, loader) as monitor:
        for x, y in loader:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
        assert (monitor.samples()["vote"] >= 0).all()
    assert sizes == [60] * 4


def test_an_epoch_over_part_of_the_data_has_votes_on_that_part():
    inputs, given, true = hidden_classes()
    model, batches = pretrained(), 0
    loader = DataLoader(TensorDataset(inputs, given), batch_size=20)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradientMonitor(model, optimizer, loader) as monitor:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            batches += 1
            if batches == 11:
                monitor.end_epoch()
                votes = torch.from_numpy(monitor.samples()["vote"])
                assert right(votes[:220], true[:220]) > 0.95
                assert (votes[220:] == -1).all()


def test_a_sample_takes_no_more_than_160_bytes_and_none_once_votes_are_there():
    inputs, given, _ = hidden_classes()
    model = pretrained()
    optimizer, loader = attached(model, inputs, given)
    with GradientMonitor(model, optimizer, loader) as monitor:
        before = monitor._run.table.bytes
        for number, (x, y) in enumerate(loader):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if number == 10:
                monitor.state_dict()  # brings it up to date
                taken = monitor._run.table.bytes - before
                assert 128 * SAMPLES < taken <= 160 * (SAMPLES + 1)
        assert monitor._run.table.bytes == before + 4 * SAMPLES  # the votes


# Where there are none


class FunctionalHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(9, 6)
        self.weight = nn.Parameter(torch.randn(CLASSES, 6))

    def forward(self, x):
        return F.linear(self.embedding(x), self.weight)


def labels():
    return torch.arange(SAMPLES) % CLASSES


CRITERION, SEVERAL = nn.CrossEntropyLoss(), nn.BCEWithLogitsLoss()
NONE = {
    "token ids and no head": (
        FunctionalHead,
        lambda: (torch.randint(9, (SAMPLES, 4)), labels()),
        F.cross_entropy,
        {},
        r"torch\.int64 have no distances; features .* no linear layer was found",
    ),
    "a second pass that fails": (
        FailsInEvaluation,
        lambda: (torch.randint(9, (SAMPLES, INPUTS)), labels()),
        F.cross_entropy,
        {},
        "torch.int64 have no distances; features .* no memory left",
    ),
    "several labels": (
        mlp,
        lambda: (torch.randn(SAMPLES, INPUTS), torch.rand(SAMPLES, CLASSES).round()),
        SEVERAL,
        {"criterion": SEVERAL},
        "the targets are several classes",
    ),
}


@pytest.mark.parametrize("case", NONE)
def test_where_there_are_no_votes_one_message_says_why_and_all_else_goes_on(case, said):
    make, data, loss, options, why = NONE[case]
    model, (inputs, given) = make(), data()
    votes = votes_of(model, inputs, given, loss=loss, epochs=3, lr=0.1, **options)
    assert (votes == -1).all()
    (message,) = [one for one in said() if "neighbours" in one]
    assert message.startswith("neighbours don't vote: "), message
    assert message.endswith("; the stop rests on what else is known")
    assert re.search(why, message)
