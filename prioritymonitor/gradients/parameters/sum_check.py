"""The engines' self-check: samples' gradients add up to what the backward pass brought."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...capture import private
from ...capture.hooks import Guard
from ...capture.parameters import GradientTotals, layer_errors, layer_of
from ...capture.rerun import is_autocast
from .engine import TrainedPass

_STEPS_TO_CHECK = 64
"""Measured steps after which every layer is checked again."""

_MOST_NAMED = 8
"""Parameters, and reasons, named in a message."""


class SumCheck:
    """Compares, leaves out the layers that don't add up, and tells.

    A layer is checked once it has a gradient, and again now and then: what moves it besides the
    samples' losses may begin later, or grow.

    Args:
        model: The model of the loop.
        remedy: What the user can do about a parameter that is left out.
        guard: What all hooks of the monitor share.
        on_problem: Gets what is left out and why, in one text.
        on_total: Called with the name of a parameter once a backward pass has given its gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        remedy: str,
        guard: Guard,
        on_problem: Callable[[str], None],
        on_total: Callable[[str], None] | None = None,
    ) -> None:
        self.is_shared = False
        """True in a step in which one backward pass goes through several forward passes; what it
        brings is not known then."""
        self._model = model
        self._remedy = remedy
        self._on_problem = on_problem
        self._totals = GradientTotals(guard, on_total)
        self._is_autocast = False
        self._tolerance = 0.0
        self._checked: set[str] = set()
        self._steps = 0
        self._left_out: set[str] = set()
        self._untold: dict[str, list[str]] = {}

    @property
    def totals(self) -> dict[str, Tensor]:
        """What the backward passes of the step brought to each parameter."""
        return self._totals.totals

    def wants(self, name: str) -> bool:
        """Whether a parameter is to be measured."""
        return name not in self._left_out

    def is_checked(self, name: str) -> bool:
        """Whether the sums of a parameter have been found right."""
        return name in self._checked

    def _is_due(self, names: Iterable[str]) -> bool:
        return any(self.wants(name) and name not in self._checked for name in names)

    def forward_done(self) -> None:
        """A forward pass is over, and with it the backward passes before it."""
        self._is_autocast = is_autocast(next(self._model.parameters()).device.type)
        self._totals.forward_done()

    def expect(
        self, parameters: dict[str, nn.Parameter], trained: TrainedPass, *, is_half: bool = False
    ) -> None:
        """A backward pass has begun.

        Args:
            parameters: All that are trained.
            trained: The pass.
            is_half: Whether a layer gave half precision.
        """
        if not len(trained.gradient):
            return
        # accelerate turns half-precision logits into float32 before anyone sees them.
        is_half |= self._is_autocast or private.is_patched_by_accelerate(self._model)
        is_half |= trained.gradient.element_size() < 4
        tolerance = _largest_error(trained.gradient.device, is_half=is_half)
        self._tolerance = max(self._tolerance, tolerance)
        self.is_shared |= not self._totals.expect(parameters, trained.strength)

    def expect_if_due(self, parameters: dict[str, nn.Parameter], trained: TrainedPass) -> None:
        """The same, where any of the parameters is to be checked in this step."""
        if self._is_due(parameters):
            self.expect(parameters, trained)

    def compare(self, sums: dict[str, tuple[Tensor, Tensor]]) -> None:
        """The backward passes of the step are over.

        Args:
            sums: Clean and noisy sums by parameter.
        """
        totals = self.totals
        if totals and not self.is_shared:
            self._compare_layers({n: sums[n] for n in sums if n in totals and self._is_due([n])})
            unseen = [n for n in totals if n not in sums and _is_any(totals[n])]
            self.leave_out(unseen, "no layer that can be measured was seen to use it")
        self._steps += 1
        if self._steps % _STEPS_TO_CHECK == 0:
            self._checked.clear()

    def leave_out_early(self, names: Iterable[str]) -> None:
        """Leave out parameters that got a gradient before the logits did, from another loss.

        For engines that know of no other loss.

        Args:
            names: Parameters whose samples' gradients were added up.
        """
        if not self.totals or self.is_shared:
            return
        due = {n for n in names if n not in self.totals and n not in self._checked}
        if due:
            named = dict(self._model.named_parameters())
            grads = {name: grad for name in due if (grad := named[name].grad) is not None}
            early = [name for name, grad in grads.items() if _is_any(grad)]
            self.leave_out(early, "its gradient came before that of the logits, from another loss")

    def _compare_layers(self, sums: dict[str, tuple[Tensor, Tensor]]) -> None:
        for layer, (off, size) in layer_errors(sums, self.totals).items():
            names = [name for name in sums if layer_of(name) == layer]
            if off > self._tolerance * size:
                error = off / size if size else math.inf
                self.leave_out(
                    names,
                    f"the gradients of its samples differ by {error:.1%} from that of the batch "
                    "when added up; something else than the samples' losses has a part in it, or "
                    "the layer computes otherwise than it seems",
                )
            elif 0 < size < math.inf:  # a layer without any gradient is yet to be seen
                self._checked.update(names)

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Measure some parameters no more, and say so once for each."""
        new = [name for name in names if self.wants(name)]
        if new:
            self._left_out.update(new)
            self._untold.setdefault(reason, []).extend(new)

    def tell(self, parameters: dict[str, nn.Parameter]) -> float:
        """Tell the user what was left out since the last time.

        Args:
            parameters: All that are trained.

        Returns:
            The share of them that is measured, in [0, 1].
        """
        elements = {name: parameter.numel() for name, parameter in parameters.items()}
        measured = sum(size for name, size in elements.items() if self.wants(name))
        coverage = measured / max(sum(elements.values()), 1)
        untold, self._untold = self._untold, {}
        if untold:
            reasons = [f"{_listed(names)}: {reason}" for reason, names in untold.items()]
            listed = _listed(reasons, "; ")
            self._on_problem(f"not measured: {listed} (coverage {coverage:.3f}). {self._remedy}")
        return coverage

    def clear(self) -> None:
        """Forget the step; what was found of the layers stays."""
        self._totals.clear()
        self.is_shared, self._tolerance = False, 0.0


def _is_any(tensor: Tensor) -> bool:
    return bool(tensor.any())


def _listed(names: list[str], separator: str = ", ") -> str:
    more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return separator.join(names[:_MOST_NAMED] + more)


def _largest_error(device: torch.device, *, is_half: bool) -> float:
    """Largest relative difference between two sums of the same gradients that rounding explains."""
    if is_half:
        return 5e-2
    has_tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return 1e-2 if device.type == "cuda" and has_tf32 else 1e-3
