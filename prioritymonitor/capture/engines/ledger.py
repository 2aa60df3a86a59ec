"""What was added up in a step, parameter by parameter, and which parameters can't be."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...records import GroupGradients
from ..parameters import GradientTotals, failing_layers
from .calls import Frame
from .uses import Use, sums_and_square

_LARGEST_ERROR, _LARGEST_HALF_ERROR = 1e-3, 5e-2
"""Relative difference of two sums of the same gradients that rounding explains."""

_MOST_NAMED = 8
"""Parameters named in a message."""


class Ledger:
    """Sums by group of the samples of a step.

    Args:
        totals: What the backward passes add to each parameter's gradient.
        on_problem: Gets a sentence on what can't be measured, once for each layer.
    """

    def __init__(self, totals: GradientTotals, on_problem: Callable[[str], None]) -> None:
        self._totals = totals
        self._on_problem = on_problem
        self._noisy: dict[str, Tensor] = {}
        self._clean: dict[str, Tensor] = {}
        self._left_out: dict[str, str] = {}
        self._untold: dict[str, str] = {}
        self._is_checked = False

    def wants(self, name: str | None) -> bool:
        """Whether a parameter is to be measured."""
        return name is not None and name not in self._left_out

    def add(self, frame: Frame, name: str, uses: list[Use], *, is_early: bool) -> None:
        """Add what the samples of a forward pass bring to a parameter.

        The clean sum is what the noisy one leaves of the backward pass's own; where that is yet to
        be checked, or its gradient may have gone by unseen, it is added up too.
        """
        assert frame.weights is not None
        has_both = is_early or not self._is_checked
        sums, square = sums_and_square(uses, frame.weights if has_both else frame.weights[:1])
        frame.square[name] = square
        for table, part in zip((self._noisy, self._clean), sums, strict=False):
            table[name] = table[name].add_(part) if name in table else part

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Measure some parameters no more."""
        for name in names:
            if name not in self._left_out:
                self._left_out[name] = self._untold[name] = reason

    def collect(
        self, frames: list[Frame], parameters: dict[str, nn.Parameter]
    ) -> GroupGradients | None:
        """The record of a step.

        Args:
            frames: The forward passes that were trained on, in their order.
            parameters: What the optimizer trains.
        """
        if not frames:
            return None
        if not self._is_checked:
            self._check(any(frame.is_half for frame in frames))
        unseen = [name for name in self._totals.totals if name not in self._noisy]
        self.leave_out(unseen, "no layer that can be measured was seen to use it")
        sums = {name: self._groups(name) for name in self._noisy if self.wants(name)}
        elements = {name: parameter.numel() for name, parameter in parameters.items()}
        missing = sum(elements.get(name, 0) for name in self._left_out)
        coverage = 1 - missing / max(sum(elements.values()), 1)
        self._tell(coverage)
        noisy = [frame.noisy_weight for frame in frames if frame.noisy_weight is not None]
        return GroupGradients(
            sums=sums,
            square=torch.cat([self._square(frame) for frame in frames]),
            noisy_weight=torch.cat(noisy),
            coverage=coverage,
        )

    def _groups(self, name: str) -> tuple[Tensor, Tensor]:
        noisy, total = self._noisy[name], self._totals.totals.get(name)
        if total is None:
            return self._clean[name], noisy
        return total.to(noisy.dtype).sub_(noisy), noisy

    def _square(self, frame: Frame) -> Tensor:
        assert frame.noisy_weight is not None
        assert frame.strength is not None
        squares = [square for name, square in frame.square.items() if self.wants(name)]
        if not squares:
            return torch.zeros_like(frame.noisy_weight)
        return torch.stack(squares).sum(0) / frame.strength.square()

    def _check(self, is_half: bool) -> None:
        """Leave out layers whose samples don't add up to what the backward pass brought."""
        sums = {n: (clean, self._noisy[n]) for n, clean in self._clean.items() if self.wants(n)}
        totals = {name: self._totals.totals.get(name) for name in sums}
        known = {name: total for name, total in totals.items() if total is not None}
        if not all(bool(total.isfinite().all()) for total in known.values()):
            return  # an overflow says nothing; the next measured step is checked instead
        self._is_checked = True
        sums = {name: sums[name] for name in known}
        largest = _LARGEST_HALF_ERROR if is_half else _LARGEST_ERROR
        for layer, error in failing_layers(sums, known, largest).items():
            names = [name for name in sums if name.rpartition(".")[0] == layer]
            self.leave_out(
                names,
                f"its samples' gradients miss the gradient of the batch by {error:.1%}; something "
                "else than the samples' losses has a part in it, or the layer computes otherwise "
                "than it seems",
            )

    def _tell(self, coverage: float) -> None:
        untold, self._untold = self._untold, {}
        by_reason: dict[str, list[str]] = {}
        for name, reason in untold.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            listed = ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")
            self._on_problem(f"not measured, {reason}: {listed} (coverage {coverage:.3f})")

    def clear(self) -> None:
        """Forget the sums of the step."""
        self._noisy, self._clean = {}, {}
