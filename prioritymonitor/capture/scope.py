"""What is measured of a step's gradients: the head alone, or all parameters."""

from __future__ import annotations

from typing import Any, Protocol

from ..records import GroupGradients
from .passes import Forward, Pass


class Scope(Protocol):
    """Told of everything that happens in a training step, in its order."""

    is_of_all: bool
    """True where it measures all parameters; each pass is then observed in its backward pass."""

    def forward_done(self, forward: Forward, call: Any, output: Any) -> None:
        """The model's forward pass is over.

        Args:
            forward: The pass.
            call: What the model was called with, positional arguments and others.
            output: What it gave.
        """

    def await_gradient(self, one: Pass, node: Any, output: int) -> None:
        """Logits wait for their gradient.

        Args:
            one: The pass.
            node: The operation that gave the model's logits, which the user may have let go.
            output: Which of its outputs they are.
        """

    def backward_begins(self, forward: Forward) -> None:
        """The gradient of some logits has arrived, whether the step is measured or not."""

    def step_begins(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """The optimizer is about to change the parameters.

        Args:
            args: Of its `step`, the optimizer itself first.
            kwargs: Of its `step`.

        Returns:
            What to call it with instead; None for the same.
        """

    def step_done(self, *, has_passes: bool) -> GroupGradients | None:
        """What samples and optimizer did to the parameters; None if it is not known.

        Args:
            has_passes: Whether the step was measured and had any.
        """

    def discard(self) -> None:
        """Gradients were reset without a step."""

    def give_step_up(self) -> None:
        """Part of what the step does went by unseen; measure again from the next one on."""

    def turn_off(self) -> None:
        """Measure nothing from the next step on."""

    def close(self) -> None:
        """Leave the model as it was found."""


class HeadScope:
    """The head alone, whose gradients need no more than what every pass shows."""

    is_of_all = False

    def forward_done(self, forward: Forward, call: Any, output: Any) -> None:
        """See `Scope`."""

    def await_gradient(self, one: Pass, node: Any, output: int) -> None:
        """See `Scope`."""

    def backward_begins(self, forward: Forward) -> None:
        """See `Scope`."""

    def step_begins(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """See `Scope`."""
        return None

    def step_done(self, *, has_passes: bool) -> GroupGradients | None:
        """See `Scope`."""
        return None

    def discard(self) -> None:
        """See `Scope`."""

    def give_step_up(self) -> None:
        """See `Scope`."""

    def turn_off(self) -> None:
        """See `Scope`."""

    def close(self) -> None:
        """See `Scope`."""
