"""Pure: the clean priority so far, in; a decision with its reason, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ArgumentTypeError, ArgumentValueError
from ..records import Decision, StopReason

_ALIKE = 0.5
"""Part of the tolerance by which two values of the priority must differ to be told apart."""


@dataclass(frozen=True)
class StopRule:
    """When to stop, and which epoch's weights to hand back.

    The maximum of the clean priority, epoch b, is where noisy gradients began to dominate. The
    advice is to stop once the priority has been below that, by `tolerance` of the loss that the
    training began with, for `patience` epochs running. The weights to use are the averaged ones
    of `average_lag` epochs after the last epoch whose priority can't be told from the maximum: it
    is within half of that fall.

    Args:
        patience: Epochs for which the priority must have been lower, at least 1.
        min_epochs: No stop before this many epochs, at least 1.
        tolerance: Share of the initial loss that the priority must have lost, in [0, 1).
        average_lag: A running average trails the weights by about this many epochs, at least 0.

    Raises:
        ArgumentTypeError: A value is not a number, or one that counts epochs not an int.
        ArgumentValueError: A value is out of its range.

    Example:
        >>> StopRule(patience=10).patience
        10
    """

    patience: int = 3
    min_epochs: int = 1
    tolerance: float = 0.01
    average_lag: int = 1

    def __post_init__(self) -> None:
        for name, least in (("patience", 1), ("min_epochs", 1), ("average_lag", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ArgumentTypeError(f"got StopRule({name}={value!r}); pass a whole number")
            if value < least:
                raise ArgumentValueError(f"got StopRule({name}={value}); it must be ≥ {least}")
        tolerance = self.tolerance
        if not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool):
            raise ArgumentTypeError(f"got StopRule(tolerance={tolerance!r}); pass a number")
        if not 0 <= tolerance < 1:
            raise ArgumentValueError(
                f"got StopRule(tolerance={tolerance}); it is a share of the initial loss, from 0 "
                "to less than 1, and 0.01 by default"
            )


def decide(
    priority: Sequence[float],
    rule: StopRule | None,
    average_lag: int,
    initial_loss: float,
    first: int | None = 1,
) -> Decision:
    """Judge the curve of the clean priority.

    Args:
        priority: Its value after each epoch, the first at epoch 1; not empty.
        rule: When to stop; None: never.
        average_lag: Epochs by which the kept weights trail the raw ones.
        initial_loss: Mean loss that the training began with; without a positive one any fall that
            lasts is enough.
        first: The first epoch after which labels could be judged; None: none yet.
    """
    now = len(priority)
    tolerance = (rule or StopRule()).tolerance * (initial_loss if initial_loss > 0 else 0.0)
    peak = peak_epoch(priority, first)
    top = priority[peak - 1]
    alike = [e for e in range(peak, now + 1) if priority[e - 1] >= top - _ALIKE * tolerance]
    best = min(alike[-1] + average_lag, now)
    gone_by = f"the clean priority peaked at epoch {peak} of {now}"
    if rule is None:
        return Decision(False, StopReason.NO_RULE, now, best, f"measuring only: {gone_by}")
    if now < rule.min_epochs:
        message = f"too early to judge: epoch {now} of at least {rule.min_epochs}"
        return Decision(False, StopReason.TOO_EARLY, now, best, message)
    if first is None:
        message = "too early to judge: most labels still look wrong, so little has been learnt"
        return Decision(False, StopReason.TOO_EARLY, now, best, message)
    fall = top - max(priority[-rule.patience :])
    if not fall > 0 or fall < tolerance:
        message = (
            f"clean labels still dominate: {gone_by}; it has fallen by {top - priority[-1]:.3f} "
            f"since, and a stop takes {tolerance:.3f} in {_epochs(rule.patience)} running"
        )
        return Decision(False, StopReason.CLEAN_DOMINATES, now, best, message)
    message = (
        f"noisy labels took over at epoch {peak}: over the {_epochs(now - peak)} since then the "
        "updates have fitted noisy labels more than clean ones; "
        f"restore_best() gives the weights of epoch {best}"
    )
    return Decision(True, StopReason.NOISY_DOMINATES, now, best, message)


def peak_epoch(priority: Sequence[float], first: int | None) -> int:
    """The epoch of the maximum from `first` on; the latest one for `first=None`."""
    return max(range(first or len(priority), len(priority) + 1), key=lambda e: priority[e - 1])


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' if count > 1 else ''}"
