"""What was added up in a step, parameter by parameter, and which parameters can't be."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ...capture.parameters import GradientTotals, layer_errors, layer_of
from ...records import GroupGradients
from .calls import ModelPass
from .check import largest_error
from ..factors import Factors, sums_and_square

_STEPS_TO_CHECK = 64
"""Measured steps after which every layer is checked again."""

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
        self.signed: dict[str, Tensor] = {}
        """`sum_i s_i g_i` of parameters of layers whose shapes may mislead."""
        self._halves: set[str] = set()
        self._checked: set[str] = set()
        self._steps = 0
        self._left_out: dict[str, str] = {}
        self._untold: dict[str, str] = {}
        self.has_totals = True
        """False in a step in which one backward pass goes through several forward passes."""
        self.meddled: set[str] = set()
        """Parameters with hooks of the user's on their gradients."""

    def wants(self, name: str | None) -> bool:
        """Whether a parameter is to be measured."""
        return name is not None and name not in self._left_out

    def add(self, frame: ModelPass, name: str, uses: list[Factors], *, is_early: bool) -> None:
        """Add what the samples of a forward pass bring to a parameter.

        The clean sum is what the noisy one leaves of the backward pass's own; where that is yet to
        be checked, or is not all theirs, it is added up too.
        """
        assert frame.weights is not None
        if name in frame.square:
            self.leave_out([name], "its uses came in several parts; use_reentrant=False helps")
            return
        has_both = is_early or name not in self._checked or name in self.meddled
        has_both |= not self.has_totals
        kinds = 1
        if name in frame.doubts:
            kinds = 3
        elif has_both:
            kinds = 2
        sums, square = sums_and_square(uses, frame.weights[:kinds])
        frame.square[name] = square
        if kinds == 1:
            self._halves.add(name)
        for table, part in zip((self._noisy, self._clean, self.signed), sums, strict=False):
            table[name] = table[name].add_(part) if name in table else part

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Measure some parameters no more."""
        for name in names:
            if name not in self._left_out:
                self._left_out[name] = self._untold[name] = reason

    def collect(
        self, frames: list[ModelPass], parameters: dict[str, nn.Parameter]
    ) -> GroupGradients | None:
        """The record of a step.

        Args:
            frames: The forward passes that were trained on, in their order.
            parameters: What the optimizer trains.
        """
        if not frames or (self._halves and not self.has_totals):
            return None
        if self.has_totals:
            self._check(frames)
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
        noisy = self._noisy[name]
        if name not in self._halves:
            return self._clean[name], noisy
        return self._totals.totals[name].to(noisy.dtype).sub_(noisy), noisy

    def _square(self, frame: ModelPass) -> Tensor:
        assert frame.noisy_weight is not None
        assert frame.strength is not None
        squares = [square for name, square in frame.square.items() if self.wants(name)]
        if not squares:
            return torch.zeros_like(frame.noisy_weight)
        return torch.stack(squares).sum(0) / frame.strength.square()

    def _check(self, frames: list[ModelPass]) -> None:
        """Leave out layers whose samples don't add up to what the backward pass brought.

        Each is checked once it has a gradient, and again now and then: what moves it besides the
        samples' losses may begin later, or grow.
        """
        totals = self._totals.totals
        lost = [name for name in self._halves if name not in totals]
        self.leave_out(lost, "its gradient was not seen to arrive")
        done = self._halves | self._checked
        new = [n for n in self._clean if self.wants(n) and n in totals and n not in done]
        if new and all(bool(totals[name].isfinite().all()) for name in new):
            self._compare(frames, {name: (self._clean[name], self._noisy[name]) for name in new})
        self._steps += 1
        if self._steps % _STEPS_TO_CHECK == 0:
            self._checked.clear()

    def _compare(self, frames: list[ModelPass], sums: dict[str, tuple[Tensor, Tensor]]) -> None:
        assert frames[0].noisy_weight is not None
        largest = largest_error(
            is_half=any(frame.is_half for frame in frames), device=frames[0].noisy_weight.device
        )
        for layer, (off, size) in layer_errors(sums, self._totals.totals).items():
            names = [name for name in sums if layer_of(name) == layer]
            if size > 0:
                self._checked.update(names)
            if off > largest * size:
                error = off / size if size else float("inf")
                self.leave_out(
                    names,
                    f"its samples' gradients miss the gradient of the batch by {error:.1%}; "
                    "something else than the samples' losses has a part in it, or the layer "
                    "computes otherwise than it seems",
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
        self._noisy, self._clean, self.signed, self._halves = {}, {}, {}, set()
        self.has_totals = True
