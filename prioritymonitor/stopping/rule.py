"""The rule: a pure function from the records of the epochs to the advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import ArgumentTypeError, ArgumentValueError
from ..records import Decision, Record, StopReason
from .agreement import read_agreement
from .priority import read_priority
from .reading import Reading, means_of
from .validation import read_validation

Rule = Callable[[Sequence[Record]], Decision]
"""What `stop=` takes."""

_RISE = 0.1
"""By so much more predictions must change than when fewest did, where neighbours can't vote."""


@dataclass(frozen=True)
class StopRule:
    """When to stop, and which epoch is the best.

    The agreement of predictions with the neighbours' given labels rises while what holds across
    samples is learnt, and falls as single labels are learnt by heart. The advice is to stop once
    its mean over three epochs has been below its highest, by `tolerance` of that, for `patience`
    epochs running; by less, where more than 5 % of the labels are contradicted by network and
    neighbours alike. The best epoch is the middle one of the last three whose mean can't be told
    from the highest; while the agreement has not fallen so far, it is the present one.

    Held-out labels, if there are any, say stop as well once their mean share is one and a half of
    its standard errors below its highest; the earlier peak counts. Where neighbours can't vote, it
    takes a fall of the clean priority while ever more predictions change.

    A rule is a function of `GradientMonitor.history()`, from which all of it follows: it remembers
    nothing. Any other function from such a list to a `Decision` may take its place.

    Args:
        patience: Epochs for which the agreement must have been so low, at least 1.
        min_epochs: No stop before this many epochs, at least 1.
        tolerance: Share of its highest value that the agreement must have lost, in [0, 1).

    Raises:
        ArgumentTypeError: A value is not a number, or one that counts epochs not an int.
        ArgumentValueError: A value is out of its range.

    Examples:
        >>> StopRule(patience=10).patience
        10
    """

    patience: int = 3
    min_epochs: int = 1
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        for name in ("patience", "min_epochs"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ArgumentTypeError(f"got StopRule({name}={value!r}); pass a whole number")
            if value < 1:
                raise ArgumentValueError(f"got StopRule({name}={value}); it must be ≥ 1")
        tolerance = self.tolerance
        if not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool):
            raise ArgumentTypeError(f"got StopRule(tolerance={tolerance!r}); pass a number")
        if not 0 <= tolerance < 1:
            raise ArgumentValueError(
                f"got StopRule(tolerance={tolerance}); it is a share of the highest agreement, "
                "from 0 to less than 1, and 0.05 by default"
            )

    def __call__(self, history: Sequence[Record]) -> Decision:
        """Judge the curves of the witnesses.

        Args:
            history: The records of the epochs, the first one first; not empty. Only `agreement`,
                `contradicted`, `validation` and `validation_samples` are looked at, and without an
                agreement `priority`, `samples_seen`, `noise_rate`, `initial_loss` and
                `prediction_changes`.

        Returns:
            The advice at the end of the last of them.
        """
        now, readings = len(history), self._read(history)
        if not readings:
            message = "not judged yet: neither the neighbours nor the clean priority tell anything"
            return Decision(False, StopReason.TOO_EARLY, now, now, message)
        reading = _counting(readings)
        best = reading.peak if reading.is_below else now
        peaks = (reading.peak, *(one.peak for one in readings if one is not reading))
        decision = Decision(False, StopReason.CLEAN_DOMINATES, now, best, "", peaks)
        if now < self.min_epochs:
            message = f"too early to judge: epoch {now} of at least {self.min_epochs}"
            return replace(decision, reason=StopReason.TOO_EARLY, message=message)
        below = self._epochs_below(history)
        if below >= self.patience:
            message = (
                f"noisy labels took over after epoch {best}: {reading.name} has been below the "
                f"stop line for {_epochs(below)} ({reading.distance}); restore_best() gives the "
                f"weights of epoch {best}"
            )
            return replace(decision, stop=True, reason=StopReason.NOISY_DOMINATES, message=message)
        return replace(decision, message=self._progress(reading, below, now))

    def _progress(self, reading: Reading, below: int, now: int) -> str:
        """How far it is to a stop, in a sentence."""
        if reading.why_silent is not None:
            return f"not judged yet by {reading.name}: {reading.why_silent}"
        if not reading.fall > 0:
            return f"clean labels still dominate: {reading.name} still rises"
        if below:
            return (
                f"noisy labels begin to dominate: {reading.name} is below the stop line for "
                f"{below} of {_epochs(self.patience)} ({reading.distance})"
            )
        return (
            f"clean labels still dominate: {reading.name} peaked at epoch {reading.peak} of "
            f"{now} and is above the stop line ({reading.distance})"
        )

    def _read(self, history: Sequence[Record]) -> list[Reading]:
        """The neighbours' vote and held-out labels, as far as there are any; else the priority."""
        witnesses = [read_agreement(history, self.tolerance), read_validation(history)]
        known = [one for one in witnesses if one is not None]
        priority = read_priority(history) if not known else None
        return known if priority is None else [_unless_calm(priority, history)]

    def _epochs_below(self, history: Sequence[Record]) -> int:
        """For how many epochs running the curve has been below the line, up to the patience."""
        for below in range(min(self.patience, len(history))):
            readings = self._read(history[: len(history) - below])
            if not any(reading.is_below for reading in readings):
                return below
        return min(self.patience, len(history))


def measure_only(history: Sequence[Record]) -> Decision:
    """The rule of `stop=None`: it knows the best epoch and never stops."""
    judged = StopRule()(history)
    message = f"measuring only: epoch {judged.best_epoch} of {judged.epoch} is the best so far"
    return replace(judged, stop=False, reason=StopReason.NO_RULE, message=message)


def _unless_calm(priority: Reading, history: Sequence[Record]) -> Reading:
    """The priority takes hard labels for wrong ones, but those make no predictions restless."""
    changes = [mean for _, mean in means_of(history, "prediction_changes")]
    is_restless = bool(changes) and changes[-1] >= (1 + _RISE) * min(changes)
    if is_restless:
        return priority
    return replace(priority, why_silent="no more predictions change than when fewest did")


def _counting(readings: Sequence[Reading]) -> Reading:
    """Of those below their line the one with the earliest peak."""
    below = [reading for reading in readings if reading.is_below]
    return min(below, key=lambda reading: reading.peak, default=readings[0])


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
