"""Labels of data sets, read without loading a sample."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from prioritymonitor.capture.loader.own_labels import own_labels

LABELS = [3, 1, 2, 0, 2]


class Images(Dataset):
    """As torchvision makes them; loading one is noticed."""

    def __init__(self, name="targets", labels=LABELS, target_transform=None):
        setattr(self, name, labels)
        self.target_transform = target_transform

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        raise AssertionError("a sample was loaded")


X = torch.zeros(5, 2)
KNOWN = {
    "TensorDataset": TensorDataset(X, torch.tensor(LABELS)),
    "targets": Images(),
    "labels, an array": Images("labels", np.array(LABELS, np.uint8)),
    "Subset": Subset(Images(labels=[*LABELS]), range(5)),
    "ConcatDataset": ConcatDataset([Subset(Images(), [0, 1, 2]), Subset(Images(), [3, 4])]),
}


@pytest.mark.parametrize("dataset", KNOWN.values(), ids=KNOWN)
def test_labels_are_found_in_attributes(dataset):
    found = own_labels(dataset)
    assert found.dtype == torch.int64
    assert found.tolist() == LABELS


def test_parts_have_the_labels_of_their_samples():
    part, _ = random_split(Images(), [3, 2], generator=torch.Generator().manual_seed(0))
    assert own_labels(part).tolist() == [LABELS[index] for index in part.indices]


def test_a_column_of_hugging_face_data_is_read_without_its_transforms():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_dict({"text": list("abcde"), "label": LABELS})

    def fails(batch):
        raise AssertionError("a sample was loaded")

    dataset.set_transform(fails)
    assert own_labels(dataset).tolist() == LABELS
    assert own_labels(dataset.select([4, 0])).tolist() == [2, 3]


UNKNOWN = {
    "None": None,
    "a list": [(1, 2), (3, 4)],
    "inputs alone": TensorDataset(X),
    "soft labels": TensorDataset(X, torch.zeros(5, 3)),
    "too few": Images(labels=LABELS[:-1]),
    "names": Images(labels=list("abcde")),
    "changed on the way": Images(target_transform=lambda label: label - 1),
    "a part of them unknown": ConcatDataset([Images(), Images(labels=None)]),
}


@pytest.mark.parametrize("dataset", UNKNOWN.values(), ids=UNKNOWN)
def test_labels_that_are_not_surely_those_are_left(dataset):
    assert own_labels(dataset) is None
