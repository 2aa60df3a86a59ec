"""A recorded loader hands out the same batches and draws the same random numbers."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, WeightedRandomSampler

from tests.support.recorded import SAMPLES, current, record


class Noisy(Dataset):
    """Draws from every source of randomness."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.rand(2) + random.random() + np.random.rand(), index


class Poisson:
    """Takes each sample by chance; a batch may be empty."""

    def __len__(self):
        return 6

    def __iter__(self):
        for _ in range(6):
            yield torch.nonzero(torch.rand(SAMPLES) < 0.1).flatten().tolist()


class Eager:
    """Draws all its numbers when it is asked for an iterator."""

    def __len__(self):
        return 5

    def __iter__(self):
        return iter(torch.randperm(SAMPLES).split(4))


def collate(samples):
    return torch.stack([torch.zeros(2), *(x for x, _ in samples)]), torch.tensor(
        [index for _, index in samples], dtype=torch.int64
    )


def weighted():
    return WeightedRandomSampler(torch.ones(SAMPLES), 30, generator=torch.Generator())


SAMPLERS = {
    "shuffled": lambda: {"batch_size": 6, "shuffle": True},
    "own generator": lambda: {"batch_size": 6, "shuffle": True, "generator": torch.Generator()},
    "weighted": lambda: {"batch_size": 6, "sampler": weighted()},
    "Poisson": lambda: {"batch_sampler": Poisson()},
    "eager": lambda: {"batch_sampler": Eager()},
    "batches from the sampler": lambda: {
        "batch_size": None,
        "sampler": BatchSampler(RandomSampler(range(SAMPLES)), 6, False),
        "collate_fn": None,
    },
}
WORKERS = {
    "in this process": {},
    "workers": {"num_workers": 2},
    "persistent workers": {"num_workers": 2, "persistent_workers": True},
}


class Batchwise(Noisy):
    def __getitem__(self, indices):
        return collate([super(Batchwise, self).__getitem__(index) for index in indices])


def traverse(options, is_recorded):
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    data = Batchwise() if options.get("batch_size", 1) is None else Noisy()
    loader = DataLoader(data, **{"collate_fn": collate, **options})
    recorder, told = record(loader) if is_recorded else (None, None)
    found = []
    for number in range(4):
        for batch in loader:
            found.append(batch)
            if recorder is not None:
                assert current(recorder).index.tolist() == batch[1].tolist()
            if number == 1:
                break
        found.append((torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(int))))
        found.append((torch.tensor(random.getstate()[1]), torch.zeros(0)))
    if recorder is not None:
        assert told.errors == []
        recorder.close()
    return found


@pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_batches_and_random_states_are_those_of_an_unrecorded_loader(sampler, workers):
    alone = traverse({**sampler(), **workers}, is_recorded=False)
    recorded = traverse({**sampler(), **workers}, is_recorded=True)
    assert len(alone) == len(recorded)
    for one, other in zip(alone, recorded, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
