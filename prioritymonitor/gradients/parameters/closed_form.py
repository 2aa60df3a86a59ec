"""The engine that needs no backward pass of its own: what arrives at each layer says it all.

A forward hook sees what goes into a layer, a tensor hook on what comes out sees the gradient that
arrives there, and both together give the per-sample gradients of its parameters in factors. One
product per layer adds up the noisy samples' part; the rest of what the backward pass brought is the
clean samples'.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ...capture import private
from ...capture.hooks import Guard
from ...capture.rerun import is_compiled
from ...errors import PriorityMonitorError, described, is_from_signal, may_pass
from ...records import GroupGradients
from ..factors import Direct, Factors
from .broadcasts import SpreadFinder, follow, may_lack_samples
from .calls import Call, ModelPass, TrainedCall
from .engine import TrainedPass
from .formulas import formula_for
from .layer_hooks import LayerHooks
from .layer_sums import LayerSums
from .recompute import recomputed
from .sample_order import SampleOrder
from .sum_check import SumCheck
from .sums import full_precision

_REMEDY = 'engine="func" may measure it'

_NO_SAMPLES = "its output has no samples, and goes through other layers before it is added to them"


class ClosedFormEngine:
    """Hooks on every layer with parameters until `close()`.

    Args:
        model: The model that the loop calls.
        optimizer: The optimizer that trains its parameters.
        is_measured: True while the running step is measured; the same throughout a step.
        guard: What all hooks of the monitor share.
        on_problem: Gets a sentence on what can't be measured, once.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        is_measured: Callable[[], bool],
        guard: Guard,
        on_problem: Callable[[str], None],
    ) -> None:
        self._model = model
        self._guard = guard
        self._on_problem = on_problem
        self._mixing = {
            n: m for n, m in model.named_modules() if isinstance(m, private.BATCH_NORMS)
        }
        self._is_mixed = False
        self._check = SumCheck(model, _REMEDY, guard, on_problem, self._total_arrived)
        self._sums = LayerSums(self._check)
        self._passes: list[ModelPass] = []
        self._order = SampleOrder(model, self._sums, self._check)
        self._layers = LayerHooks(
            model,
            optimizer,
            is_measured=is_measured,
            wants=self._check.wants,
            on_gradient=self._gradient,
            guard=guard,
        )

    # Forward pass

    def forward_done(self, output: Any, samples: int) -> ModelPass:
        """See `Engine.forward_done`.

        Raises:
            PriorityMonitorError: The model was compiled after the monitor was made.
        """
        model_pass = self._layers.end_pass(samples)
        self._check.forward_done()
        if not model_pass.call_counts and is_compiled(self._model):
            raise PriorityMonitorError(
                "the model was compiled after the monitor was made, and its layers can't be seen "
                'any more; use engine="func", or compile the model first'
            )
        self._follow_spreads(model_pass, output)
        if not self._mixing:
            self._order.note(model_pass)
        model_pass.forget_calls()
        return model_pass

    def _follow_spreads(self, model_pass: ModelPass, output: Any) -> None:
        """Find out where tensors without samples are spread over the samples."""
        formed = [call for call in model_pass.calls if formula_for(call.module) is not None]
        samples = model_pass.samples
        # With a single sample, everything is that sample's.
        loose = [c for c in formed if samples > 1 and may_lack_samples(c.shape, samples)]
        known = {name for call in formed for name in call.names.values()}
        trained = self._layers.parameters
        raw = [name for name in trained if name not in known and self._check.wants(name)]
        if not loose and not raw:
            return
        finder = SpreadFinder(x for x in pytree.tree_leaves(output) if isinstance(x, Tensor))
        for call in loose:
            spreads = finder.spreads(call.node, tuple(call.shape), samples)
            if spreads is not None:
                call.is_spread = True
                finish = functools.partial(self._finish_spread, call)
                follow(spreads, finish, self._guard)
            elif finder.lacks_samples(call.node, tuple(call.shape), samples):
                self._check.leave_out(call.names.values(), _NO_SAMPLES)
        for name in raw:
            shape = tuple(trained[name].shape)
            spreads = finder.spreads(finder.leaf(trained[name]), shape, samples)
            if spreads is not None:
                add = functools.partial(self._add_rows, model_pass, name)
                follow(spreads, add, self._guard)
                for call in model_pass.calls:
                    call.names = {k: n for k, n in call.names.items() if n != name}

    def _finish_spread(self, call: Call, rows: Tensor) -> None:
        with _plain_arithmetic(rows):
            self._finish(call, [rows])

    def _add_rows(self, model_pass: ModelPass, name: str, rows: Tensor) -> None:
        with _plain_arithmetic(rows):
            self._add(model_pass, name, [Direct(full_precision(rows))])

    # Backward pass

    def backward_began(self, trained: TrainedPass) -> None:
        """See `Engine.backward_began`."""
        model_pass = trained.seen
        if not isinstance(model_pass, ModelPass):
            return
        model_pass.noisy_weight, model_pass.strength = trained.noisy_weight, trained.strength
        self._check.expect(self._layers.parameters, trained, is_half=model_pass.is_half)
        self._sums.hooked = {
            n for n, p in self._layers.parameters.items() if private.has_gradient_hooks(p)
        }
        self._passes.append(model_pass)
        self._layers.running = model_pass
        weights = torch.stack((trained.noisy_weight, 1 - trained.noisy_weight))
        if model_pass.ambiguous:
            weights = torch.cat((weights, self._order.look_into(trained).unsqueeze(0)))
        model_pass.weights = weights / model_pass.strength
        with _plain_arithmetic(weights):
            for call in model_pass.early:
                self._finish(call, call.gradients)

    def _gradient(self, call: Call, place: int, gradient: Tensor | None) -> None:
        if call.is_spread:
            return
        call.gradients[place] = gradient  # None for one of several outputs that no one used
        call.missing -= 1
        if call.missing:
            if call not in call.model_pass.unfinished:
                call.model_pass.unfinished.append(call)
        elif call.model_pass.strength is None:
            call.model_pass.early.append(call)
        else:
            with _plain_arithmetic(call.model_pass.strength):
                self._finish(call, call.gradients)

    def _total_arrived(self, name: str) -> None:
        for model_pass in self._passes:
            ready = [call for call in model_pass.unfinished if name in call.names.values()]
            if not ready and name not in model_pass.factors:
                continue
            with _plain_arithmetic(self._check.totals[name]):
                for call in ready:
                    model_pass.unfinished.remove(call)
                    self._finish(call, call.gradients)
                if name in model_pass.factors:
                    self._add(model_pass, name, model_pass.factors.pop(name))

    def _finish(self, call: Call, gradients: list[Tensor | None]) -> None:
        """Add up what a call whose gradients are all there brings."""
        names = {local: name for local, name in call.names.items() if self._check.wants(name)}
        call.gradients = [None] * len(call.gradients)  # the call lives as long as the graph
        if not names:
            return
        try:
            factors = self._factors(call, call.kept.take(), gradients, names)
        except Exception as error:  # one layer's failure must not take the others with it
            if private.ends_recomputation(error) or may_pass(error) or is_from_signal(error):
                raise
            self._check.leave_out(names.values(), _reason(call.module, error))
            return
        model_pass, is_early = call.model_pass, call in call.model_pass.early
        for local, name in names.items():
            if local not in factors:
                continue
            if model_pass.call_counts[name] > 1:
                model_pass.factors.setdefault(name, []).append(factors[local])
            else:
                self._add(model_pass, name, [factors[local]], is_early=is_early)

    def _factors(
        self, call: Call, kept: Any, gradients: list[Tensor | None], names: dict[str, str]
    ) -> dict[str, Factors]:
        args, kwargs = pytree.tree_map_only(Tensor, full_precision, kept)
        samples = call.model_pass.samples
        if call.is_spread:
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda x: x.unsqueeze(0).expand(samples, *x.shape), (args, kwargs)
            )
        trained = TrainedCall(
            call.module,
            args,
            kwargs,
            [None if gradient is None else full_precision(gradient) for gradient in gradients],
            samples,
            batch_dim=call.batch_dim,
            begun=call.begun,
            is_training=call.is_training,
        )
        formula = formula_for(call.module)
        return formula(trained) if formula is not None else recomputed(trained, list(names))

    def _add(
        self, model_pass: ModelPass, name: str, factors: list[Factors], *, is_early: bool = False
    ) -> None:
        if model_pass.noisy_weight is None:
            self._check.leave_out([name], "its gradient came before that of the logits")
            return
        try:
            self._sums.add(model_pass, name, factors, is_early=is_early)
        except Exception as error:
            if may_pass(error) or is_from_signal(error):
                raise
            self._check.leave_out([name], described(error))

    # Optimizer step

    def step_begins(self) -> None:
        """Everything was added up in the backward passes; the order of samples may be open."""
        self._order.settle(self._layers.parameters)

    def collect(self) -> GroupGradients | None:
        """See `Engine.collect`."""
        with torch.no_grad():
            gradients = self._sums.group_gradients(self._passes, self._layers.parameters)
        self._start_anew()
        return gradients if gradients is None else self._marked(gradients)

    def _marked(self, gradients: GroupGradients) -> GroupGradients:
        """With a mark if samples were mixed, which is said once."""
        mixing = [n for n, m in self._mixing.items() if m.training or m.running_mean is None]
        if not mixing:
            return gradients
        if not self._is_mixed:
            self._is_mixed = True
            self._on_problem(
                f"BatchNorm in training mode mixes the samples of a batch ({', '.join(mixing[:8])}"
                f"{', …' * (len(mixing) > 8)}): statistics of all parameters take each sample's "
                "row of the batch gradient, and those of the population are left out"
            )
        return replace(gradients, is_mixed=True)

    def discard(self) -> None:
        """See `Engine.discard`."""
        self._check.clear()
        self._sums.clear()
        self._order.forget()
        self._passes = []

    def _start_anew(self) -> None:
        self.discard()
        self._layers.start_anew()

    def close(self) -> None:
        """Take every hook off again."""
        self._layers.close()
        self._start_anew()


def _reason(module: nn.Module, error: Exception) -> str:
    detail = f": {error}" if str(error) else ""
    return f"{type(module).__name__} can't be followed ({type(error).__name__}{detail})"


@contextlib.contextmanager
def _plain_arithmetic(tensor: Tensor) -> Iterator[None]:
    """Neither autograd nor autocast takes part, wherever the loop calls `backward()`."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield
