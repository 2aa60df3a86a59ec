"""Every undocumented name of torch that the package reads is there and does what is said of it."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from prioritymonitor.capture import private
from tests.support.recorded import SAMPLES, dataset


def loader(**options):
    return DataLoader(dataset(), batch_size=2, **options)


WORKERS = {"num_workers": 2, "prefetch_factor": 2}


@pytest.mark.parametrize("options", [{}, WORKERS], ids=["in this process", "with workers"])
def test_a_loader_makes_its_iterators_by_the_method_that_may_be_shadowed(options):
    watched, calls = loader(**options), []
    assert private.makes_iterators(watched)
    own = getattr(watched, private.GET_ITERATOR)
    watched.__dict__[private.GET_ITERATOR] = lambda: calls.append(1) or own()
    assert len(list(watched)) == SAMPLES // 2
    assert calls == [1]


@pytest.mark.parametrize("options", [{}, WORKERS], ids=["in this process", "with workers"])
def test_its_iterators_are_known_and_draw_from_its_batch_sampler(options):
    batches = iter(loader(**options))
    assert private.is_loader_iterator(batches)
    assert private.index_sampler(batches).batch_size == 2


def test_without_batches_its_iterators_draw_from_its_sampler():
    single = DataLoader(dataset(), batch_size=None)
    assert private.index_sampler(iter(single)) is single.sampler


def test_a_loader_with_persistent_workers_keeps_its_iterator():
    keeping = loader(num_workers=1, persistent_workers=True)
    assert private.kept_iterator(keeping) is None
    batches = iter(keeping)
    assert private.kept_iterator(keeping) is batches
    assert private.kept_iterator(loader()) is None


def test_a_copy_with_its_own_iterator_leaves_the_kept_one_alone():
    keeping = loader(num_workers=1, persistent_workers=True)
    kept = iter(keeping)
    twin = private.with_own_iterator(keeping)
    assert len(list(twin)) == len(keeping)
    assert private.kept_iterator(keeping) is kept
    assert private.kept_iterator(twin) is not kept


def test_a_kept_iterator_draws_from_another_sampler_from_its_reset_on():
    keeping = loader(num_workers=1, persistent_workers=True)
    private.set_index_sampler(iter(keeping), [[3, 4], [1]])
    assert [labels.tolist() for _, labels in keeping] == [[3, 4], [1]]


def test_workers_are_ahead_by_what_was_drawn_after_the_batch():
    drawn = []

    class Noting(torch.utils.data.BatchSampler):
        def __iter__(self):
            for batch in super().__iter__():
                drawn.append(batch)
                yield batch

    sampler = Noting(range(SAMPLES), 3, False)
    batches = iter(DataLoader(dataset(), batch_sampler=sampler, **WORKERS))
    assert private.batches_ahead(batches) == 4
    for _, labels in batches:
        assert drawn[-1 - private.batches_ahead(batches)] == labels.tolist()
    assert private.batches_ahead(batches) == 0


def test_a_node_of_the_graph_knows_the_shape_of_its_result():
    node = (torch.ones(3, 1, requires_grad=True) + torch.ones(2, 3, 4)).grad_fn
    assert private.result_shape(node) == (2, 3, 4)


def test_the_length_of_a_stream_can_be_asked_for_without_a_trace():
    class Stream(IterableDataset):
        def __len__(self):
            return 2

        def __iter__(self):
            return iter(range(3))

    stream = DataLoader(Stream())
    assert private.length(stream) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(stream)
    len(stream)
    assert private.length(stream) == 2
    with pytest.warns(UserWarning, match="Length of IterableDataset"):
        list(stream)  # whoever else asks leaves his


@pytest.mark.parametrize(
    ("read", "missing"),
    [
        (private.kept_iterator, None),
        (private.index_sampler, None),
        (private.batches_ahead, None),
        (private.makes_iterators, False),
        (private.is_loader_iterator, False),
    ],
)
def test_where_a_name_is_missing_the_answer_says_so(read, missing):
    assert read(object()) is missing
