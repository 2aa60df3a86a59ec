"""An optimizer that makes no steps: the loop steps another one, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..type_names import stepped_optimizer, type_name
from .hooks import Guard, Handle, Hook

MOST_BATCHES = 50
"""Batches without a step after which it is said, if their gradients did not add up."""

_SUSPICIOUS = 25
"""Batches without a step from which on the loop is looked at; below, it costs nothing."""

_DROPS = 3
"""Times that gradients were dropped until they are taken to be dropped each time."""


class MissingSteps:
    """Counts batches that were trained on since the optimizer's last step.

    Gradients that are kept add up to a step that comes later, whenever that is. Those that are
    dropped again and again were never for the watched optimizer.

    Args:
        model: What is trained.
        optimizer: The optimizer that was passed in.
        guard: Times the hooks, and gets any exception of ours.
        on_problem: Gets a sentence once it is sure.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        guard: Guard,
        on_problem: Callable[[str], None],
    ) -> None:
        self._model = type_name(model)
        self._optimizer = optimizer
        self._guard = guard
        self._on_problem = on_problem
        self._epochs = 0
        self._passes = 0
        self._batches = self._batches_at_end = 0
        self._drops = 0
        self._latest: object = None
        self._is_said = False
        self._stepped_instead: str | None = None
        self._handle: Handle | None = None

    def is_possible(self) -> bool:
        """Whether so many forward passes were made since the last step that it may have been it.

        To be asked in each forward pass that is of no other interest.
        """
        self._passes += 1
        return self._passes > _SUSPICIOUS

    def trained_on(self, batch: object, is_of_loop: bool) -> None:
        """A batch is about to be trained on, outside of any step.

        Args:
            batch: Which one: an attack goes through the model with the same one many times.
            is_of_loop: False where it may be that of a test, which drops its gradients.
        """
        if batch is not None and batch is self._latest:
            return
        self._latest = batch
        self._batches += 1
        if self._batches < _SUSPICIOUS:
            return
        if self._handle is None:
            hook = Hook(self._stepped, self._guard)
            self._handle = self._guard.attach(register_optimizer_step_post_hook, hook)
        has_gradients = any(one.grad is not None for one in _parameters(self._optimizer))
        self._drops += is_of_loop and not has_gradients
        if self._batches >= MOST_BATCHES and (self._stepped_instead or self._drops >= _DROPS):
            self._say(f"in {MOST_BATCHES} batches that {self._model} was trained on")

    def epoch_ended(self) -> None:
        """An epoch is over, and no step was made in it; without batches it is none."""
        if self._batches == self._batches_at_end:
            return
        self._batches_at_end = self._batches
        self._epochs += 1
        if self._epochs == 2:  # the one of the first may follow it, where it is made of all batches
            self._say("in two epochs")

    def _say(self, when: str) -> None:
        if self._is_said:
            return
        self._is_said, other = True, self._stepped_instead
        self._on_problem(
            f"the {type_name(self._optimizer)} that the monitor was made with has made no step "
            f"{when}{f', while a {other} stepped parameters of it' if other else ''}: nothing is "
            "concluded without its steps. Make the monitor with the optimizer that the loop "
            f"steps, and anew where another one takes its place{stepped_optimizer()}"
        )

    def was_none(self, optimizer: Optimizer) -> bool:
        """Whether a step can't have trained anything.

        So `torch.distributed.checkpoint.state_dict` has an optimizer make its state.
        """
        return not self._batches and all(one.get("lr") == 0 for one in optimizer.param_groups)

    def step_made(self) -> None:
        """The watched optimizer made a step."""
        self._passes = self._batches = self._batches_at_end = self._drops = self._epochs = 0
        self._latest, self._stepped_instead, self._is_said = None, None, False
        if self._handle is not None:
            self._guard.attachments.remove(self._handle)
            self._handle = None

    def _stepped(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        own = {id(parameter) for parameter in _parameters(self._optimizer)}
        is_other = optimizer is not self._optimizer
        if is_other and any(id(parameter) in own for parameter in _parameters(optimizer)):
            self._stepped_instead = type_name(optimizer)


def _parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
