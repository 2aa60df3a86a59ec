"""What an engine is: per-sample gradients of all parameters, added up by group.

Three engines give the same record, `GroupGradients`, in different ways: `closed_form` from what the
backward pass brings to each layer, `func` by `torch.func`, `opacus` from the gradients that Opacus'
hooks leave behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ...capture.hooks import Guard
from ...records import GroupGradients


@dataclass
class TrainedPass:
    """A forward pass of the model, in a step that is measured, whose backward pass has begun."""

    args: tuple[Any, ...]
    """What the model was called with."""
    kwargs: dict[str, Any]
    logits_at: int
    """Which of `logits_in(output)` the logits are."""
    gradient: Tensor
    """What reached the logits, in the shape and type that the model gave them, `[B, ...]`."""
    strength: Tensor
    """Factor s between the gradients of the backward pass and those of the samples' own losses,
    scalar: reduction, accumulation divisor and scale of mixed precision. `gradient / s` is
    `d l_i / d z_i`."""
    noisy_weight: Tensor
    """How noisy each label is taken to be, `[B]`, in [0, 1]."""
    seen: object = None
    """What the engine's `forward_done` returned for this pass."""


class Engine(Protocol):
    """Per-sample gradients of the parameters of a model.

    Calls come in the order of a training step: for each micro-batch `forward_done`, then
    `backward_began`; after all of them `step_begins` before the optimizer changes the parameters
    and `collect` after it. Only steps that are measured are reported; a pass that is never trained
    on is followed by another `forward_done` or by `collect`.
    """

    def forward_done(self, output: Any, samples: int) -> object:
        """The model's forward pass is over.

        Args:
            output: What the model gave.
            samples: Number of samples, B.

        Returns:
            What the engine wants to get back as `TrainedPass.seen`.
        """

    def backward_began(self, trained: TrainedPass) -> None:
        """The gradient of the logits has arrived; those of the parameters are still to come."""

    def step_begins(self) -> None:
        """The backward passes of the step are over; parameters are still those of its passes."""

    def collect(self) -> GroupGradients | None:
        """What was measured since the last step; None if nothing was. Starts the next one."""

    def discard(self) -> None:
        """Forget what was measured since the last step: its gradients were reset without a step."""

    def close(self) -> None:
        """Leave the model as it was found."""


class MakeEngine(Protocol):
    """An engine's constructor."""

    def __call__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        is_measured: Callable[[], bool],
        guard: Guard,
        on_problem: Callable[[str], None],
    ) -> Engine:
        """The engine, attached to the model."""
