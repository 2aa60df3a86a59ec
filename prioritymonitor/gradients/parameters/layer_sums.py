"""Sums by group of the samples of a step, as the calls of its layers bring them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...records import GroupGradients
from ..factors import Factors, sums_and_square
from .calls import ModelPass
from .sum_check import SumCheck


class LayerSums:
    """Clean and noisy sums by parameter.

    The clean sum is what the noisy one leaves of the backward pass's own; where that is yet to be
    checked, or is not all theirs, it is added up too.

    Args:
        check: Knows what the backward pass brought, and which parameters can't be measured.
    """

    def __init__(self, check: SumCheck) -> None:
        self.signed: dict[str, Tensor] = {}
        """`sum_i s_i g_i` of parameters of layers whose shapes may mislead."""
        self.hooked: set[str] = set()
        """Parameters with hooks of the user's on their gradients."""
        self._check = check
        self._noisy: dict[str, Tensor] = {}
        self._clean: dict[str, Tensor] = {}
        self._noisy_alone: set[str] = set()

    def add(
        self, model_pass: ModelPass, name: str, factors: list[Factors], *, is_early: bool
    ) -> None:
        """Add what the samples of a pass bring to a parameter.

        Args:
            model_pass: The pass, after the gradient of its logits has arrived.
            name: Of the parameter.
            factors: From all calls that use it.
            is_early: Whether its gradient came before that of the logits.
        """
        assert model_pass.weights is not None
        if name in model_pass.square:
            reason = "its gradient came in several parts; use_reentrant=False helps"
            self._check.leave_out([name], reason)
            return
        check = self._check
        has_both = is_early or not check.is_checked(name) or name in self.hooked or check.is_shared
        kinds = 3 if name in model_pass.ambiguous else 1 + has_both
        sums, square = sums_and_square(factors, model_pass.weights[:kinds])
        model_pass.square[name] = square
        if kinds == 1:
            self._noisy_alone.add(name)
        for table, part in zip((self._noisy, self._clean, self.signed), sums, strict=False):
            table[name] = table[name].add_(part) if name in table else part

    def group_gradients(
        self, passes: list[ModelPass], parameters: dict[str, nn.Parameter]
    ) -> GroupGradients | None:
        """The record of the step; None if nothing was measured.

        Args:
            passes: Those that were trained on, in their order.
            parameters: All that the optimizer trains.
        """
        check = self._check
        if not passes or (self._noisy_alone and check.is_shared):
            return None
        lost = [name for name in self._noisy_alone if name not in check.totals]
        check.leave_out(lost, "its gradient was not seen to arrive")
        sums = {name: self._groups(name) for name in self._noisy if check.wants(name)}
        check.compare(sums)
        return GroupGradients(
            sums={name: both for name, both in sums.items() if check.wants(name)},
            square=torch.cat([self._square(model_pass) for model_pass in passes]),
            noisy_weight=torch.cat([w for one in passes if (w := one.noisy_weight) is not None]),
            coverage=check.tell(parameters),
        )

    def _groups(self, name: str) -> tuple[Tensor, Tensor]:
        noisy = self._noisy[name]
        if name not in self._noisy_alone:
            return self._clean[name], noisy
        return self._check.totals[name].to(noisy.dtype).sub_(noisy), noisy

    def _square(self, model_pass: ModelPass) -> Tensor:
        assert model_pass.noisy_weight is not None
        assert model_pass.strength is not None
        squares = [own for name, own in model_pass.square.items() if self._check.wants(name)]
        if not squares:
            return torch.zeros_like(model_pass.noisy_weight)
        return torch.stack(squares).sum(0) / model_pass.strength.square()

    def clear(self) -> None:
        """Forget the step."""
        self._noisy, self._clean, self.signed, self._noisy_alone = {}, {}, {}, set()
