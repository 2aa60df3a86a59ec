"""Which module gives the logits: the model, or a part of it that the loop calls by itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import contained
from ..loaded import damaged
from . import private
from .head import HeadFinder, is_linear, logits_in
from .hooks import Guard, Handle, ModuleHook
from .links import Chain, Links
from .loader.handed_out import HandedOut
from .losses.criterion import through_log_softmax
from .losses.cross_entropy import recognise_cross_entropy
from .passes import Forward, Pass
from .rerun import hidden_layers

MOST_STEPS = 50
"""Optimizer steps after which nobody looks any more for a module that gives logits."""

_MOST_UNEXPLAINED = 1e-3
"""Share by which a gradient may differ from that of a cross-entropy."""


class Part:
    """A part of the model that the loop calls, and that may give the logits.

    Args:
        module: The part.
        head: The head of the model, if it was passed in.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(self, module: nn.Module, head: nn.Module | None, guard: Guard) -> None:
        self.module = module
        self.finder = HeadFinder(module, head, guard)
        self._forwards: list[weakref.ref[Forward]] = []
        self._seen: dict[HandedOut, int] = {}  # how many samples of a batch went through it

    def count(self, forward: Forward) -> None:
        """Count the samples of a pass on trial here, and not for the model."""
        self._forwards.append(weakref.ref(forward))
        batch = forward.handed_out
        if batch is not None:
            batch.seen -= forward.samples
            forward.seen_before = self._seen.get(batch, 0)
            self._seen[batch] = forward.seen_before + forward.samples

    def is_found(self) -> list[Forward]:
        """It gives the logits: what went through it went through the model.

        Returns:
            Its passes that may still get a gradient, in their order.
        """
        for batch, seen in self._seen.items():
            batch.seen = seen
        forwards = [forward for ref in self._forwards if (forward := ref()) is not None]
        self._seen.clear()
        self._forwards.clear()
        return forwards


@dataclass(frozen=True)
class Trial:
    """A call of a part that is followed as if it were one of the model, until that is known."""

    part: Part
    chain: Chain | None
    """The parts that were called for it, itself the last; None if what it got is more than them."""
    call: Any
    """What the first of them was called with; None without any."""
    device: torch.device
    """Of what it gave."""


