"""What a rank may do that it should not, at some place of a training; see `training.train`."""

import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from unittest import mock

import prioritymonitor.ranks
from prioritymonitor.samples.table import SampleTable
from tests.ranks.training import BATCH, RANK, SAMPLES

LAST = SAMPLES // BATCH
"""Batch of an epoch."""


@dataclass(frozen=True)
class Place:
    """Where it happens: between the backward pass of a batch and its step."""

    rank: int
    epoch: int
    batch: int

    def is_here(self, epoch, number):
        return self.rank == RANK and (epoch, number) == (self.epoch, self.batch)


def have_patience(seconds=None):
    """Let no rank wait longer for another; how long one waits now, which is as ever for None."""
    if seconds is not None:
        prioritymonitor.ranks.PATIENCE = timedelta(seconds=seconds)
    return prioritymonitor.ranks.PATIENCE.total_seconds()


def at(place, act):
    """What `train` calls before each step."""

    def before_step(monitor, epoch, number):
        if place.is_here(epoch, number):
            act(monitor)

    return before_step


def sleeps(place, seconds):
    return at(place, lambda monitor: time.sleep(seconds))


def closes(place):
    return at(place, lambda monitor: monitor and monitor.close())


def raises(place):
    def act(monitor):
        raise KeyError("of the user's")

    return at(place, act)


def is_killed(place):
    return at(place, lambda monitor: os.kill(os.getpid(), signal.SIGKILL))


def fails(place):
    """The bug is ours, and there until the next epoch's first step."""
    bug = mock.patch.object(SampleTable, "record", side_effect=ValueError("bug"))
    return _is_there(bug, place, place.epoch + 1)


def steps_fail(place):
    """The bug is ours, and the statistics of steps are all that needs it; it goes in epoch 3."""
    bug = mock.patch("prioritymonitor.steps.part_of", side_effect=ValueError("bug"))
    return _is_there(bug, place, 3)


def _is_there(bug, place, until):
    def before_step(monitor, epoch, number):
        if place.is_here(epoch, number):
            bug.start()
        elif place.rank == RANK and (epoch, number) == (until, 1):
            bug.stop()

    return before_step


def relabels(place):
    """From an epoch on."""

    def relabelled(labels, epoch):
        return labels.flip(0) if place.rank == RANK and epoch >= place.epoch else labels

    return relabelled
