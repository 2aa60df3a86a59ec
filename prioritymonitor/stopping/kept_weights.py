"""The kept weights: a running average, and what it was after the epochs that may be best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import ArgumentValueError, PriorityMonitorError
from ..loaded import check_has_numbers, damaged, exactly, mapping, number

AVERAGED_EPOCHS = 1.3
"""Horizon of the exponential average, in epochs of optimizer steps."""

HELD_BACK = 1
"""Epochs that the best one may lie back when it is found: it is the middle one of three."""

_UPDATES_PER_EPOCH = 20
"""How often the average is brought up to date; more often costs time and changes nothing."""

_HALF = (torch.float16, torch.bfloat16)

Weights = dict[str, Tensor]


class WeightKeeper:
    """Keeps the trainable parameters and buffers of a model as they were after the best epoch.

    Memory: the average on the device of the model (one model, if `averaged`), and in host memory
    one model for each of the last two epochs and of those kept, where they are others. Only
    parameters that require a gradient and buffers count as the model.

    Args:
        model: The model.
        averaged: Keep the running average; False: the weights as the optimizer left them.
    """

    def __init__(self, model: nn.Module, averaged: bool) -> None:
        self.kept: tuple[int, ...] = ()
        """The epochs whose weights are kept, the likeliest to be the best one first."""
        self._model = model
        self._averaged = averaged
        self._held: dict[int, Weights] = {}
        """Weights by epoch: of the latest ones and of the one that is kept."""
        self._average: Weights = {}
        self._steps = 0
        """Optimizer steps in the average."""
        self._steps_behind = 0
        self._steps_in_epoch = 0
        self._expected_steps = 1.0
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] | None = None
        self._frozen = False

    def update(self, expected_steps: float) -> None:
        """Count an optimizer step, and take its weights into the average if it is time.

        Args:
            expected_steps: How many optimizer steps an epoch has.
        """
        self._steps_in_epoch += 1
        self._steps_behind += 1
        self._expected_steps = expected_steps
        if self._steps_behind >= expected_steps / _UPDATES_PER_EPOCH:
            self._catch_up()

    @torch.no_grad()
    def _catch_up(self) -> None:
        behind, self._steps_behind = self._steps_behind, 0
        if not self._averaged or self._frozen or not behind:
            return
        if self._pairs is None:
            self._pairs = self._pair_up()
        horizon = max(AVERAGED_EPOCHS * self._expected_steps, 1.0)
        warm_up = (1 + self._steps) / (10 + self._steps)
        decay = min(1 - 1 / horizon, warm_up) ** behind
        average = get_ema_multi_avg_fn(decay)
        for averages, currents in self._pairs:
            if averages[0].dtype != currents[0].dtype:
                currents = [current.to(averages[0].dtype) for current in currents]
            if averages[0].is_floating_point():
                average(averages, currents, self._steps)
            else:
                torch._foreach_copy_(averages, currents)
        self._steps += behind

    def _pair_up(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Averages and the weights that go into them, in groups that one operation may take."""
        groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for name, current in _weights(self._model).items():
            # Half precision would round small steps of the average away.
            dtype = torch.float32 if current.dtype in _HALF else current.dtype
            if name not in self._average:
                self._average[name] = current.detach().to(dtype, copy=True)
            average = self._average[name] = self._average[name].to(current.device)
            mesh = getattr(current, "device_mesh", None)  # of a DTensor
            averages, currents = groups[(current.device, current.dtype, mesh)]
            averages.append(average)
            currents.append(current)  # the parameter itself: its data may be exchanged
        return list(groups.values())

    def end_epoch(self) -> int:
        """Bring the average up to date.

        Returns:
            How many optimizer steps were made since the last call.
        """
        self._catch_up()
        steps, self._steps_in_epoch = self._steps_in_epoch, 0
        self._pairs = None  # parameters may be frozen, unfrozen or moved between epochs
        return steps

    @property
    def weights(self) -> Weights | None:
        """The average; empty where the model's own are meant, None where it is frozen."""
        return None if self._averaged and self._frozen else dict(self._average)

    def hold(self, epoch: int) -> None:
        """Hold the weights as they are now, as those of this epoch, until it lies too far back."""
        if self._frozen:
            return
        weights = self._average if self._averaged else _weights(self._model)
        if weights:
            self._held[epoch] = {
                name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()
            }
        wanted = {*range(epoch - HELD_BACK, epoch + 1), *self.kept}
        self._held = {one: held for one, held in self._held.items() if one in wanted}

    def keep(self, *epochs: int) -> None:
        """Keep the weights of these epochs and of no others, if any of them are still held."""
        found = tuple(epoch for epoch in epochs if epoch in self._held)
        if found and not self._frozen:
            self.kept = found

    def has(self, epoch: int | None) -> bool:
        """Whether the weights of an epoch are there."""
        return epoch in self._held

    def freeze(self) -> None:
        """Average no more, from now on; only the weights that are kept stay."""
        self._average, self._pairs, self._frozen = {}, None, True
        self._held = {one: held for one, held in self._held.items() if one in self.kept}

    @torch.no_grad()
    def restore(self, epoch: int) -> None:
        """Put the weights of an epoch into the model, all or none.

        Raises:
            PriorityMonitorError: The model has other weights than it had.
        """
        held = self._held[epoch]
        current = dict(self._model.named_parameters()) | dict(self._model.named_buffers())
        for name, kept in held.items():
            if name not in current or current[name].shape != kept.shape:
                found = list(current[name].shape) if name in current else "no such weight"
                raise PriorityMonitorError(
                    f"got a model in which {name} is {found}, and kept weights of shape "
                    f"{list(kept.shape)}; restore_best() before you change the model's layers. "
                    "The model was left as it is"
                )
        for name, kept in held.items():
            current[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types; the names besides, so that none can get lost."""
        average = {name: tensor.cpu().clone() for name, tensor in self._average.items()}
        return {
            "kept": list(self.kept),
            "held": {epoch: dict(weights) for epoch, weights in self._held.items()},
            "held_names": {epoch: list(weights) for epoch, weights in self._held.items()},
            "average": average,
            "average_names": list(average),
            "steps": self._steps,
            "steps_behind": self._steps_behind,
            "steps_in_epoch": self._steps_in_epoch,
            "expected_steps": self._expected_steps,
            "frozen": self._frozen,
        }

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is damaged, or of another model.
        """
        names = mapping(mapping(state)["held_names"])
        kept = tuple(exactly(epoch, int) for epoch in exactly(state["kept"], list))
        held = {
            exactly(epoch, int): self._checked(weights, names[epoch])
            for epoch, weights in mapping(state["held"]).items()
        }
        if not held.keys() >= {*kept}:
            raise damaged("the kept weights are missing")
        average = self._checked(state["average"], state["average_names"])
        frozen = exactly(state["frozen"], bool)
        if average and (frozen or not self._averaged):
            raise ArgumentValueError(
                "got a state with an average of the weights; make the monitor with the same "
                "keep_best as the one that saved it"
            )
        loaded = {
            "_held": {n: {k: one.cpu() for k, one in some.items()} for n, some in held.items()},
            "_average": {name: tensor.clone() for name, tensor in average.items()},
            "_steps": exactly(state["steps"], int),
            "_steps_behind": exactly(state["steps_behind"], int),
            "_steps_in_epoch": exactly(state["steps_in_epoch"], int),
            "_expected_steps": number(float(exactly(state["expected_steps"], int, float)), 1, 1e9),
            "_frozen": frozen,
            "_pairs": None,
        }
        return lambda: vars(self).update(loaded, kept=kept)

    def _checked(self, weights: Weights, names: Any) -> Weights:
        """Weights of these names, if the model has all of them."""
        current = dict(self._model.named_parameters()) | dict(self._model.named_buffers())
        for name, tensor in mapping(weights).items():
            check_has_numbers(tensor)
            own = current.get(name)
            if own is None or own.shape != tensor.shape or not _fits(tensor, own):
                raise ArgumentValueError(
                    f"got the state of a model with a weight {str(name)[:100]} of shape "
                    f"{list(tensor.shape)} and {tensor.dtype}, which this one has not; resume with "
                    "the same model"
                )
        if {*weights} != {*exactly(names, list)}:
            raise damaged("some of the kept weights are missing")
        return {name: tensor.detach() for name, tensor in weights.items()}


def _fits(weight: Tensor, current: Tensor) -> bool:
    """Whether its type is that of the model, or of an average of it."""
    is_average = current.dtype in _HALF and weight.dtype == torch.float32
    return is_average or weight.dtype == current.dtype


def _weights(model: nn.Module) -> Weights:
    """Trainable parameters and the buffers that a checkpoint would hold, by name."""
    saved = model.state_dict(keep_vars=True)
    weights: Weights = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    for name, buffer in model.named_buffers():
        # An infinite mask would turn into NaN in an average, and it never changes.
        if name in saved and (not buffer.is_floating_point() or bool(buffer.isfinite().all())):
            weights[name] = buffer
    return weights
