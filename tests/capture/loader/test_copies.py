"""A copy of a watched loader is an ordinary loader with its own options."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from tests.support.recorded import current, dataset, record


class Numbered(DataLoader):
    """A subclass that says how to copy itself."""

    number = 0

    def __getstate__(self):
        return {**self.__dict__, "number": self.number + 1}


class Remade(DataLoader):
    """A subclass that is copied by a function of its own."""

    def __reduce__(self):
        return remade, (self.__dict__,)


def remade(attributes):
    loader = Remade.__new__(Remade)
    loader.__dict__.update(attributes)
    return loader


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda loader: pickle.loads(pickle.dumps(loader)),
    "old pickle": lambda loader: pickle.loads(pickle.dumps(loader, protocol=0)),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def doubled(samples):
    inputs, labels = default_collate(samples)
    return inputs, 2 * labels


@every_way
@pytest.mark.parametrize("kind", [DataLoader, Numbered, Remade])
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_copy_has_the_attributes_and_batches_of_a_loader_that_was_never_watched(
    way, kind, is_closed
):
    loader = kind(dataset(), batch_size=6)
    unwatched = vars(way(loader))
    recorder, told = record(loader)
    twin = way(loader)
    if is_closed:
        recorder.close()
    assert type(twin) is kind
    assert vars(twin).keys() == unwatched.keys()
    assert getattr(twin, "number", 0) == unwatched.get("number", 0)
    twin.collate_fn = doubled
    labels = torch.cat([y for _, y in twin]).tolist()
    assert labels == [2 * i for i in range(20)]
    assert (told.epochs, told.errors) == (0, [])
    recorder.close()


@every_way
def test_the_original_is_still_watched(way):
    loader = DataLoader(dataset(), batch_size=6)
    recorder, _ = record(loader)
    twin = way(loader)
    next(iter(loader))
    assert current(recorder).index.tolist() == [0, 1, 2, 3, 4, 5]
    recorder.close()
    assert len(list(twin)) == len(list(loader)) == 4


def test_a_copy_keeps_what_the_user_had_put_in_the_place_of_our_own():
    loader = DataLoader(dataset(), batch_size=6)
    loader._get_iterator = ones
    recorder, _ = record(loader)
    assert vars(copy.copy(loader))["_get_iterator"] is ones
    recorder.close()
    assert vars(loader)["_get_iterator"] is ones


def ones():
    return iter([1, 1])


def test_a_subclass_that_copies_its_own_attributes_gets_an_unwatched_loader():
    class Deep(DataLoader):
        def __deepcopy__(self, memo):
            twin = memo[id(self)] = Deep.__new__(Deep)
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return twin

    loader = Deep(dataset(), batch_size=6)
    recorder, told = record(loader)
    twin = copy.deepcopy(loader)
    twin.collate_fn = doubled
    assert torch.cat([y for _, y in twin]).tolist() == [2 * i for i in range(20)]
    assert told.errors == []
    recorder.close()
