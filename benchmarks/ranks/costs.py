"""A small model of what ranks cost each other, from a few constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_WAITING, MOST_BYTES = 16, 2**24
"""Measured steps are exchanged as soon as so many wait, or so much."""

EVERY, BATCH = 8, 64
"""Optimizer steps from a measured one to the next, and samples of a rank in a step."""

QUESTIONS = 7
"""That a rank asks the store in a meeting: it comes, is counted, looks once (two questions), asks
whether it is said who came and what, and deletes what it left at the meeting before."""

CALLS_OF_A_REPORT = 3
"""Collectives: whether ranks have the same steps, the moments, the matrices."""

MATRICES, WAITING = 2, 3
"""Of numbers of four bytes, classes times features and one: the gradients of both groups are
exchanged, and the update waits with them."""

ON_DEVICE = 36
"""Bytes of a sample on the device of the logits: four sums, three labels, its noise as it is taken
to be and as it is known; the rest is on the host."""


@dataclass(frozen=True)
class Constants:
    """Measured on one machine."""

    answers: float
    """That the store gives in a second, one after the other."""
    hop: float
    """Seconds that a number takes from one rank to the next in a collective."""
    byte: float
    """Seconds that a byte takes there."""


@dataclass(frozen=True)
class Cost:
    """Of an exchange."""

    bytes: float
    """That each rank sends."""
    seconds: float


def meeting(constants: Constants, ranks: int) -> float:
    """Seconds: the store answers all of them one after the other."""
    return QUESTIONS * ranks / constants.answers


def collectives(constants: Constants, ranks: int, payload: float, calls: int) -> Cost:
    """Sums of so many bytes in all, in a ring: twice around it, a piece of the whole each time."""
    sent = 2 * (ranks - 1) / ranks * payload
    return Cost(sent, calls * 2 * (ranks - 1) * constants.hop + sent * constants.byte)


def epoch_end(constants: Constants, ranks: int, payload: float, calls: int) -> Cost:
    """Two meetings, and what is known of each sample in between."""
    summed = collectives(constants, ranks, payload, calls)
    return Cost(summed.bytes, 2 * meeting(constants, ranks) + summed.seconds)


def steps_at_once(classes: int, features: int) -> int:
    """How many measured steps are exchanged in a report."""
    waiting = WAITING * 4 * classes * (features + 1)
    return min(MOST_WAITING, max(MOST_BYTES // waiting, 1))


def report(constants: Constants, ranks: int, classes: int, features: int) -> Cost:
    """Of the statistics of some measured steps: a meeting, and their matrices."""
    payload = MATRICES * 4 * classes * (features + 1) * steps_at_once(classes, features)
    summed = collectives(constants, ranks, payload, CALLS_OF_A_REPORT)
    return Cost(summed.bytes, meeting(constants, ranks) + summed.seconds)


def reports_of_an_epoch(ranks: int, samples: int, classes: int, features: int) -> float:
    """How many there are; less than one: every so many epochs."""
    measured = math.ceil(samples / (ranks * BATCH)) / EVERY
    return measured / steps_at_once(classes, features)
