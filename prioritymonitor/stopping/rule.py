"""The rule: a pure function from the records of the epochs to the advice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import ArgumentTypeError, ArgumentValueError
from ..records import MOST_NOISE, Decision, Record, StopReason
from .priority import priority_curve

Rule = Callable[[Sequence[Record]], Decision]
"""What `stop=` takes."""

_ALIKE = 0.5
"""Part of the tolerance by which two values of the priority must differ to be told apart."""


@dataclass(frozen=True)
class StopRule:
    """When to stop, and which epoch is the best.

    The maximum of the clean priority is where noisy gradients began to dominate. The advice is to
    stop once the priority has been below that, by `tolerance` of the loss that the training began
    with, for `patience` epochs running. The best epoch is the last whose priority can't be told
    from the maximum: it is within half of that fall.

    A rule is a function of `GradientMonitor.history()`, from which all of it follows: it remembers
    nothing. Any other function from such a list to a `Decision` may take its place.

    Args:
        patience: Epochs for which the priority must have been lower, at least 1.
        min_epochs: No stop before this many epochs, at least 1.
        tolerance: Share of the initial loss that the priority must have lost, in [0, 1).

    Raises:
        ArgumentTypeError: A value is not a number, or one that counts epochs not an int.
        ArgumentValueError: A value is out of its range.

    Examples:
        >>> StopRule(patience=10).patience
        10
    """

    patience: int = 3
    min_epochs: int = 1
    tolerance: float = 0.01

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
                f"got StopRule(tolerance={tolerance}); it is a share of the initial loss, from 0 "
                "to less than 1, and 0.01 by default"
            )

    def __call__(self, history: Sequence[Record]) -> Decision:
        """Judge the curve of the clean priority.

        Args:
            history: The records of the epochs, the first one first; not empty. Only `priority`,
                `samples_seen`, `noise_rate` and `initial_loss` are looked at.

        Returns:
            The advice at the end of the last of them.
        """
        now, curve = len(history), priority_curve(history)
        if now not in curve:
            message = "not judged: the clean priority of this epoch is not known"
            return Decision(False, StopReason.TOO_EARLY, now, None, message)
        first, tolerance = first_judged(history), self._fall_needed(history)
        peak = max((e for e in curve if e >= (first or now)), key=curve.__getitem__)
        best = max(e for e in curve if e >= peak and curve[e] >= curve[peak] - _ALIKE * tolerance)
        if now < self.min_epochs:
            message = f"too early to judge: epoch {now} of at least {self.min_epochs}"
            return Decision(False, StopReason.TOO_EARLY, now, best, message)
        if first is None:
            message = "too early to judge: most labels still look wrong, so little has been learnt"
            return Decision(False, StopReason.TOO_EARLY, now, best, message)
        fall = curve[peak] - max(list(curve.values())[-self.patience :])
        if not fall > 0 or fall < tolerance:
            message = (
                f"clean labels still dominate: the clean priority peaked at epoch {peak} of {now}; "
                f"it has fallen by {curve[peak] - curve[now]:.3f} since, and a stop takes "
                f"{tolerance:.3f} in {_epochs(self.patience)} running"
            )
            return Decision(False, StopReason.CLEAN_DOMINATES, now, best, message)
        message = (
            f"noisy labels took over at epoch {peak}: over the {_epochs(now - peak)} since then "
            "the updates have fitted noisy labels more than clean ones; "
            f"restore_best() gives the weights of epoch {best}"
        )
        return Decision(True, StopReason.NOISY_DOMINATES, now, best, message)

    def _fall_needed(self, history: Sequence[Record]) -> float:
        """In nats; without a positive initial loss any fall that lasts is enough."""
        initial_loss = history[-1]["initial_loss"]
        return self.tolerance * initial_loss if initial_loss and initial_loss > 0 else 0.0


def measure_only(history: Sequence[Record]) -> Decision:
    """The rule of `stop=None`: it knows the best epoch and never stops."""
    judged = StopRule()(history)
    message = f"measuring only: epoch {judged.best_epoch} of {judged.epoch} is the best so far"
    return replace(judged, stop=False, reason=StopReason.NO_RULE, message=message)


def first_judged(history: Sequence[Record]) -> int | None:
    """The first epoch after which labels could be judged; None: none yet."""
    rates = ((epoch, record["noise_rate"]) for epoch, record in enumerate(history, 1))
    return next((epoch for epoch, rate in rates if rate is not None and rate < MOST_NOISE), None)


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