class CalledModule:
    """Looks for the module that is called, in the first passes.

    A method of the model, such as Lightning's `training_step`, may call `self.forward(x)` or
    `self.net(x)`; then no hook of the model itself is called. So the outermost modules that are
    called are followed on trial. A backward pass begins with what was computed last, so the first
    of them that the gradient of a loss reaches gave the logits.

    Args:
        model: The model that was passed in.
        head: Its head, if it was passed in.
        criterion: The loss; None: it must be a cross-entropy. Where it is a module, only logits
            that it was called with are asked about.
        guard: Times the hooks, and gets any exception of ours.
        on_call: Called at the end of a call on trial with it, positional arguments, others, and
            what the part gave.
        on_found: Called with the part, and the parts called for it, if it gets no more than these.
    """

    def __init__(
        self,
        model: nn.Module,
        head: nn.Module | None,
        criterion: object,
        guard: Guard,
        on_call: Callable[[Trial, Any, Any, Any], None],
        on_found: Callable[[Part, Chain | None], None],
    ) -> None:
        self.is_known = False
        """True once the model itself, or a part of it, was seen to give logits."""
        self.has_trained = False
        """True once a gradient reached logits."""
        self.module = model
        """What gives the logits, or is taken to."""
        self._model = model
        self._head = head
        self._criterion = criterion
        self._guard = guard
        self._on_call = on_call
        self._on_found = on_found
        self._is_alone = True  # False if other parts are called for it
        self._steps = 0
        self._of_model: weakref.ref[Forward] | None = None
        self._looks_inside = False
        self._open: nn.Module | None = None  # the outermost that is being called
        self._links = Links()
        self._parts: dict[nn.Module, Part | None] = {}
        self._handles: list[Handle] = []
        self._look()

    @property
    def is_settled(self) -> bool:
        """True once it is known, or nobody looks any more."""
        return self.is_known or self._steps >= MOST_STEPS

    @property
    def name(self) -> str:
        """Name of the module in the model; empty for the model, and where it is looked for anew."""
        if not self._is_alone:
            return ""
        names: dict[nn.Module, str] = {m: name for name, m in self._model.named_modules()}
        return names[self.module]

    def resuming(self, name: str) -> Callable[[], None]:
        """What goes on as a run did that had found the module of this name.

        Raises:
            AttributeError: The model has none.
            ArgumentValueError: It can't give logits.
        """
        module = self._model.get_submodule(name)
        if module is not self._model and not self._may_give_logits(module):
            raise damaged(f"logits from {name[:40]!r}, which has no linear layer")

        def resume() -> None:
            if module is not self.module:
                part = Part(module, self._head, self._guard)
                self.found(module)
                self._on_found(part, Chain([module], []))

        return resume

    def found(self, module: nn.Module) -> None:
        """It is known: look no more."""
        self.module, self.is_known = module, True
        self._stop_looking()

    def was_called(self) -> None:
        """The model gave logits, and nobody waits for their gradient."""
        if not self.is_known:
            self.found(self.module)

    def model_gave(self, forward: Forward) -> None:
        """The model itself was called and gave logits, which may be trained on or not."""
        if not self.is_known:
            forward.is_of_model, self._of_model = True, weakref.ref(forward)

    def step_made(self) -> None:
        """An optimizer step was made."""
        if self.is_known:
            return
        self._steps += 1
        self._open = None  # a call that broke off has no end
        self._links.clear()
        # One that gives nothing but its loss may have a part that gives logits.
        self._looks_inside = self._model in self._parts and self._of_model is None
        self._of_model = None
        if self._steps == MOST_STEPS:
            self._stop_looking()

    def _look(self) -> None:
        begins = ModuleHook(self._begins, self._guard)
        hidden = hidden_layers(self._model)
        for module in self._model.modules():
            # What wraps a compiled module calls its own hooks, and those inside are not called.
            if module in hidden and private.inside_compiled(module) is None:
                continue
            self._handles.append(self._guard.attach(module.register_forward_pre_hook, begins))

    def _may_give_logits(self, module: nn.Module) -> bool:
        head = self._head
        return any(is_linear(one) if head is None else one is head for one in module.modules())

    def _stop_looking(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            self._guard.attachments.remove(handle)
        for part in self._parts.values():
            if part is not None and part.module is not self.module:
                part.finder.close()
        self._parts.clear()
        self._open = None
        self._links.clear()

    def _begins(self, module: nn.Module, args: Any) -> None:
        is_model = module is self._model
        if not torch.is_grad_enabled() or (is_model and self._looks_inside):
            return
        if self._open is not None and not (is_model or self._open is module):
            return  # a part of another one that is called
        self._open = module
        is_new = module not in self._parts
        if is_new:
            may_give_logits = not is_model and self._may_give_logits(module)
            part = Part(module, self._head, self._guard) if may_give_logits else None
            self._parts[module] = part
        part = self._parts[module]
        if part is not None:
            part.finder.pass_begins(module, args)
        if is_new:  # after the hooks by which the part finds its head
            ends = ModuleHook(self._ends, self._guard)
            handle = self._guard.attach(module.register_forward_hook, ends, with_kwargs=True)
            self._handles.append(handle)

    def _ends(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module is not self._open:
            return
        self._open = None
        if module is self._model:
            return
        part = self._parts[module]
        devices = [one.device for one in logits_in(output) if one.requires_grad]
        if part is not None and devices:
            chain, call = self._links.before(module, (args, kwargs)) or (None, None)
            with contained(_ignore):  # what can't be followed does not give the logits
                self._on_call(Trial(part, chain, call, devices[0]), args, kwargs, output)
        self._links.add(module, args, kwargs, output)

    def turns_out(self, one: Pass, gradient: Tensor) -> bool:
        """Whether a pass whose gradient has arrived is one of the module that gives the logits.

        Args:
            one: The pass, on trial or not.
            gradient: Of its logits.
        """
        trial = one.source.trial
        if trial is None:
            if one.source.is_of_model and not self.is_known:
                self.found(self._model)
            return not one.source.is_of_model or self.module is self._model
        if not self.is_known and self._handles and self._is_trained_on(one, gradient):
            self.found(trial.part.module)
            self._is_alone = trial.chain is not None and len(trial.chain.parts) == 1
            self._on_found(trial.part, trial.chain)
        return self.module is trial.part.module

    def _is_trained_on(self, one: Pass, gradient: Tensor) -> bool:
        if isinstance(self._criterion, nn.Module):
            return True
        if self._of_model is not None and self._of_model() is not None:
            return False  # the gradient of its own logits may come yet
        if self._criterion is not None and self._steps:
            return True
        with contained(_ignore):
            return _is_of_cross_entropy(one.logits, one.rows.of(gradient))
        return False


def _is_of_cross_entropy(logits: Tensor, gradient: Tensor) -> bool:
    """Whether a gradient is that of a cross-entropy on these logits; it waits for the device."""
    if logits.shape[1] < 2 or not gradient.any():
        return False
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        rows, arrived = logits.float(), gradient.float()
        if rows.logsumexp(1).abs().max() < torch.finfo(gradient.dtype).eps ** 0.5:
            arrived = through_log_softmax(arrived, rows)
        health = recognise_cross_entropy(rows[None], arrived[None])
        return bool((health.health.unexplained <= _MOST_UNEXPLAINED).all())


def _ignore(error: Exception) -> None:
    """It is one of many tries."""
