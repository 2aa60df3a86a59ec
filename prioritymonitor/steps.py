"""Statistics of steps: which are measured, by whose weights, and where they go."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .data_parallel import DataParallel
from .errors import contained, described, may_pass
from .gradients.measured_steps import StepStatistics
from .gradients.parts import full_precision, head_passes, part_of
from .joined_steps import JoinedSteps
from .records import Step
from .report.sinks import Sinks
from .samples.grouping import Grouping


class Steps:
    """Measures each `every`-th step; a failure ends this and nothing else.

    Args:
        every: Optimizer steps from a measured one to the next.
        grouping: How noisy labels are taken to be.
        reports: Where the statistics go.
        overhead: Gives the share of wall time spent in the monitor since it was last called.
        say: Tells the user about a problem.
        others: The other ranks; None where they are never in touch.
    """

    def __init__(
        self,
        every: int,
        grouping: Grouping,
        reports: Sinks,
        overhead: Callable[[], float],
        say: Callable[[str], None],
        others: DataParallel | None,
    ) -> None:
        self.statistics = StepStatistics(overhead)
        self._joined = None
        if others is not None:
            self._joined = JoinedSteps(every, self.statistics, others, say)
        self._every = every
        self._grouping = grouping
        self._reports = reports
        self._say = say
        self._is_on = True

    def is_measured(self, steps: int) -> bool:
        """Whether the optimizer step that so many others came before is measured."""
        return self._is_on and steps % self._every == 0

    def add(self, number: int, step: Step) -> None:
        """Measure a step, if it has anything to measure."""
        if step.observations:
            with contained(self._failed):
                self._measure(number, step)
        if self._joined is not None:
            self._joined.step_made(number)
        if self.statistics.is_full:
            self.report()

    def _measure(self, number: int, step: Step) -> None:
        visits = [one.visits for one in step.observations]
        weight = torch.cat([self._grouping.noisy_weight(some) for some in visits])
        true_label = torch.cat([self._grouping.true_label(some) for some in visits])
        if self._joined is None or not self._joined.is_on:
            return self.statistics.measure(number, step, weight, true_label)
        with full_precision(weight.device):
            part = part_of(step, head_passes(step, weight), true_label)
        return self._joined.add(number, part)

    def end_epoch(self) -> None:
        """The epoch has ended, on all ranks: what was measured in it is written."""
        if self._joined is not None:
            self._joined.end_epoch()
        self.report()

    def report(self) -> None:
        """Write what was measured since the last report."""
        with contained(self._failed):
            for one in self.statistics.read():
                self._reports.step(one.values, one.step, one.time)

    def _failed(self, error: Exception) -> None:
        self._is_on = may_pass(error)
        if self._joined is not None:
            self._joined.has_failed = not self._is_on
        what = "a step was not measured" if self._is_on else "statistics of steps are off"
        self._say(f"{what}, losses, suspects and the stop go on: {described(error)}")
