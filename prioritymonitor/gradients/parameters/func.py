"""Per-sample gradients by `torch.func`: the forward pass is run again for each sample, mapped.

It needs no knowledge of layers, and about two training passes more for a measured step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ...capture.hooks import Guard, ModuleHook
from ...capture.parameters import trained_parameters
from ...capture.rerun import (
    RandomState,
    inner_names,
    unchanged_randomness,
    unwrapped,
    without_trace,
)
from ...errors import ArgumentValueError, PriorityMonitorError, is_from_signal, may_pass
from ...records import GroupGradients
from .engine import TrainedPass
from .refusals import refuse_batch_norm
from .sample_function import SampleFunction, where_it_failed
from .sum_check import SumCheck
from .sums import GroupSums, full_precision

_MOST_HELD = 256 * 2**20
"""Bytes of per-sample gradients held at a time, unless one sample alone needs more."""

_REMEDY = (
    "a forward pass that is run again differs where its random numbers do, as with dropout in some "
    'attention layers; use engine="closed_form"'
)


def check_model(model: nn.Module) -> None:
    """Raises if the model can't be measured by `FuncEngine`.

    Raises:
        ArgumentValueError: Naming the layer and what to do.
    """
    refuse_batch_norm(model, "func")
    for name, module in model.named_modules():
        reason = ""
        if isinstance(module, nn.RReLU) and module.training:
            reason = "torch.func can't map it over samples"
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            if module.max_norm is not None:
                reason = "max_norm makes it change its weight in the forward pass"
            elif module.sparse:
                reason = "torch.func has no sparse gradients"
        if reason:
            raise ArgumentValueError(
                f'got engine="func" and {name or "a model"} ({type(module).__name__}): {reason}; '
                'use engine="closed_form"'
            )


class FuncEngine:
    """An `Engine` that differentiates the model as a function of each single sample.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that the loop steps.
        is_measured: Tells whether the current step is measured.
        guard: What all hooks of the monitor share.
        on_problem: Called with a text for the user.
        chunk_size: Samples whose gradients are held at a time; None: as many as fit in 256 MiB.
            Where the forward pass draws random numbers, it must take in a whole micro-batch, or
            they can't be repeated.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        is_measured: Callable[[], bool],
        guard: Guard,
        on_problem: Callable[[str], None],
        chunk_size: int | None = None,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._is_measured = is_measured
        self._on_problem = on_problem
        self._chunk_size = chunk_size
        self._is_mapped = True
        self._check = SumCheck(model, _REMEDY, guard, on_problem)
        self._passes: list[TrainedPass] = []
        self._sums = GroupSums()
        self._begun: RandomState | None = None
        self._attachments = guard.attachments
        begins = ModuleHook(self._pass_begins, guard)
        self._handle = guard.attach(model.register_forward_pre_hook, begins)

    def _pass_begins(self, module: nn.Module, args: Any) -> None:
        if self._is_measured() and torch.is_grad_enabled():
            self._begun = RandomState.now(self._device())

    def forward_done(self, output: Any, samples: int) -> RandomState | None:
        """Where the random numbers of this pass began."""
        self._check.forward_done()
        begun, self._begun = self._begun, None
        return begun

    def backward_began(self, trained: TrainedPass) -> None:
        """Keep the pass until it is known to be part of a step."""
        self._check.expect_if_due(self._parameters(), trained)
        args, kwargs = pytree.tree_map(_detached, (trained.args, trained.kwargs))
        if len(trained.gradient):
            self._passes.append(replace(trained, args=args, kwargs=kwargs))

    def step_begins(self) -> None:
        """Run each pass of the step again, sample by sample.

        Raises:
            PriorityMonitorError: Its random numbers can't be repeated, or an argument holds its
                samples in another dimension than the first.
        """
        passes, self._passes = self._passes, []
        measured = set(filter(self._check.wants, self._parameters()))
        if not passes or not measured:
            return
        try:
            for trained in passes:
                self._measure(trained, measured)
        except Exception:
            self.discard()
            raise

    def _measure(self, trained: TrainedPass, measured: set[str]) -> None:
        function, outer_names = self._sample_function(trained, measured)
        gradient, device = trained.gradient, self._device()
        gradient = full_precision(gradient)
        residual = gradient / trained.strength.to(gradient.dtype)
        size = self._chunk_size or _chunk_size(function.parameters)
        with unchanged_randomness(device), without_trace(function.module, device):
            for start in range(0, len(residual), size):
                part = slice(start, start + size)
                rows = self._gradients(function, residual, part, trained)
                named = {outer_names[name]: of_samples for name, of_samples in rows.items()}
                self._sums.add(named, trained.noisy_weight[part])

    def _sample_function(
        self, trained: TrainedPass, measured: set[str]
    ) -> tuple[SampleFunction, dict[str, str]]:
        """The function, and the names in the model of the loop for those in the module inside."""
        wanted = {name: p for name, p in self._parameters().items() if name in measured}
        names = inner_names(self._model, wanted)
        function = SampleFunction(
            unwrapped(self._model),
            {inner: wanted[name].detach() for inner, name in names.items()},
            trained.args,
            trained.kwargs,
            trained.logits_at,
        )
        return function, names

    def _gradients(
        self, function: SampleFunction, residual: Tensor, part: slice, trained: TrainedPass
    ) -> dict[str, Tensor]:
        begun = trained.seen if isinstance(trained.seen, RandomState) else None
        begun = begun or RandomState.now(self._device())
        is_whole = len(residual[part]) == len(residual)
        if self._is_mapped:
            begun.restore()
            try:
                rows = function.mapped(residual, part)
                _require_repeatable(begun, is_whole)
                return rows
            except Exception as error:
                # `torch.func` fails on its way out of a transform that a signal broke off.
                if error.__context__ is not None and is_from_signal(error.__context__):
                    raise error.__context__ from None
                is_other = isinstance(error, PriorityMonitorError) or may_pass(error)
                if is_other or is_from_signal(error):
                    raise
                where = where_it_failed(error, function.module)
                self._is_mapped = False
                self._on_problem(
                    f"{where}. Samples are run one by one, which takes as many passes in a "
                    'measured step as it has samples; engine="closed_form" needs none'
                )
        begun.restore()
        rows = function.one_by_one(residual, part)
        _require_repeatable(begun, len(residual) == 1)
        return rows

    def collect(self) -> GroupGradients | None:
        """The group gradients of the step; None if nothing was measured."""
        gradients = self._sums.group_gradients(self._parameters(), self._check)
        self.discard()
        return gradients

    def discard(self) -> None:
        """Forget the step."""
        self._passes, self._sums = [], GroupSums()
        self._check.clear()

    def close(self) -> None:
        """Take the hooks off."""
        self._attachments.remove(self._handle)
        self.discard()

    def _parameters(self) -> dict[str, nn.Parameter]:
        return trained_parameters(self._model, self._optimizer)

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def _detached(argument: object) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument


def _chunk_size(parameters: dict[str, Tensor]) -> int:
    of_one = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
    return max(1, _MOST_HELD // max(of_one, 1))


def _require_repeatable(begun: RandomState, is_whole: bool) -> None:
    if not is_whole and begun.is_drawn_from():
        raise PriorityMonitorError(
            'engine="func" can\'t repeat the random numbers of a forward pass, as for dropout, '
            "unless it runs all samples of a micro-batch at once; make micro-batches smaller, or "
            'use engine="closed_form"'
        )
