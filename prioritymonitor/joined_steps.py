"""Measured steps of batches that several ranks share, put together."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .data_parallel import DataParallel
from .errors import PriorityMonitorError, contained, described
from .gradients.blocks import wide
from .gradients.measured_steps import StepStatistics
from .gradients.parts import StepPart
from .ranks import Ranks

MOST_WAITING = 16
"""Measured steps that wait on the device until ranks exchange them."""

_MOST_BYTES = 2**24
"""They wait for no more once they take so much; a single one may take more."""


class _Waiting(NamedTuple):
    time: float
    part: StepPart


class JoinedSteps:
    """Has statistics of steps be those of the whole batch, of which each rank trains a part.

    Ranks exchange sums at the same steps, by the steps' numbers. Where they can't, and from then
    on, statistics are those of this rank's part.

    Args:
        every: Optimizer steps from a measured one to the next.
        statistics: Gets the steps.
        others: The other ranks.
        say: Tells the user about a problem.
    """

    def __init__(
        self,
        every: int,
        statistics: StepStatistics,
        others: DataParallel,
        say: Callable[[str], None],
    ) -> None:
        self.has_failed = False
        """Whether this rank measures no more; the others are told at the next exchange."""
        self._every = every
        self._statistics = statistics
        self._others = others
        self._say = say
        self._waiting: dict[int, _Waiting] = {}
        self._most_waiting: int | None = None
        """What ranks have agreed on; None before the first exchange."""
        self._first = 0
        self._is_over = False
        others.at_epoch_end = self._exchange_at_epoch_end

    @property
    def is_on(self) -> bool:
        """Whether other ranks have a part of each batch, and steps are put together."""
        return not self._is_over and self._others.are_there

    def add(self, number: int, part: StepPart) -> None:
        """Keep what this rank's samples add to a measured step."""
        self._waiting[self._place(number)] = _Waiting(time.time(), part)

    def step_made(self, number: int) -> None:
        """An optimizer step was made, measured or not; exchange what waits if it is time.

        It is at the first step that each rank makes, so that all know how many they have made.
        """
        if self.is_on and self._is_time(number):
            with contained(self._give_up):
                if not self._others.may_end_now():
                    raise PriorityMonitorError(
                        "ranks are not known to have the same number of batches"
                    )
                self._others.in_step(lambda ranks: self._exchange(ranks, number))

    def _is_time(self, number: int) -> bool:
        most, place = self._most_waiting, self._place(number)
        if most is None:
            self._first = place
            return True
        return (number - 1) % self._every == 0 and (place + 1) % most == 0

    def end_epoch(self) -> None:
        """The epoch has ended, with an exchange if the ranks have met."""
        if self._most_waiting is not None and not self.is_on:
            self._give_up(PriorityMonitorError("ranks are not in touch"))

    def _exchange_at_epoch_end(self, ranks: Ranks, number: int) -> None:
        with contained(self._give_up):
            self._exchange(ranks, number)

    def _exchange(self, ranks: Ranks, number: int) -> None:
        """Put together what waits, on all ranks after the same step.

        Args:
            ranks: Those who have come.
            number: Of the step that was made last.
        """
        joined: dict[int, _Waiting] = {}
        layouts = self._agreed(ranks, number)
        for layout, places in itertools.groupby(layouts, key=layouts.__getitem__):
            if layout:
                joined |= self._added_up(ranks, [*places])
        self._waiting, self._first = {}, self._place(number) + 1
        for place, one in joined.items():
            self._statistics.add(self._number(place), one.time, one.part)

    def _place(self, number: int) -> int:
        """Which measured step it is, or was the last before it."""
        return (number - 1) // self._every

    def _number(self, place: int) -> int:
        return place * self._every + 1

    def _give_up(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, {}
        for place, one in waiting.items():
            self._statistics.add(self._number(place), one.time, one.part)
        if not self._is_over:
            self._say(
                "statistics of steps are those of this rank's part of the batch from here on: "
                f"{described(error)}"
            )
        self._is_over = True

    def _agreed(self, ranks: Ranks, number: int) -> dict[int, int]:
        """The layout of each step that waits, the same on all ranks; 0 where it is not.

        Raises:
            PriorityMonitorError: Ranks are at different steps, or one measures no more.
        """
        parts = [one.part for one in self._waiting.values()]
        own = [number, -number, self._first, -self._first]
        own += [
            int(not (self.has_failed or self._is_over)),
            min([MOST_WAITING, *map(_most_waiting, parts)]),
        ]
        places = range(self._first, self._first + MOST_WAITING)
        for place in places:
            layout = _layout(self._waiting[place].part) if place in self._waiting else 0
            own += [layout, -layout]
        least = ranks.least(torch.tensor(own, dtype=torch.int64, device="cpu")).tolist()
        number, minus_number, first, minus_first, are_on, most = least[:6]
        if (number, first) != (-minus_number, -minus_first):
            raise PriorityMonitorError(f"ranks have made from {number} to {-minus_number} steps")
        if not are_on:
            raise PriorityMonitorError("another rank could not measure its part")
        self._most_waiting = most
        layouts = zip(least[6::2], least[7::2], strict=True)
        return {
            place: layout if layout == -minus else 0
            for place, (layout, minus) in zip(places, layouts, strict=True)
        }

    def _added_up(self, ranks: Ranks, places: list[int]) -> dict[int, _Waiting]:
        """Steps of one layout, with what the samples of all ranks add to them."""
        waiting = [self._waiting[place] for place in places]
        parts = [one.part for one in waiting]
        own = [{name: wide(one) for name, one in part.moments.items()} for part in parts]
        moments, large = _totals(ranks, own), _totals(ranks, [one.added_up() for one in parts])
        joined = map(StepPart.of_all, parts, moments, large)
        return {
            place: one._replace(part=part)
            for place, one, part in zip(places, waiting, joined, strict=True)
        }


def _layout(part: StepPart) -> int:
    """The same number on each rank where sums can be added up; never 0."""
    named = part.moments | part.added_up()
    shapes = [(name, [*one.shape], str(one.dtype)) for name, one in named.items()]
    return 1 + zlib.crc32(repr((shapes, part.constants)).encode())


def _most_waiting(part: StepPart) -> int:
    tensors = [*part.added_up().values(), *part.changes.values()]
    size = sum(one.numel() * one.element_size() for one in tensors)
    return max(_MOST_BYTES // max(size, 1), 1)


def _totals(ranks: Ranks, steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Sums over the ranks of tensors that are named alike in each step, on the host."""
    rows = [torch.cat([one.reshape(-1) for one in named.values()]) for named in steps if named]
    if not rows:
        return steps
    sizes = [one.numel() for one in steps[0].values()]
    totals = [row.split(sizes) for row in ranks.total(torch.stack(rows))]
    return [
        {name: own.view(one.shape) for (name, one), own in zip(named.items(), total, strict=True)}
        for named, total in zip(steps, totals, strict=True)
    ]
