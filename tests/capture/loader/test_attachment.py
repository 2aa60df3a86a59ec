"""A recorder is attached to a loader wholly or not at all, and leaves nothing behind."""

import functools
import gc
import itertools
import weakref

import pytest
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from prioritymonitor.capture.hooks import Guard
from prioritymonitor.capture.loader.recorder import LoaderRecorder
from tests.support.interrupted import interrupted_at, interrupted_everywhere
from tests.support.recorded import SAMPLES, current, dataset, record, trace


class OnItsOwn(DataLoader):
    """Its `_get_iterator` was replaced by the user on this very loader."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._get_iterator = super()._get_iterator


WORKERS = {"num_workers": 1, "persistent_workers": True}
LOADERS = {
    "plain": lambda: DataLoader(dataset(), batch_size=6),
    "single samples": lambda: DataLoader(dataset(), batch_size=None),
    "persistent workers": lambda: DataLoader(dataset(), batch_size=6, **WORKERS),
    "method replaced": lambda: OnItsOwn(dataset(), batch_size=6),
}
loaders = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


def state(loader):
    """Everything on a loader and its kept iterator that a recorder could change."""
    kept = loader._iterator
    return dict(vars(loader)), type(kept), kept and kept._index_sampler


@loaders
def test_a_constructor_that_breaks_off_at_any_line_leaves_nothing(make):
    loader = make()
    next(iter(loader))  # persistent workers run already
    before = state(loader)
    made = []

    def attach():
        made.append(LoaderRecorder(loader, lambda: None, Guard(lambda error: None)))

    lines = 0
    for lines in interrupted_everywhere(attach):  # noqa: B007
        assert state(loader) == before
    assert lines > 20
    made.pop().close()
    assert state(loader) == before


@pytest.fixture
def _without_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("broken_off", ["constructor", "close"])
def test_after_an_interruption_the_loader_is_freed_by_its_last_reference(broken_off):
    """Workers of a loader that the garbage collector frees take seconds to end."""
    for line in itertools.count(1):
        loader = DataLoader(dataset(), batch_size=6)
        held, made = weakref.ref(loader), []
        if broken_off == "constructor":
            keep = functools.partial(_keep_recorder, made, loader)
            goes_on = interrupted_at(line, keep)
            del keep
            for recorder in made:
                recorder.close()
        else:
            recorder, _ = record(loader)
            goes_on = interrupted_at(line, recorder.close)
            recorder.close()
        del loader
        if not goes_on:
            return
        assert held() is None


def _keep_recorder(made, loader):
    made.append(record(loader)[0])


@loaders
def test_a_close_that_breaks_off_at_any_line_can_be_completed(make):
    loader = make()
    next(iter(loader))
    before = state(loader)
    recorders = [record(loader)[0]]
    list(loader)
    assert state(loader) != before
    lines = 0
    for lines in interrupted_everywhere(lambda: recorders[-1].close()):  # noqa: B007
        assert len(list(loader)) == len(loader)  # a half-closed recorder harms no one
        recorders.pop().close()
        assert state(loader) == before
        recorders.append(record(loader)[0])
        list(loader)
    assert lines > 10
    assert state(loader) == before


def test_an_iterator_whose_making_breaks_off_leaves_nothing_after_close():
    loader = DataLoader(dataset(), batch_size=6)
    before = state(loader)
    recorder, _ = record(loader)
    for _ in interrupted_everywhere(lambda: iter(loader)):
        recorder.close()
        assert state(loader) == before
        recorder, _ = record(loader)
    recorder.close()
    assert state(loader) == before


def test_closing_twice_does_nothing():
    loader = DataLoader(dataset(), batch_size=6)
    recorder, told = record(loader)
    recorder.close()
    second, _ = record(loader)
    recorder.close()
    recorder.settle()
    assert (current(recorder), recorder.batches, told.errors) == (None, None, [])
    assert trace(second, loader)[0] == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    second.close()


def test_a_recorder_goes_on_when_another_of_the_same_loader_was_closed_halfway():
    loader = DataLoader(dataset(), batch_size=6)
    before = state(loader)
    recorders = [record(loader)[0]]
    for _ in interrupted_everywhere(lambda: recorders[-1].close()):
        second, _ = record(loader)
        recorders.pop().close()
        assert trace(second, loader)[0] == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
        second.close()
        assert state(loader) == before
        recorders.append(record(loader)[0])


def test_what_someone_else_has_laid_over_it_stays_and_works():
    loader = DataLoader(dataset(), batch_size=6)
    recorder, _ = record(loader)
    ours, calls = loader._get_iterator, []

    def counted():
        calls.append(1)
        return ours()

    loader._get_iterator = counted
    assert trace(recorder, loader)[0] == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    recorder.close()
    assert loader._get_iterator is counted
    assert len(list(loader)) == 4
    assert len(calls) == 2
    assert current(recorder) is None


def test_persistent_workers_that_ran_before_are_followed_from_their_next_traversal_on():
    loader = DataLoader(dataset(), batch_size=6, shuffle=True, **WORKERS)
    running = iter(loader)
    next(running)
    recorder, told = record(loader)
    next(running)
    assert current(recorder) is None
    assert all(index == labels for index, labels in trace(recorder, loader))
    assert (recorder.no_identity, told.epochs, told.errors) == (None, 1, [])
    recorder.close()


def test_a_sampler_without_a_length_is_followed():
    class Endless(RandomSampler):
        def __len__(self):
            raise NotImplementedError

    class Unsized:
        def __iter__(self):
            return iter(BatchSampler(RandomSampler(range(SAMPLES)), 6, False))

    for options in (
        {"batch_sampler": Unsized()},
        {"batch_size": 6, "sampler": Endless(range(SAMPLES), num_samples=30)},
    ):
        loader = DataLoader(dataset(), **options)
        recorder, told = record(loader)
        assert recorder.batches is None
        assert all(index == labels for index, labels in trace(recorder, loader))
        recorder.settle()
        assert (recorder.dataset_size, told.epochs, told.errors) == (SAMPLES, 1, [])
        recorder.close()
