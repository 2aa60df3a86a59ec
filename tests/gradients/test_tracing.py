"""A model that is traced while a monitor is attached gives the trace that it gives without."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prioritymonitor import GradientMonitor

SCOPES = [("head", "auto"), ("all", "closed_form"), ("all", "func")]
X, Y = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
NOISY = Y == 0


def operations(traced):
    return [node.kind() for node in traced.inlined_graph.nodes()]


@pytest.mark.parametrize(("scope", "engine"), SCOPES)
def test_a_watched_model_has_the_trace_of_an_unwatched_one(scope, engine):
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.MultiheadAttention(8, 2).out_proj)
    model.append(nn.Linear(8, 3))
    plain = operations(torch.jit.trace(model, X))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"scope": scope, "engine": engine, "noisy": lambda *_: NOISY}
    with GradientMonitor(model, optimizer, every=1, **options) as monitor:
        for _ in range(2):
            traced = torch.jit.trace(model, X)
            assert operations(traced) == plain
            assert torch.equal(traced(X), model(X))
            optimizer.zero_grad()
            cross_entropy(model(X), Y).backward()
            optimizer.step()
        assert monitor.latest["dominance_ratio"] > 0
        assert monitor.decision.reason.name != "FAILED"


@pytest.mark.parametrize(("scope", "engine"), SCOPES)
def test_a_traced_copy_trains_unmeasured(scope, engine):
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"scope": scope, "engine": engine, "noisy": lambda *_: NOISY}
    with GradientMonitor(model, optimizer, every=1, **options) as monitor:
        traced = torch.jit.trace(model, X)
        cross_entropy(traced(X), Y).backward()
        optimizer.step()
        assert monitor.latest == {}
        assert monitor.decision.reason.name != "FAILED"
