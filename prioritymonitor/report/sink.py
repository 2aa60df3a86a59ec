"""What a place that a run reports to has to do, and what it is told of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Columns, Decision


@dataclass(frozen=True)
class RunInfo:
    """What is known of a run at its first step."""

    id: str
    """The same before and after the run was interrupted: it travels in the state."""
    settings: Mapping[str, Any]
    """The arguments of the monitor."""
    shapes: Mapping[str, int | None]
    """Numbers of samples, classes and the like; None where unknown."""
    class_names: Sequence[str] | None = None
    epochs: Sequence[Mapping[str, Any]] = ()
    """Records of the epochs before an interruption."""
    samples: Callable[[], Columns] | None = None
    """Gives the table of the samples, as in `samples()`; None where there is none."""


class Sink:
    """Takes what a run reports; each does nothing with what does not concern it.

    What a sink raises ends this sink alone. After an error that may pass it is told to `recover`,
    and must make up with a later report for what it could not write.
    """

    name = "sink"
    """For people, as in *writing to NAME is off*."""

    def begin(self, run: RunInfo) -> None:
        """The first step is about to be reported, of a run from its start or resumed."""

    def step(self, values: Mapping[str, float], step: int, time: float) -> None:
        """A step was measured.

        Args:
            values: Statistics by tag; those that are not finite mean nothing.
            step: Number of optimizer steps made.
            time: When, in seconds since 1970.
        """

    def epoch(self, record: Mapping[str, Any], samples: Callable[[], Columns]) -> None:
        """An epoch ended.

        Args:
            record: As in `history()`.
            samples: Gives the table of the samples, as in `samples()`.
        """

    def stop(self, decision: Decision, step: int, suspects: Callable[[], Columns]) -> None:
        """Training should stop.

        Args:
            decision: Why.
            step: Number of optimizer steps made.
            suspects: Gives columns by the fields of `Suspect`, the likeliest first.
        """

    def resume_at(self, step: int, samples: Callable[[], Columns]) -> None:
        """A state was loaded: what was written after this step no longer holds.

        Args:
            step: Number of optimizer steps made.
            samples: Gives the table of the samples.
        """

    def flush(self) -> None:
        """Bring everything to the disk."""

    def close(self, suspects: Callable[[], Columns]) -> None:
        """Write what is left; nothing is reported after it."""

    def recover(self) -> None:
        """What was raised may pass: get ready to try again."""
