"""Gradients that came to nothing: they were reset before the optimizer made a step of them."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from . import private
from .hooks import Guard, Hook


class GradientResets:
    """Looks at the gradient of one trained parameter, which stands for all.

    A gradient scaler skips a step after an overflow, and a loop may drop a batch; then no hook of
    the optimizer is called, and the gradients are dropped or set to zero.

    Args:
        optimizer: The optimizer that the loop steps.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(self, optimizer: Optimizer, guard: Guard) -> None:
        self._optimizer = optimizer
        self._when_over = Hook(self._backward_is_over, guard)
        self._parameter: nn.Parameter | None = None
        # Not the tensor, nor a weak reference to it: either would keep torch from exchanging it,
        # as a conversion of the model does under `set_swap_module_params_on_conversion`.
        self._seen = (0, 0)

    def backward_began(self) -> None:
        """To be called inside a backward pass."""
        private.when_backward_is_over(self._when_over)

    def _backward_is_over(self) -> None:
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and not gradient.is_sparse:
                    self._parameter = parameter
                    self._seen = id(gradient), private.changes_of(gradient)
                    return

    def was_reset(self) -> bool:
        """Whether gradients were reset since the last backward pass that was watched.

        Waits for the device only if something else than a backward pass has changed them.
        """
        if self._parameter is None:
            return False
        gradient = self._parameter.grad
        if gradient is None:
            return True
        is_untouched = (id(gradient), private.changes_of(gradient)) == self._seen
        return not is_untouched and not bool(gradient.any())
