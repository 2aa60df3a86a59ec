"""Trainings in which a rank does what it should not; see `launched.launch`."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import prioritymonitor.ranks
from prioritymonitor.samples.table import SampleTable
from tests.ranks.training import RANK, data, train

PATIENCE = 1.5
"""Seconds."""
EPOCHS, LAST = 4, 15


def sleeps(late, at=LAST):
    """After the gradients were exchanged, where the other rank goes on and waits, as at the end."""

    def before_step(monitor, epoch, number):
        if late == RANK and (epoch, number) == (2, at):
            time.sleep(2 * PATIENCE)

    return before_step


def closes_early(monitor, epoch, number):
    if RANK == 1 and (epoch, number) == (2, 3):
        monitor.close()


def fails(monitor, epoch, number):
    """The bug is ours."""
    if RANK == 1 and (epoch, number) == (2, 3):
        fails.bug = mock.patch.object(SampleTable, "record", side_effect=ValueError("bug"))
        fails.bug.start()
    elif RANK == 1 and epoch == 3:
        fails.bug.stop()


def steps_fail(monitor, epoch, number):
    """The bug is ours, and the statistics of steps are all that needs it."""
    if RANK == 1 and (epoch, number) == (1, 5):
        steps_fail.bug = mock.patch("prioritymonitor.steps.part_of", side_effect=ValueError("bug"))
        steps_fail.bug.start()
    elif RANK == 1 and epoch == 3:
        steps_fail.bug.stop()


def no_batches():
    """On one rank; the other has some."""
    return DataLoader(data(), 20, sampler=range(200) if RANK == 0 else [])


def relabelled(labels, epoch):
    return labels.flip(0) if RANK == 1 and epoch > 1 else labels


def raises(monitor, epoch, number):
    if RANK == 1 and (epoch, number) == (2, 3):
        raise KeyError("of the user's")


def trainings(kind):
    options = {"epochs": EPOCHS}
    results = {"unwatched": train(**options, is_watched=False)}
    if kind == "not on the first":
        return results | {kind: train(**options, is_watched=RANK == 1)}
    return results | {
        "closes early": train(**options, before_step=closes_early),
        "sleeps": train(**options, before_step=sleeps(1)),
        "the first sleeps": train(**options, before_step=sleeps(0)),
        "sleeps in mid-epoch": train(**options, every=1, before_step=sleeps(1, at=1)),
        "steps fail": train(**options, every=1, before_step=steps_fail),
        "fails": train(**options, before_step=fails),
        "does not read": train(**options, reads=RANK == 0),
        "loses identity": train(**options, relabelled=relabelled),
        "loses identity, unwatched": train(**options, relabelled=relabelled, is_watched=False),
        "no batches": train(no_batches(), uses_join=True, **options),
        "no batches, unwatched": train(no_batches(), uses_join=True, is_watched=False, **options),
        "has none": train(**options, is_watched=RANK == 0),
    }


def main(folder, kind):
    torch.set_num_threads(1)
    prioritymonitor.ranks.PATIENCE = timedelta(seconds=PATIENCE)
    dist.init_process_group("gloo")
    torch.save(trainings(kind), folder / f"{RANK}.pt")
    if kind == "not on the first":
        train(before_step=raises)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
