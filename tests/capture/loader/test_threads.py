"""Several threads at one loader: each knows its own batches, and no exception reaches a loop."""

import threading

from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from tests.support.recorded import SAMPLES, current, dataset, record, trace, use


def run_together(*functions):
    """Run each in a thread; what it returns, or the exception."""
    results = [None] * len(functions)

    def run(number, function):
        try:
            results[number] = function()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Turns:
    """Lets two threads go on one after the other."""

    def __init__(self):
        self._mine, self._other = threading.Semaphore(1), threading.Semaphore(0)

    def first(self):
        return self._taken(self._mine, self._other)

    def second(self):
        return self._taken(self._other, self._mine)

    def _taken(self, mine, other):
        """Gives a number whenever it is this thread's turn."""
        for number in range(SAMPLES):
            mine.acquire()
            try:
                yield number
            finally:
                other.release()


def traverse(recorder, loader, turns, is_training):
    """Take a batch in one turn and look at it in the next."""
    batches, pairs, labels = iter(loader), [], None
    for _ in turns:
        if labels is not None:
            batch = use(recorder, len(labels)) if is_training else current(recorder)
            index = batch.index if batch is not None else None
            pairs.append((None if index is None else index.tolist(), labels.tolist()))
        _, labels = next(batches, (None, None))
    return pairs


def test_a_thread_that_looks_at_the_data_does_not_touch_what_the_other_trains_on():
    loader = DataLoader(dataset(), batch_size=3, shuffle=True)
    recorder, told = record(loader)
    turns = Turns()
    trained, seen = run_together(
        lambda: traverse(recorder, loader, turns.first(), is_training=True),
        lambda: traverse(recorder, loader, turns.second(), is_training=False),
    )
    for pairs in (trained, seen):
        assert len(pairs) == 7
        assert all(index == labels for index, labels in pairs)
    assert (recorder.no_identity, told.epochs, told.errors) == (None, 1, [])
    recorder.close()


def test_two_threads_that_train_in_turns_have_no_epochs_and_that_is_said():
    loader = DataLoader(dataset(), batch_size=3, shuffle=True)
    recorder, told = record(loader)
    turns = Turns()
    results = run_together(
        lambda: traverse(recorder, loader, turns.first(), is_training=True),
        lambda: traverse(recorder, loader, turns.second(), is_training=True),
    )
    for pairs in results:
        assert len(pairs) == 7
        assert all(index in (labels, None) for index, labels in pairs)
    assert recorder.no_identity.startswith("two loops over it train in turns")
    assert told.errors == []
    recorder.close()


def test_a_loop_that_goes_back_to_a_traversal_that_it_had_left_keeps_identity():
    """As when a learning rate is sought in between."""
    loader = DataLoader(dataset(), batch_size=3, shuffle=True)
    recorder, told = record(loader)
    batches = iter(loader)
    next(batches)
    use(recorder, 3)
    trace(recorder, loader)
    for _, labels in batches:
        assert use(recorder, len(labels)).index.tolist() == labels.tolist()
    assert all(index == labels for index, labels in trace(recorder, loader))
    assert (recorder.no_identity, told.errors) == (None, [])
    recorder.close()


def test_a_thread_that_has_got_batches_does_not_take_those_of_another():
    loader = DataLoader(dataset(), batch_size=3)
    recorder, _ = record(loader)
    batches = iter(loader)
    next(batches)
    own = current(recorder)
    run_together(lambda: next(batches))
    assert current(recorder) is own
    recorder.close()


class Crossing(BatchSampler):
    """Asked by two threads: each goes on when the other is where it would be in the way."""

    def __init__(self, *args):
        super().__init__(*args)
        self.came = [threading.Event(), threading.Event()]
        self.first_is_done = threading.Event()

    def __iter__(self):
        number = int(self.came[0].is_set())
        self.came[number].set()
        # In vain if one has to wait for the other, and then after a moment.
        (self.first_is_done if number else self.came[1]).wait(timeout=0.3)
        return super().__iter__()


def test_threads_that_begin_at_once_get_a_sampler_each_and_leave_the_loader_its_own():
    sampler = Crossing(RandomSampler(range(SAMPLES)), 3, False)
    loader = DataLoader(dataset(), batch_sampler=sampler)
    recorder, told = record(loader)

    second_is_done = threading.Event()

    def first():
        batches = iter(loader)
        sampler.first_is_done.set()
        second_is_done.wait()
        return seen(batches)

    def second():
        sampler.came[0].wait()
        batches = iter(loader)
        second_is_done.set()
        return seen(batches)

    def seen(batches):
        return [(current(recorder).index.tolist(), labels.tolist()) for _, labels in batches]

    for pairs in run_together(first, second):
        assert len(pairs) == 7
        assert all(index == labels for index, labels in pairs)
    assert loader.batch_sampler is sampler
    assert told.errors == []
    recorder.close()
