"""Which batch a pass is of where it is dear to ask: labels on an accelerator are waited for."""

import threading

import pytest
import torch

from prioritymonitor.capture.loader.handed_out import HandedOut, Traversal
from prioritymonitor.capture.loader.waiting import WaitingBatches


class Loop:
    """A loop over batches of `size` samples that are drawn `ahead` of the pass that uses them."""

    def __init__(self, size, ahead):
        self.waiting, self.waits = WaitingBatches(), 0
        self.size, self.ahead, self.thread = size, ahead, threading.get_ident()
        self.labels = torch.randint(0, 10, (400, size), generator=torch.Generator().manual_seed(0))

    def run(self, passes):
        """What each pass was taken to be of: the chosen batch, and what it carries along."""
        traversal, drawn, found = Traversal(batches=400), 0, []
        for number in range(passes):
            while drawn <= min(number + self.ahead, 399):
                drawn += 1
                traversal.handed_out = drawn
                index = torch.arange(self.size)
                labels = self.labels[drawn - 1]
                batch = HandedOut(traversal, index, labels, self.thread, number=drawn)
                self.waiting.add(batch)
            candidates = self.waiting.candidates()
            batch = self.waiting.choose(
                candidates, lambda at=number: self._shown(at), is_on_host=False
            )
            batch.take(self.size, 0)
            self.waiting.use(batch)
            carried = self.waiting.carried(candidates, batch)
            found.append((number + 1, batch.number, {one.number for one in carried}))
        return found

    def _shown(self, number):
        self.waits += 1
        return self.labels[number]


@pytest.mark.parametrize("size", [1, 8, 64])
@pytest.mark.parametrize("ahead", [1, 3])
def test_a_loop_that_runs_ahead_is_waited_for_in_its_first_passes_only(size, ahead):
    loop = Loop(size, ahead)
    found = loop.run(300)
    assert 0 < loop.waits <= max(8, 64 // size) + ahead
    right = [number == batch for number, batch, _ in found]
    assert all(right[100:])
    if size > 1:  # a single label agrees by chance now and then
        assert all(right)


def test_a_plain_loop_is_never_waited_for():
    loop = Loop(8, 0)
    assert all(number == batch and not carried for number, batch, carried in loop.run(300))
    assert loop.waits == 0


def test_batches_that_may_be_meant_are_carried_along():
    loop = Loop(8, 2)
    for number, batch, carried in loop.run(300)[10:]:
        assert number == batch
        assert number + 1 in carried


def test_batches_of_another_thread_are_waited_for_in_the_first_passes_only():
    loop = Loop(8, 0)
    loop.thread = 1
    found = loop.run(100)
    assert all(number == batch for number, batch, _ in found)
    assert 0 < loop.waits <= 8
