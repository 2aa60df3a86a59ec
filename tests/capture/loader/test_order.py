"""A collate_fn that shuffles gives samples another's label: that is noticed in the first epoch."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from prioritymonitor import StopReason
from tests.capture.loader.test_running_ahead import dataset, train, watched


def shuffled(samples):
    return default_collate([samples[i] for i in torch.randperm(len(samples)).tolist()])


class Named(Dataset):
    """As data sets of images are: inputs are made when asked for, labels are an attribute."""

    def __init__(self, targets=None):
        self.whole = dataset()
        self.targets = self.whole.tensors[1].tolist() if targets is None else targets

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        return self.whole[index]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [dataset, Named], ids=["tensors", "targets"])
def test_it_is_said_and_nothing_is_concluded_in_a_run_of_one_epoch(make, workers, said):
    loader = DataLoader(make(), batch_size=8, collate_fn=shuffled, num_workers=workers)
    model, optimizer, monitor = watched(loader)
    for batch in loader:
        train(model, optimizer, batch)
    monitor.close()
    assert sum("collate_fn shuffles" in message for message in said()) == 1
    assert monitor.decision.reason is StopReason.NO_IDENTITY
    assert monitor.suspects(min_score=0) == []


@pytest.mark.parametrize(
    "data",
    [
        dataset(),
        Named(),
        Named(torch.randint(0, 53, (53,)).tolist()),  # it gives other labels than it tells
        TensorDataset(dataset().tensors[0]),
    ],
    ids=["tensors", "targets", "other targets", "no labels"],
)
def test_batches_in_order_keep_identity(data, said):
    loader = DataLoader(data, batch_size=8, shuffle=True)
    model, optimizer, monitor = watched(loader)
    labels = dataset().tensors[1]
    for x, *_ in loader:
        train(model, optimizer, (x, labels[: len(x)] if len(data[0]) == 1 else _[0]))
    monitor.close()
    assert not any("shuffles" in message for message in said())
