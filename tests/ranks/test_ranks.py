"""Ranks know, without a collective, which of them have a monitor; a missing one holds up nobody."""

import datetime
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch.distributed as dist

from prioritymonitor.ranks import Presence, is_alone

ROOT = Path(__file__).parents[2]
MOMENT = datetime.timedelta(seconds=0.2)


def group(count, made=None, store=None):
    store = store if store is not None else dist.HashStore()
    return [Presence(store, rank, count) for rank in range(count if made is None else made)]


def test_a_process_without_a_group_is_alone():
    assert is_alone()
    assert Presence.of_process() is None


def test_nobody_is_missing_where_every_rank_has_a_monitor():
    assert [rank.missing(MOMENT) for rank in group(3)] == [[], [], []]


def test_a_rank_without_a_monitor_is_missed_after_the_patience():
    assert [rank.missing(MOMENT) for rank in group(3, made=2)] == [[2], [2]]


def test_a_rank_that_has_left_is_known_at_once():
    ranks = group(3)
    ranks[1].leave()
    assert [rank.missing() for rank in ranks] == [[1], [1], [1]]


def test_the_nth_monitors_of_each_rank_belong_together():
    store = dist.HashStore()
    first, second = group(2, store=store), group(2, store=store)
    first[0].leave()
    assert second[1].missing() == []
    assert first[1].missing() == [0]


def test_a_store_that_fails_does_not_hold_up_the_one_that_leaves():
    class Broken(dist.HashStore):
        broken = False

        def set(self, key, value):
            if self.broken:
                raise RuntimeError("gone")
            super().set(key, value)

    (only,) = group(1, store=Broken())
    only._store.broken = True
    only.leave()


WORKER = """
    import sys, torch.distributed as dist
    from prioritymonitor.ranks import Presence

    dist.init_process_group("gloo")
    presence = Presence.of_process()
    if dist.get_rank() == 1:
        presence.leave()
    dist.barrier()
    # In one piece: the other rank writes to the same pipe.
    print(f"missing {presence.missing()}" + chr(10), end="", flush=True)
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_know_of_each_other(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("missing [1]") == 2
