"""The gradient of logits, told of where it arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import private
from .hooks import Guard, Hook
from .passes import Pass

Arrived = Callable[[Pass, Tensor], None]
"""Gets a pass, and the gradient of its logits."""


def await_gradient(one: Pass, logits: Tensor, arrived: Arrived, guard: Guard) -> None:
    """Have it told when the gradient of a pass's logits is there."""
    logits.register_hook(Hook(lambda gradient: arrived(one, gradient.detach()), guard))


def await_gradient_before_copies(
    one: Pass, node: Any, output: int, arrived: Arrived, guard: Guard
) -> None:
    """Have it told where a loss inside the model is of what was copied: none reaches the copy.

    Args:
        one: The pass.
        node: The operation whose output was copied.
        output: Which of its outputs.
        arrived: Called unless the gradient has come in this backward pass.
        guard: Gets any exception of ours.
    """

    def called(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[output]
        if gradient is not None and one.backward != private.backward_pass():
            arrived(one, gradient.detach())

    node.register_prehook(Hook(called, guard))
