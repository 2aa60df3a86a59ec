"""Trainings that go on from a state; see `launched.launch`."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import prioritymonitor.ranks
from tests.ranks.interrupted import EPOCHS, Training, begun, gone_on
from tests.ranks.resumable import BATCHES
from tests.ranks.training import RANK, RANKS, data

MIDDLE = 2, 7
PATIENCE = 1.5
"""Seconds."""


def of_all(parts):
    """What each rank has saved."""
    gathered = [None] * RANKS
    dist.all_gather_object(gathered, parts)
    return gathered


def saved(epoch, last, **options):
    training = begun(epoch, last, **options)
    parts = training.parts()
    training.monitor.close()
    return of_all(parts)


def whole():
    training = begun(EPOCHS - 1, BATCHES)
    return training.result()


def saved_by_the_first_alone():
    """It calls `state_dict()` after each step, and no other rank ever does."""
    training, seconds = Training(), []

    def save():
        began = time.monotonic()
        training.monitor.state_dict()
        seconds.append(time.monotonic() - began)

    for epoch in range(2):
        training.train(epoch, before_step=lambda number: save() if RANK == 0 else None)
        if RANK == 0:
            save()
    return training.result() | {"longest": max(seconds, default=0)}


def out_of_touch():
    """A rank was late once, and all had lost touch when the state was saved."""

    def late(number):
        if RANK == 1 and number == BATCHES:
            time.sleep(2 * PATIENCE)

    with mock.patch.object(prioritymonitor.ranks, "PATIENCE", timedelta(seconds=PATIENCE)):
        training = begun(0, BATCHES)
        training.train(1, before_step=late)
        parts, reason = of_all(training.parts())[0], training.monitor.decision.reason.name
        training.monitor.close()
    return gone_on(parts, 2, 0) | {"reason": reason}


def uneven_loader():
    """Ranks have other numbers of batches, and an epoch ends where the next one begins."""
    begin, end = ((0, 200), (200, 440))[RANK]
    return DataLoader(data(), 20, sampler=range(begin, end))


def uneven():
    def trained(training, epochs):
        for _ in range(epochs):
            with training.net.join():
                training.train(0)
        return training

    training = trained(Training(uneven_loader()), 2)
    parts = training.parts()
    training.monitor.close()
    again = Training(uneven_loader())
    again.load(parts)
    return trained(again, 1).result()


def trainings(folder):
    middle, end = saved(*MIDDLE), saved(1, BATCHES, log_dir=folder / "run")
    earlier = saved(0, BATCHES)
    alone = torch.load(folder / "alone.pt", weights_only=True)
    return {
        "whole": whole(),
        "its own": gone_on(middle[RANK], *MIDDLE),
        "the first's": gone_on(middle[0], *MIDDLE),
        "of one process": gone_on(alone, *MIDDLE),
        "of the other rank": gone_on(end[1], 2, 0, log_dir=folder / "run"),
        "different ones": gone_on((earlier, end)[RANK][RANK], 2, 0),
        "saved by the first alone": saved_by_the_first_alone(),
        "out of touch": out_of_touch(),
        "uneven": uneven(),
        "saved": middle,
    }


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(trainings(folder), folder / f"{RANK}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
