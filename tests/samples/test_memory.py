"""What following samples takes is said where it is much."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prioritymonitor import GradientMonitor
from prioritymonitor.samples.table import SampleTable


def attached(**options):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader = DataLoader(TensorDataset(torch.zeros(50, 2), torch.zeros(50, dtype=torch.int64)), 10)
    return GradientMonitor(model, optimizer, loader, **options)


def test_a_table_of_more_than_a_gibibyte_is_said_once(said, monkeypatch):
    monkeypatch.setattr(SampleTable, "bytes", 3 * 2**30)
    attached().close()
    (message,) = said()
    assert "following 50 samples takes 3.0 GiB" in message
    assert "max_tracked=" in message


def test_every_sample_is_followed_unless_the_user_says_how_many(said):
    for options, followed in (({}, 50), ({"max_tracked": 7}, 7)):
        monitor = attached(**options)
        assert len(monitor.samples()["index"]) == followed
        monitor.close()
    assert said() == []
