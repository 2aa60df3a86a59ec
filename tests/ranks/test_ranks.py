"""Ranks meet in the store, without a collective of the user's; a missing one holds up nobody."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from prioritymonitor.errors import PriorityMonitorError
from prioritymonitor.meetings import OutOfTouch
from prioritymonitor.ranks import Ranks, is_alone, is_first

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

MOMENT = timedelta(seconds=0.5)
FILES = Path("/proc/self/fd")


def group(count, made=None, store=None, patience=MOMENT):
    store = store if store is not None else dist.HashStore()
    return [Ranks(store, rank, count, patience) for rank in range(count if made is None else made)]


def on_each(ranks, function):
    """What the function gives on each rank, all of them at once; or the error that it raised."""
    results = [None] * len(ranks)

    def run(place):
        try:
            results[place] = function(ranks[place])
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    return results


def summed(name="first"):
    def together(rank):
        own = torch.tensor([float(rank.rank + 1)])
        return rank.together(name, lambda: rank.total(own).item())

    return together


def test_a_process_without_a_group_is_alone_and_the_first():
    assert is_alone()
    assert is_first()
    assert Ranks.of_process() is None


def test_all_who_come_exchange_what_they_have():
    ranks = group(3)
    assert on_each(ranks, summed()) == [6.0] * 3
    least = on_each(
        ranks, lambda one: one.together("2", lambda: one.least(torch.tensor([one.rank])).item())
    )
    assert least == [0] * 3


def test_what_is_summed_is_left_as_it_was():
    (rank,) = group(1)
    own = torch.ones(2)
    assert rank.together("alone", lambda: rank.total(own)) is not own
    assert own.tolist() == [1, 1]


def test_a_rank_without_a_monitor_is_waited_for_once():
    ranks = group(3, made=2)
    assert on_each(ranks, summed()) == [3.0] * 2
    assert [rank.members for rank in ranks] == [[0, 1]] * 2
    assert on_each(ranks, summed("next")) == [3.0] * 2


def test_a_rank_that_has_closed_its_monitor_is_not_waited_for():
    ranks = group(3, patience=timedelta(seconds=600))
    ranks[1].leave(None)
    assert on_each([ranks[0], ranks[2]], summed()) == [4.0] * 2


def test_a_rank_that_left_with_a_monitor_in_use_ends_it_for_all():
    ranks = group(3, patience=timedelta(seconds=600))
    ranks[1].leave("its labels are strange")
    for error in on_each([ranks[0], ranks[2]], summed()):
        assert isinstance(error, OutOfTouch)
        assert str(error) == "on rank 1 its labels are strange"
        assert not error.is_untold


def test_a_late_rank_ends_it_for_all_and_finds_out():
    ranks = group(3)
    for error in on_each(ranks[:2], summed()):
        assert str(error) == "rank 2 was late by more than 0.5 s"
    with pytest.raises(
        OutOfTouch, match=r"rank 2 was late .*, and the others have gone on"
    ) as late:
        summed()(ranks[2])
    assert late.value.is_untold
    for rank in ranks:
        with pytest.raises(OutOfTouch, match="rank 2 was late"):
            summed("next")(rank)


def test_where_the_first_rank_is_lost_the_next_one_has_to_say_it():
    ranks = group(3)
    second, third = on_each(ranks[1:], summed())
    assert second.is_untold
    assert not third.is_untold


def test_a_rank_that_is_lost_in_the_middle_ends_it_for_all():
    ranks = group(2)

    def together(rank):
        def exchange():
            if rank.rank == 1:
                raise ValueError("of ours")
            return rank.total(torch.ones(1))

        return rank.together("first", exchange)

    first, second = on_each(ranks, together)
    assert isinstance(first, OutOfTouch)
    assert isinstance(second, ValueError)


def test_what_a_lost_rank_leaves_undone_is_not_concluded_before_others_had_time_to_end():
    ranks = group(2, patience=timedelta(seconds=2))

    def together(rank):
        def exchange():
            raise RuntimeError("connection closed by peer")

        began = time.monotonic()
        with pytest.raises(OutOfTouch, match="connection closed"):
            rank.together("first", exchange)
        return time.monotonic() - began

    for seconds in on_each(ranks, together):
        assert 1.9 < seconds < 10


def test_what_the_first_rank_says_holds_for_all_once_it_is_said():
    first, second = group(2)
    assert second.of_first("id", "second's") == "second's"
    assert first.of_first("id", "first's") == "first's"
    assert second.of_first("id", "second's") == "first's"


def test_the_nth_monitors_of_each_rank_belong_together():
    store = dist.HashStore()
    first, second = group(2, store=store), group(2, store=store)
    first[0].leave(None)
    assert on_each(second, summed()) == [3.0] * 2
    assert summed()(first[1]) == 2.0


def first_rows(ranks, own):
    return ranks.in_step(lambda: ranks.first_rows(own, 5))


def test_the_first_rows_of_all_come_in_the_order_of_the_ranks():
    ranks = group(3)
    rows = on_each(ranks, lambda one: first_rows(one, torch.full((2, 3), float(one.rank))))
    for found in rows:
        assert found[:, 0].tolist() == [0, 0, 1, 1, 2]


def test_rows_of_other_sizes_are_no_rows_of_one_space():
    for error in on_each(group(2), lambda one: first_rows(one, torch.ones(2, 3 + one.rank))):
        assert isinstance(error, PriorityMonitorError)
        assert "[3, 4]" in str(error)


def test_rows_that_a_rank_does_not_ask_for_leave_it_a_member():
    ranks = group(2)
    with pytest.raises(OutOfTouch, match="rank 1 was late"):
        first_rows(ranks[0], torch.ones(1, 1))
    assert on_each(ranks, summed()) == [3.0] * 2


def test_ranks_know_whether_others_have_as_many_batches():
    ranks = group(2)
    ranks[0].epoch_begins(10)
    assert ranks[0].have_as_many(10)  # nobody else has begun
    ranks[1].epoch_begins(10)
    assert [rank.have_as_many(10) for rank in ranks] == [True, True]
    for rank, batches in zip(ranks, (10, 12), strict=True):
        rank.epoch_begins(batches)
    assert not ranks[0].have_as_many(10)
    assert not ranks[1].have_as_many(12)


def test_a_number_of_batches_that_is_not_known_may_differ():
    (rank,) = group(1)
    rank.epoch_begins(None)
    assert not rank.have_as_many(None)


def test_what_is_left_in_the_store_does_not_grow_with_the_epochs():
    store = dist.HashStore()
    ranks, keys = group(2, store=store), []
    for epoch in range(6):
        for rank in ranks:
            rank.epoch_begins(15)
        assert on_each(ranks, summed(f"epoch {epoch}")) == [3.0] * 2
        keys.append(store.num_keys())
    assert keys[1] == keys[-1]


def test_ranks_that_have_all_come_are_not_looked_for_one_by_one():
    class Asked(dist.HashStore):
        most = 0

        def check(self, keys):
            self.most = max(self.most, len(keys))
            return super().check(keys)

    store = Asked()
    assert on_each(group(4, store=store), summed()) == [10.0] * 4
    assert store.most == 1


def test_those_who_are_missing_are_found_among_many():
    ranks = group(9, made=9)
    for absent in (2, 7):
        ranks[absent].leave(None)
    there = [rank for rank in ranks if rank.rank not in (2, 7)]
    assert on_each(there, summed()) == [45.0 - 3 - 8] * 7
    assert there[0].members == [0, 1, 3, 4, 5, 6, 8]


@pytest.mark.skipif(not FILES.is_dir(), reason="open files are counted on Linux")
def test_a_rank_is_connected_with_its_neighbours_only():
    before, ranks = len([*FILES.iterdir()]), group(8)
    assert on_each(ranks, summed()) == [36.0] * 8
    assert len([*FILES.iterdir()]) - before < 8 * 7


def test_a_store_that_fails_does_not_hold_up_the_one_that_leaves():
    class Broken(dist.HashStore):
        is_broken = False

        def set(self, key, value):
            if self.is_broken:
                raise RuntimeError("gone")
            super().set(key, value)

    store = Broken()
    (only,) = group(1, store=store)
    store.is_broken = True
    only.leave(None)
    with pytest.raises(OutOfTouch, match="another rank was lost"):
        summed()(only)
