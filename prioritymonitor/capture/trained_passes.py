"""Passes that were trained on, until they are observed: many at once where nobody is in a hurry."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from ..records import Observation
from .observer import Observer, last
from .passes import Pass
from .resets import GradientResets

_MOST_TOGETHER = 16
"""Micro-batches that wait to be observed together."""

_MOST_NUMBERS = 2**18
"""Logits that wait at most; what is observed together should stay in the cache."""

_MOST_IN_STEP = 512
"""Micro-batches kept for one optimizer step; a loop that never steps must not fill the memory."""


class TrainedPasses:
    """Those of the measured step that is under way, and those that only wait.

    Args:
        observer: Turns passes into observations.
        resets: Tells whether gradients were reset.
        one_by_one: Observe each micro-batch alone, because someone wants to see its inputs.
        at_once: Observe those of a measured step in their backward pass.
        on_observation: Called with each `Observation`, some steps late at most.
    """

    def __init__(
        self,
        observer: Observer,
        resets: GradientResets,
        *,
        one_by_one: bool,
        at_once: bool,
        on_observation: Callable[[Observation], None],
    ) -> None:
        self._observer = observer
        self._resets = resets
        self._most_together = 1 if one_by_one else _MOST_TOGETHER
        self._at_once = at_once
        self._on_observation = on_observation
        self._waiting: list[Pass] = []
        self._of_step: list[Pass] = []
        self._is_given_up = False

    def add(self, one: Pass) -> None:
        """Add a pass of a step that is not measured."""
        self._waiting.append(one)
        numbers = sum(other.logits.numel() for other in self._waiting)
        if len(self._waiting) >= self._most_together or numbers >= _MOST_NUMBERS:
            self.observe()

    def add_to_step(self, one: Pass) -> bool:
        """Add a pass of a step that is measured; to be called in its backward pass.

        Returns:
            True if the passes before it came to nothing, as after an overflow: their gradients were
            reset without a step, and are part of no update.
        """
        if self._is_given_up or len(self._of_step) >= _MOST_IN_STEP:
            self.add(one)
            return False
        discarded = self._take_discarded(one.backward)
        self._resets.backward_began()
        self._of_step.append(one)
        if self._at_once:
            one.observation = self._observer([one])
            self._on_observation(one.observation)
        return discarded

    def _take_discarded(self, backward: int) -> bool:
        discarded = [one for one in self._of_step if one.backward != backward]
        if not discarded or not self._resets.was_reset():
            return False
        self._waiting += [one for one in discarded if one.observation is None]
        self._of_step = [one for one in self._of_step if one.backward == backward]
        return True

    def give_step_up(self) -> None:
        """The step is not measured; its passes count as visits all the same."""
        self._is_given_up = True
        passes, self._of_step = self._of_step, []
        self._waiting += [one for one in passes if one.observation is None]

    def has_step(self) -> bool:
        """Whether passes of a measured step are there."""
        return bool(self._of_step)

    def take_step(self) -> tuple[Observation, ...]:
        """Observations of the step that was just made; none unless it is measured."""
        passes, self._of_step, self._is_given_up = self._of_step, [], False
        if not passes or self._at_once:
            return tuple(one.observation for one in passes if one.observation is not None)
        kind = passes[0].kind
        if self._most_together > 1 and all(one.kind == kind for one in passes):
            return (self._observe_with_waiting(passes, kind),)
        observations = tuple(self._observer([one]) for one in passes)
        for observation in observations:
            self._on_observation(observation)
        return observations

    def _observe_with_waiting(self, passes: list[Pass], kind: object) -> Observation:
        """What waits is observed along where all of it is alike, and otherwise before it.

        Always in the order of the training: its first losses are those that it began with.
        """
        if any(one.kind != kind for one in self._waiting):
            self.observe()
        waiting, self._waiting = self._waiting, []
        observation = self._observer(waiting + passes)
        self._on_observation(observation)
        return last(observation, passes)

    def observe(self) -> None:
        """Observe what waits; the passes of a measured step that is under way wait for it."""
        waiting, self._waiting = self._waiting, []
        for _, alike in itertools.groupby(waiting, key=lambda one: one.kind):
            passes = list(alike)
            for start in range(0, len(passes), self._most_together):
                self._on_observation(self._observer(passes[start : start + self._most_together]))

    def clear(self) -> None:
        """Forget all of them."""
        self._waiting, self._of_step = [], []
