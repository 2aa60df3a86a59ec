"""All parameters of a step: an engine for their gradients, and what the optimizer did to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...capture import private
from ...capture.hooks import Guard, Hook
from ...capture.parameters import ParameterChanges, trained_parameters
from ...capture.passes import Forward, Pass
from ...errors import contained, described, may_pass
from ...records import GroupGradients, Visits
from .engine import MakeEngine, TrainedPass


class AllParameters:
    """Follows the passes of measured steps with an engine, until `close()`.

    A `Scope`. Its failure ends nothing else: losses, suspects and the stop go on.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that trains its parameters.
        make_engine: The engine's constructor.
        is_measured: Whether the running optimizer step is measured.
        noisy_weight: How noisy the labels of some samples are taken to be, `[B]`.
        guard: What all hooks of the monitor share.
        on_problem: Gets a sentence on what can't be measured.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        make_engine: MakeEngine,
        *,
        is_measured: Callable[[], bool],
        noisy_weight: Callable[[Visits], Tensor],
        guard: Guard,
        on_problem: Callable[[str], None],
    ) -> None:
        self.is_of_all = True
        self.coverage = float("nan")
        """Share of the trained parameters that is measured; NaN before the first measured step."""
        self._model = model
        self._optimizer = optimizer
        self._is_measured = is_measured
        self._noisy_weight = noisy_weight
        self._on_problem = on_problem
        self._changes = ParameterChanges()
        self._has_failed = False
        """In the step that is under way; what may pass is tried again in the next."""
        self._ends = False
        """True if this step is the last."""
        self._is_over = False
        self._running = (-1, False)
        self._guard = guard.for_part(self._failed)
        self._engine = make_engine(
            model,
            optimizer,
            is_measured=self._follows,
            guard=self._guard,
            on_problem=on_problem,
        )

    def _follows(self) -> bool:
        # The same throughout a step, whatever fails in it, and in the backward pass as it was in
        # the forward pass, if that was before another step: a checkpointed layer that is computed
        # once more must save the same tensors as before.
        backward, was_followed = self._running
        if backward != -1 and backward == private.backward_pass():
            return was_followed
        return not self._is_over and self._is_measured()

    def backward_begins(self, forward: Forward) -> None:
        """See `Scope`."""
        self._running = private.backward_pass(), forward.is_followed

    def _failed(self, error: Exception) -> None:
        if not self._has_failed:
            what = "a step was not measured" if may_pass(error) else "statistics of steps are off"
            self._on_problem(f"{what}, losses, suspects and the stop go on: {described(error)}")
            self._ends |= not may_pass(error)
        self._has_failed = True

    def forward_done(self, forward: Forward, call: Any, output: Any) -> None:
        """See `Scope`."""
        if not self._follows():
            return
        forward.is_followed, forward.call = True, call
        with contained(self._failed):
            forward.seen = self._engine.forward_done(output, forward.samples)

    def await_gradient(self, one: Pass, node: Any, output: int) -> None:
        """See `Scope`; the pass itself is observed first."""
        if not one.source.is_followed or node is None:
            return

        def called(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[output]
            if gradient is not None:
                self._backward_began(one, gradient)

        node.register_prehook(Hook(called, self._guard))

    def _backward_began(self, one: Pass, gradient: Tensor) -> None:
        source = one.source
        call, source.call = source.call, None
        if one.observation is None or call is None or self._has_failed:
            return
        with torch.no_grad():
            args, kwargs = call
            trained = TrainedPass(
                args,
                kwargs,
                logits_at=source.logits_at,
                gradient=gradient.detach(),
                # Where no sample counts, nothing tells the strength, and nothing needs it.
                strength=torch.where(gradient.any(), one.observation.head.strength[0], 1.0),
                noisy_weight=self._noisy_weight(one.observation.visits),
                seen=source.seen,
            )
            self._engine.backward_began(trained)

    def step_begins(self, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """See `Scope`; a closure is replaced by one that tells when its backward pass is over."""
        if not self._follows() or self._has_failed:
            return None
        self._changes.remember(trained_parameters(self._model, self._optimizer))
        self._backward_is_over()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            return None

        def followed() -> Any:
            loss = closure()
            self._backward_is_over()
            return loss

        return (args[0], followed, *args[2:]), {k: v for k, v in kwargs.items() if k != "closure"}

    def _backward_is_over(self) -> None:
        with contained(self._failed):
            self._engine.step_begins()

    def step_done(self, *, has_passes: bool) -> GroupGradients | None:
        """See `Scope`."""
        changes = self._changes.take()
        if self._is_over:
            return None
        gradients = None
        with contained(self._failed):
            if self._has_failed:
                self._engine.discard()
            else:
                gradients = self._engine.collect()
        has_failed, self._has_failed, self._is_over = self._has_failed, False, self._ends
        if has_failed or not changes:
            return None
        if gradients is None:
            if has_passes:
                self._on_problem(
                    "a step could not be measured over all parameters: the loss was not computed "
                    "from the model's output, or one backward pass went through several forward "
                    "passes for the first time"
                )
            return None
        self.coverage = gradients.coverage
        return replace(gradients, changes=changes)

    def discard(self) -> None:
        """See `Scope`."""
        self._engine.discard()

    def give_step_up(self) -> None:
        """See `Scope`."""
        self._has_failed = True

    def turn_off(self) -> None:
        """See `Scope`."""
        self._has_failed = self._ends = True

    def close(self) -> None:
        """See `Scope`."""
        self._is_over = True
        self._engine.close()
