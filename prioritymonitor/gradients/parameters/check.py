"""What engines check: that a model can be measured, and that samples add up to the whole."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from ...capture import private
from ...capture.hooks import Guard
from ...capture.parameters import GradientTotals, layer_errors, layer_of
from ...capture.rerun import is_autocast, is_compiled
from ...errors import ArgumentValueError
from .engine import TrainedPass

_MOST_NAMED = 4
"""Layers named in a message."""


def refuse_batch_norm(model: nn.Module, engine: str) -> None:
    """Raises if a layer mixes the samples of a batch, so that none has a gradient of its own.

    Raises:
        ArgumentValueError: Naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, private.BATCH_NORMS) and module.training:
            raise ArgumentValueError(
                f'got engine="{engine}" and {name or "a model"} ({type(module).__name__}), which '
                "in training normalises each sample by its whole batch, so that no sample has a "
                "gradient of its own; use GroupNorm or LayerNorm instead, put the layer into "
                'eval(), or measure with scope="head"'
            )


def refuse_compiled(model: nn.Module, engine: str) -> None:
    """Raises if the model is compiled.

    Raises:
        ArgumentValueError: Saying what to do.
    """
    if is_compiled(model):
        raise ArgumentValueError(
            f'got engine="{engine}" and a compiled model, whose layers can\'t be seen; use '
            'engine="func", or make the monitor with a model that is not compiled'
        )


def largest_error(*, is_half: bool, device: torch.device) -> float:
    """Largest relative difference between two sums of the same gradients that rounding explains.

    Args:
        is_half: Whether the forward pass ran in half precision, if only in part.
        device: Where it ran.
    """
    if is_half:
        return 5e-2
    has_tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return 1e-2 if device.type == "cuda" and has_tf32 else 1e-3


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
        self._is_shared = False
        """True where one backward pass goes through several forward passes."""
        self._is_over = False
        self._reasons: list[str] = []

    def forward_done(self) -> None:
        """A forward pass is over, and with it the backward passes before it."""
        self._is_autocast = is_autocast(next(self._model.parameters()).device.type)
        self._totals.forward_done()

    def expect(self, parameters: dict[str, nn.Parameter], trained: TrainedPass) -> None:
        """A backward pass has begun."""
        if not self._is_over and len(trained.gradient):
            # accelerate turns half-precision logits into float32 before anyone sees them.
            is_patched = private.is_patched_by_accelerate(self._model)
            self._largest_error = largest_error(
                is_half=self._is_autocast or is_patched or trained.gradient.element_size() < 4,
                device=trained.gradient.device,
            )
            self._is_shared |= not self._totals.expect(parameters, trained.strength)

    def conclude(self, sums: dict[str, tuple[Tensor, Tensor]]) -> None:
        """The backward passes of the step are over; compare, if it is the first one.

        Args:
            sums: Clean and noisy sums by parameter; one that is absent had no gradient.
        """
        totals, is_shared = self._totals.totals, self._is_shared
        self._is_shared = False
        if self._is_over or not totals or is_shared:
            self._totals.clear()
            return
        nothing = {
            name: (torch.zeros_like(total), torch.zeros_like(total))
            for name, total in totals.items()
        }
        early = [name for name in self._with_gradient() if name in sums and name not in totals]
        if early:
            self.leave_out(
                early, "their gradient came before that of the logits, from another loss"
            )
        errors = layer_errors(nothing | sums, totals)
        for layer, (off, size) in errors.items():
            if off > self._largest_error * size:
                own = [name for name in nothing | sums if layer_of(name) == layer]
                self.leave_out(
                    own,
                    f"the gradients of {layer or 'the model itself'} by sample differ by "
                    f"{off / size if size else float('inf'):.0%} from that of the batch when "
                    "added up",
                )
        # A layer without any gradient, as below a head that begins with zeros, is yet to be seen.
        self._is_over = all(size > 0 for _, size in errors.values())
        self._totals.clear()

    def _with_gradient(self) -> list[str]:
        named = self._model.named_parameters()
        return [n for n, p in named if p.grad is not None and bool(p.grad.detach().any())]

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
