"""What engines check: that a model can be measured, and that samples add up to the whole."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import ArgumentValueError
from ..hooks import Guard
from ..parameters import GradientTotals, failing_layers
from .engine import TrainedPass

_MOST_NAMED = 4
"""Layers named in a message."""


def refuse_batch_norm(model: nn.Module, engine: str) -> None:
    """Raises if a layer mixes the samples of a batch, so that none has a gradient of its own.

    Raises:
        ArgumentValueError: Naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ArgumentValueError(
                f'got engine="{engine}" and {name or "a model"} ({type(module).__name__}), which '
                "in training normalises each sample by its whole batch, so that no sample has a "
                "gradient of its own; use GroupNorm or LayerNorm instead, put the layer into "
                'eval(), or measure with scope="head"'
            )


def is_compiled(model: nn.Module) -> bool:
    """True if part of it was compiled, so that hooks inside may not fire, or not be allowed."""
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def largest_error(model: nn.Module, gradient: Tensor, is_autocast: bool = False) -> float:
    """Largest relative difference between two sums of the same gradients that rounding explains.

    Args:
        model: The model of the loop.
        gradient: What reached its logits.
        is_autocast: Whether it was called under autocast.
    """
    # accelerate turns half-precision logits into float32 before anyone sees them, and leaves this.
    is_patched = hasattr(model, "_original_forward")
    if is_autocast or is_patched or gradient.element_size() < 4:
        return 5e-2
    has_tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return 1e-2 if gradient.is_cuda and gradient.dtype == torch.float32 and has_tf32 else 1e-3


def _is_autocast(device_type: str) -> bool:
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # torch before 2.4
        return torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled()


class SumCheck:
    """Compares the first measured step with what its backward passes did.

    Samples' gradients that don't add up to the gradient of the batch are wrong, whatever the
    reason; it is found once, in the first step, and the parameter is left out from then on.

    Args:
        model: The model of the loop.
        remedy: What the user can do about a parameter that is left out.
        guard: What all hooks of the monitor share.
        on_problem: Called with a text for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        remedy: str,
        guard: Guard,
        on_problem: Callable[[str], None],
    ) -> None:
        self.left_out: set[str] = set()
        """Parameters that can't be measured."""
        self._model = model
        self._remedy = remedy
        self._on_problem = on_problem
        self._totals = GradientTotals(guard)
        self._largest_error = 0.0
        self._is_autocast = False
        self._is_over = False
        self._reasons: list[str] = []

    def forward_done(self) -> None:
        """A forward pass is over, and with it the backward passes before it."""
        self._is_autocast = _is_autocast(next(self._model.parameters()).device.type)
        self._totals.forward_done()

    def expect(self, parameters: dict[str, nn.Parameter], trained: TrainedPass) -> None:
        """A backward pass has begun."""
        if not self._is_over and len(trained.gradient):
            self._largest_error = largest_error(self._model, trained.gradient, self._is_autocast)
            self._totals.expect(parameters, trained.strength)

    def conclude(self, sums: dict[str, tuple[Tensor, Tensor]]) -> None:
        """The backward passes of the step are over; compare, if it is the first one.

        Args:
            sums: Clean and noisy sums by parameter; one that is absent had no gradient.
        """
        totals = self._totals.totals
        if self._is_over or not totals:
            return
        nothing = {
            name: (torch.zeros_like(total), torch.zeros_like(total))
            for name, total in totals.items()
        }
        failing = failing_layers(nothing | sums, totals, self._largest_error)
        for layer, error in failing.items():
            own = [name for name in nothing | sums if name.rpartition(".")[0] == layer]
            self.leave_out(
                own,
                f"the gradients of {layer or 'the model itself'} by sample differ by {error:.0%} "
                "from that of the batch when added up",
            )
        self._is_over = True
        self._totals.clear()

    def leave_out(self, names: Collection[str], reason: str) -> None:
        """Measure these parameters no more, and say so once for each."""
        new = [name for name in names if name not in self.left_out]
        if not new:
            return
        self.left_out.update(new)
        self._reasons.append(f"{', '.join(new)}: {reason}")

    def report(self) -> None:
        """Tell the user what was left out since the last report, in one text."""
        reasons, self._reasons = self._reasons, []
        if reasons:
            more = f"; and {len(reasons) - _MOST_NAMED} more" if len(reasons) > _MOST_NAMED else ""
            listed = "; ".join(reasons[:_MOST_NAMED])
            self._on_problem(f"not measured: {listed}{more}. {self._remedy}")

    def discard(self) -> None:
        """The step came to nothing; the next one is the first."""
        self._totals.clear()
