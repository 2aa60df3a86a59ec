"""Loaders and data sets that few people have: no exception reaches the loop, nothing is silent."""

import time
import warnings

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler

from tests.support.recorded import SAMPLES, current, dataset, record, trace, use


class Generating(DataLoader):
    def _get_iterator(self):
        yield from super()._get_iterator()


class Handing(DataLoader):
    """Gives an object around torch's iterator."""

    def _get_iterator(self):
        return map(tuple, super()._get_iterator())


class Resampling(DataLoader):
    """Makes its sampler anew when it is asked for."""

    @property
    def batch_sampler(self):
        return BatchSampler(RandomSampler(self.dataset), 6, False)

    @batch_sampler.setter
    def batch_sampler(self, sampler):
        pass


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Generating, "generator"), (Handing, "map"), (Resampling, "_SingleProcessDataLoaderIter")],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_that_cant_be_followed_hands_out_its_batches_and_that_is_said(
    kind, name, workers
):
    if workers and kind is Resampling:
        name = "_MultiProcessingDataLoaderIter"
    loader = kind(dataset(), batch_size=6, num_workers=workers)
    recorder, told = record(loader)
    assert recorder.no_identity is None
    for _ in range(2):
        torch.manual_seed(3)
        watched = trace(recorder, loader)
        torch.manual_seed(3)
        assert [labels for _, labels in watched] == [y.tolist() for _, y in kind.__iter__(loader)]
    assert recorder.no_identity == f"its iterator is of type {name}, which can't be followed"
    assert recorder.dataset_size is None
    assert told.errors == []
    recorder.close()


class Growing(Dataset):
    def __init__(self):
        self.size = 12

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.zeros(1), index


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_a_growing_data_set_gains_are_not_followed_and_that_is_said(workers):
    data = Growing()
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=workers)
    recorder, told = record(loader)
    trace(recorder, loader)
    assert recorder.not_followed is None
    data.size = 20
    pairs = trace(recorder, loader)
    assert pairs
    for index, labels in pairs:
        assert index == [label if label < 12 else -1 for label in labels]
    assert "outside of the 12 samples" in recorder.not_followed
    assert (recorder.dataset_size, recorder.no_identity, told.errors) == (12, None, [])
    assert told.epochs == 2
    recorder.close()


def test_a_shrinking_data_set_is_followed():
    data = Growing()
    loader = DataLoader(data, batch_size=4, shuffle=True)
    recorder, told = record(loader)
    trace(recorder, loader)
    data.size = 7
    assert all(index == labels for index, labels in trace(recorder, loader))
    assert (recorder.not_followed, told.epochs, told.errors) == (None, 2, [])
    recorder.close()


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_the_default_device_does_not_matter(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    loader = DataLoader(Growing(), batch_size=4, collate_fn=list)
    with torch.device(device):
        recorder, told = record(loader)
    batches = iter(loader)  # for this, torch itself needs the CPU
    with torch.device(device):
        for number, _ in enumerate(batches):
            index = current(recorder).index
            assert index.device.type == "cpu"
            assert index.tolist() == list(range(4 * number, 4 * number + 4))
    assert told.errors == []
    recorder.close()


class Stumbling(Dataset):
    """Now and then a sample is interrupted, unreadable or late."""

    def __init__(self, stumble):
        self.stumble = stumble

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if index in (5, 11):
            self.stumble()
        return torch.zeros(1), index


def interrupt():
    raise KeyboardInterrupt


def fail():
    raise OSError("unreadable")


def oversleep():
    time.sleep(0.3)


STUMBLES = {
    "interrupted": ({}, interrupt),
    "unreadable": ({}, fail),
    "unreadable in a worker": ({"num_workers": 2}, fail),
    "late": ({"num_workers": 1, "timeout": 0.1, "prefetch_factor": 3}, oversleep),
}


@pytest.mark.parametrize(("options", "stumble"), STUMBLES.values(), ids=STUMBLES)
def test_what_goes_wrong_with_a_batch_leaves_index_and_batch_together(options, stumble):
    loader = DataLoader(Stumbling(stumble), batch_size=2, **options)
    recorder, told = record(loader)
    batches, stumbled = iter(loader), 0
    while True:
        try:
            _, labels = next(batches)
        except (KeyboardInterrupt, OSError, RuntimeError):
            stumbled += 1
            continue
        except StopIteration:
            break
        assert use(recorder, len(labels)).index.tolist() == labels.tolist()
    assert stumbled
    assert (recorder.no_identity, told.epochs, told.errors) == (None, 1, [])
    recorder.close()


def test_indices_that_are_pairs_name_no_samples():
    class Pairs(Dataset):
        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            return torch.zeros(1), sum(index)

    sampler = [[(i, 1), (i, 2)] for i in range(5)]
    loader = DataLoader(Pairs(), batch_sampler=sampler)
    recorder, told = record(loader)
    assert [index for index, _ in trace(recorder, loader)] == [None] * 5
    assert recorder.no_identity == "its sampler does not give integer indices"
    assert told.errors == []
    recorder.close()


class Stream(IterableDataset):
    """Has more samples than it says."""

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([(torch.zeros(1), i) for i in range(5)])


def test_asking_for_the_length_of_a_stream_leaves_no_trace():
    loader = DataLoader(Stream())
    recorder, _ = record(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            for _, labels in loader:
                use(recorder, len(labels))
                recorder.settle()
    recorder.close()
