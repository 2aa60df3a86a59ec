"""Pure: the clean priority so far, in; a decision with its reason, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ArgumentTypeError, ArgumentValueError
from .records import Decision, StopReason


@dataclass(frozen=True)
class StopRule:
    """When to stop, and which epoch's weights to hand back. All values count epochs.

    At the end of epoch t the clean priority of every epoch so far is computed with today's view of
    which labels are noisy. Its maximum, epoch b, is where noisy gradients began to dominate. The
    advice is to stop once `t − b ≥ patience`, and to use the averaged weights of epoch
    `b + average_lag`.

    Args:
        patience: Epochs that must have passed since the peak, at least 1.
        min_epochs: No stop before this many epochs, at least 1.
        membership_delay: How many of the latest epochs are left out when labels are judged, at
            least 0. Margins gathered after memorisation began make noisy labels look clean.
        average_lag: A running average trails the weights by about this many epochs, at least 0.

    Raises:
        ArgumentTypeError: A value is not an int.
        ArgumentValueError: A value is below its minimum.

    Example:
        >>> StopRule(patience=10).patience
        10
    """

    patience: int = 7
    min_epochs: int = 1
    membership_delay: int = 3
    average_lag: int = 2

    def __post_init__(self) -> None:
        for name, least in (
            ("patience", 1),
            ("min_epochs", 1),
            ("membership_delay", 0),
            ("average_lag", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ArgumentTypeError(f"got StopRule({name}={value!r}); pass a whole number")
            if value < least:
                raise ArgumentValueError(f"got StopRule({name}={value}); it must be ≥ {least}")


def decide(
    priority: Sequence[float], rule: StopRule | None, average_lag: int, learns: bool = True
) -> Decision:
    """Judge the curve of the clean priority.

    Args:
        priority: Its value after each epoch, the first at epoch 1; not empty.
        rule: When to stop; None: never.
        average_lag: Epochs by which the kept weights trail the raw ones.
        learns: False while nothing has been learnt, so that no label can be judged.
    """
    now = len(priority)
    peak = max(range(now), key=lambda epoch: priority[epoch]) + 1
    best = min(peak + average_lag, now)
    since = now - peak
    gone_by = f"the clean priority peaked at epoch {peak} of {now}"
    if rule is None:
        return Decision(False, StopReason.NO_RULE, now, best, f"measuring only: {gone_by}")
    if now < rule.min_epochs:
        message = f"too early to judge: epoch {now} of at least {rule.min_epochs}"
        return Decision(False, StopReason.TOO_EARLY, now, best, message)
    if not learns:
        message = "too early to judge: most labels still look wrong, so little has been learnt"
        return Decision(False, StopReason.TOO_EARLY, now, best, message)
    if since < rule.patience or not priority[peak - 1] > priority[-1]:
        message = f"clean labels still dominate: {gone_by} (patience {rule.patience})"
        return Decision(False, StopReason.CLEAN_DOMINATES, now, best, message)
    message = (
        f"noisy labels took over at epoch {peak}: over the {since} epochs since then the updates "
        "have fitted noisy labels more than clean ones; "
        f"restore_best() gives the weights of epoch {best}"
    )
    return Decision(True, StopReason.NOISY_DOMINATES, now, best, message)
