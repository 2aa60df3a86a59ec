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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ...errors import PriorityMonitorError
from ...records import GroupGradients
from ..hooks import Guard, Hook, ModuleHook
from ..parameters import GradientTotals, trained_parameters
from ..quiet import is_compiled
from .broadcasts import SpreadFinder, may_lack_samples, watch
from .calls import Call, Frame, KeptArguments, Trained, draws_random_numbers, random_state
from .engine import TrainedPass
from .formulas import formula_for
from .ledger import Ledger
from .recompute import recomputed
from .uses import Direct, Use

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
        self._optimizer = optimizer
        self._is_measured = is_measured
        self._guard = guard
        self._second = _layers_with_samples_second(model)
        self._on_problem = on_problem
        self._mixing = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self._is_mixed = False
        self._totals = GradientTotals(guard, self._total_arrived)
        self._ledger = Ledger(self._totals, on_problem)
        self._parameters: dict[str, nn.Parameter] = {}
        self._names: dict[int, str] = {}
        self._open: Frame | None = None
        self._frames: list[Frame] = []
        holders = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
        self._handles = []
        for module in holders:
            hook = ModuleHook(self._called, guard)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
            if draws_random_numbers(module):
                before = ModuleHook(self._about_to_be_called, guard)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._random_states: dict[nn.Module, Tensor] = {}
        begins = ModuleHook(self._pass_begins, guard)
        self._handles.append(model.register_forward_pre_hook(begins))

    # Forward pass

    def _pass_begins(self, model: nn.Module, args: Any) -> None:
        self._forget_open()  # of a pass that failed
        if self._is_measured() and torch.is_grad_enabled() and not _is_in_backward():
            self._open = Frame()

    def _forget_open(self) -> None:
        if self._open is not None:
            self._open.forget_calls()
        self._open = None

    def _about_to_be_called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_measured() and torch.is_grad_enabled():
            self._random_states[module] = random_state(module)

    def _called(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (self._is_measured() and torch.is_grad_enabled()):
            return
        outputs = [output] if isinstance(output, Tensor) else pytree.tree_leaves(output)
        outputs = [x for x in outputs if isinstance(x, Tensor)]
        trained = [place for place, x in enumerate(outputs) if x.requires_grad]
        own = self._own_parameters(module)
        if not trained or not own:
            return
        # In any case: a checkpointed layer that is called once more must save what it saved before.
        kept, frame = KeptArguments(args, kwargs), self._frame()
        if frame is None:
            return  # a part of the model that was called on its own
        first = outputs[trained[0]]
        call = Call(
            module=module,
            frame=frame,
            kept=kept,
            names=own,
            node=None if _is_in_backward() else first.grad_fn,
            shape=first.shape,
            gradients=[None] * len(outputs),
            missing=len(trained),
            random_state=self._random_states.pop(module, None),
            is_training=module.training,
        )
        if not _is_in_backward():
            frame.calls.append(call)
        frame.is_half |= first.element_size() < 4
        frame.uses.update(own.values())
        for place in trained:
            hook = Hook(functools.partial(self._gradient, call, place), self._guard)
            outputs[place].register_hook(hook)

    def _own_parameters(self, module: nn.Module) -> dict[str, str]:
        """The parameters of a layer that are measured: name in the layer -> name in the model."""
        if not self._names:
            self._parameters = trained_parameters(self._model, self._optimizer)
            self._names = {id(p): n for n, p in self._parameters.items() if self._ledger.wants(n)}
        names, own = self._names, module._parameters.items()
        found = {local: names[id(p)] for local, p in own if id(p) in names}
        if isinstance(module, nn.MultiheadAttention):  # its output projection is never called
            inner = module.out_proj._parameters.items()
            found |= {f"out_proj.{local}": names[id(p)] for local, p in inner if id(p) in names}
        return found

    def _frame(self) -> Frame | None:
        if not _is_in_backward():
            return self._open
        return self._frames[-1] if self._frames else None  # a checkpointed layer, once more

    def forward_done(self, output: Any, samples: int) -> Frame:
        """See `Engine.forward_done`.

        Raises:
            PriorityMonitorError: The model was compiled after the monitor was made.
        """
        frame, self._open = self._open or Frame(), None
        self._totals.forward_done()
        frame.samples = samples
        if not frame.uses and is_compiled(self._model):
            raise PriorityMonitorError(
                "the model was compiled after the monitor was made, and its layers can't be seen "
                'any more; use engine="func", or compile the model first'
            )
        self._follow_spreads(frame, output)
        frame.forget_calls()
        return frame

    def _follow_spreads(self, frame: Frame, output: Any) -> None:
        """Find out where tensors without samples are spread over the samples."""
        formed = [call for call in frame.calls if formula_for(call.module) is not None]
        # With a single sample, everything is that sample's.
        loose = [
            c for c in formed if frame.samples > 1 and may_lack_samples(c.shape, frame.samples)
        ]
        known = {name for call in formed for name in call.names.values()}
        raw = {
            n: p for n, p in self._parameters.items() if n not in known and self._ledger.wants(n)
        }
        if not loose and not raw:
            return
        outputs = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]
        finder = SpreadFinder(outputs)
        for call in loose:
            spreads = finder.spreads(call.node, tuple(call.shape), frame.samples)
            if spreads is not None:
                call.is_spread = True
                finish = functools.partial(self._finish_spread, call)
                watch(spreads, finish, self._guard)
            elif finder.lacks_samples(call.node, tuple(call.shape), frame.samples):
                self._ledger.leave_out(call.names.values(), _NO_SAMPLES)
        for name, parameter in raw.items():
            spreads = finder.spreads(finder.leaf(parameter), tuple(parameter.shape), frame.samples)
            if spreads is not None:
                add = functools.partial(self._add_rows, frame, name)
                watch(spreads, add, self._guard)
                for call in frame.calls:
                    call.names = {k: n for k, n in call.names.items() if n != name}

    def _finish_spread(self, call: Call, rows: Tensor) -> None:
        with _plain_arithmetic(rows):
            self._finish(call, [rows])

    def _add_rows(self, frame: Frame, name: str, rows: Tensor) -> None:
        with _plain_arithmetic(rows):
            self._add(frame, name, [Direct(_wide(rows))])

    # Backward pass

    def backward_began(self, trained: TrainedPass) -> None:
        """See `Engine.backward_began`."""
        frame = trained.seen
        if not isinstance(frame, Frame):
            return
        frame.noisy_weight, frame.strength = trained.noisy_weight, trained.strength
        if not self._totals.expect(self._parameters, trained.strength):
            self._ledger.has_totals = False
        self._ledger.meddled = {n for n, p in self._parameters.items() if p._backward_hooks}
        self._frames.append(frame)
        weights = torch.stack((trained.noisy_weight, 1 - trained.noisy_weight))
        frame.weights = weights / frame.strength
        with _plain_arithmetic(weights):
            for call in frame.early:
                self._finish(call, call.gradients)

    def _gradient(self, call: Call, place: int, gradient: Tensor | None) -> None:
        if call.is_spread:
            return
        call.gradients[place] = gradient  # None for one of several outputs that no one used
        call.missing -= 1
        if call.missing:
            if call not in call.frame.unfinished:
                call.frame.unfinished.append(call)
        elif call.frame.strength is None:
            call.frame.early.append(call)
        else:
            with _plain_arithmetic(call.frame.strength):
                self._finish(call, call.gradients)

    def _total_arrived(self, name: str) -> None:
        for frame in self._frames:
            ready = [call for call in frame.unfinished if name in call.names.values()]
            if not ready and name not in frame.parts:
                continue
            with _plain_arithmetic(self._totals.totals[name]):
                for call in ready:
                    frame.unfinished.remove(call)
                    self._finish(call, call.gradients)
                if name in frame.parts:
                    self._add(frame, name, frame.parts.pop(name))

    def _finish(self, call: Call, gradients: list[Tensor | None]) -> None:
        """Add up what a call whose gradients are all there brings."""
        names = {local: name for local, name in call.names.items() if self._ledger.wants(name)}
        call.gradients = [None] * len(call.gradients)  # the call lives as long as the graph
        if not names:
            return
        try:
            uses = self._uses(call, call.kept.take(), gradients, names)
        except Exception as error:  # one layer's failure must not take the others with it
            if type(error).__module__ == torch.utils.checkpoint.__name__:
                raise
            self._ledger.leave_out(names.values(), _reason(call.module, error))
            return
        for local, name in names.items():
            if local not in uses:
                continue
            if call.frame.uses[name] > 1:
                call.frame.parts.setdefault(name, []).append(uses[local])
            else:
                self._add(call.frame, name, [uses[local]], is_early=call in call.frame.early)

    def _uses(
        self, call: Call, kept: Any, gradients: list[Tensor | None], names: dict[str, str]
    ) -> dict[str, Use]:
        args, kwargs = kept
        if kwargs or not all(isinstance(argument, Tensor) for argument in args):
            args, kwargs = pytree.tree_map_only(Tensor, _wide, kept)
        else:
            args = tuple(map(_wide, args))
        samples = call.frame.samples
        if call.is_spread:
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda x: x.unsqueeze(0).expand(samples, *x.shape), (args, kwargs)
            )
        trained = Trained(
            call.module,
            args,
            kwargs,
            [None if gradient is None else _wide(gradient) for gradient in gradients],
            samples,
            batch_dim=int(call.module in self._second),
            random_state=call.random_state,
            is_training=call.is_training,
        )
        formula = formula_for(call.module)
        return formula(trained) if formula is not None else recomputed(trained, list(names))

    def _add(self, frame: Frame, name: str, uses: list[Use], *, is_early: bool = False) -> None:
        if frame.noisy_weight is None:
            self._ledger.leave_out([name], "its gradient came before that of the logits")
            return
        try:
            self._ledger.add(frame, name, uses, is_early=is_early)
        except Exception as error:
            self._ledger.leave_out([name], f"{type(error).__name__}: {error}")

    # Optimizer step

    def step_begins(self) -> None:
        """Nothing is left to do: everything was added up in the backward passes."""

    def collect(self) -> GroupGradients | None:
        """See `Engine.collect`."""
        with torch.no_grad():
            gradients = self._ledger.collect(self._frames, self._parameters)
        self._start_anew()
        mixing = [n for n, m in self._mixing.items() if m.training or m.running_mean is None]
        if gradients is None or not mixing:
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
        self._totals.clear()
        self._ledger.clear()
        self._frames = []

    def _start_anew(self) -> None:
        self.discard()
        self._forget_open()
        self._parameters, self._names = {}, {}

    def close(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self._start_anew()


def _is_in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _layers_with_samples_second(model: nn.Module) -> set[nn.Module]:
    """Layers that see `[T, B, ...]`, as far as layers of torch say so."""
    found: set[nn.Module] = set()
    for module in model.modules():
        attention = getattr(module, "self_attn", module)
        if getattr(attention, "batch_first", True) is False:
            found.update(module.modules())
    return found


def _reason(module: nn.Module, error: Exception) -> str:
    detail = f": {error}" if str(error) else ""
    return f"{type(module).__name__} can't be followed ({type(error).__name__}{detail})"


def _wide(tensor: Tensor) -> Tensor:
    """Detached, and in single precision if it is in half."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@contextlib.contextmanager
def _plain_arithmetic(tensor: Tensor) -> Iterator[None]:
    """Neither autograd nor autocast takes part, wherever the loop calls `backward()`."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield
