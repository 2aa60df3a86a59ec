"""Trainings in which a rank does what it should not; see `launched.launch`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from tests.ranks.misdeeds import (
    LAST,
    Place,
    closes,
    fails,
    have_patience,
    raises,
    relabels,
    sleeps,
    steps_fail,
)
from tests.ranks.training import RANK, data, train

PATIENCE = 1.5
"""Seconds."""
EPOCHS = 4


def no_batches():
    """On one rank; the other has some."""
    return DataLoader(data(), 20, sampler=range(200) if RANK == 0 else [])


def trainings(kind):
    options = {"epochs": EPOCHS}
    results = {"unwatched": train(**options, is_watched=False)}
    if kind == "not on the first":
        return results | {kind: train(**options, is_watched=RANK == 1)}
    relabelled = relabels(Place(1, 2, 1))
    # After the gradients were exchanged, where the other rank goes on to the epoch's end.
    late = [sleeps(Place(rank, 2, LAST), 2 * PATIENCE) for rank in (0, 1)]
    return results | {
        "closes early": train(**options, before_step=closes(Place(1, 2, 3))),
        "sleeps": train(**options, before_step=late[1]),
        "the first sleeps": train(**options, before_step=late[0]),
        "sleeps in mid-epoch": train(
            **options, every=1, before_step=sleeps(Place(1, 2, 1), 2 * PATIENCE)
        ),
        "steps fail": train(**options, every=1, before_step=steps_fail(Place(1, 1, 5))),
        "fails": train(**options, before_step=fails(Place(1, 2, 3))),
        "does not read": train(**options, reads=RANK == 0),
        "loses identity": train(**options, relabelled=relabelled),
        "loses identity, unwatched": train(**options, relabelled=relabelled, is_watched=False),
        "no batches": train(no_batches(), uses_join=True, **options),
        "no batches, unwatched": train(no_batches(), uses_join=True, is_watched=False, **options),
        "has none": train(**options, is_watched=RANK == 0),
    }


def main(folder, kind):
    torch.set_num_threads(1)
    have_patience(PATIENCE)
    dist.init_process_group("gloo")
    torch.save(trainings(kind), folder / f"{RANK}.pt")
    if kind == "not on the first":
        train(before_step=raises(Place(1, 2, 3)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
