"""The weights that the training began with, and the features that they give of a batch."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ArgumentValueError, PriorityMonitorError
from ..loaded import check_has_numbers, exactly, mapping
from .eager import LayerCall
from .head import giver_in, is_linear
from .parameters import is_distributed
from .rerun import is_autocast, unchanged_randomness, unwrapped, without_trace

_MOST_BYTES = 2**31
"""Of a copy of the weights; one of a larger model might take the memory that the training needs."""


class InitialWeights:
    """A copy of the weights as they are at the first training pass, until it is forgotten.

    A deep copy of the model would be less sure: what a module refers to (a trainer, a loader, a
    lock) is copied along or can't be, and compiled parts stay compiled. So the model itself is run,
    as it was written, with the copy in place of its weights; nothing of that stays in it.

    Args:
        model: The model that the loop calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self.why_none: str | None = None
        """Why there are no features; None if there are, or may be."""
        self.called = model
        """What is called: the model, or a part of it."""
        self.model = model
        self._weights: dict[str, Tensor] = {}
        self._head: nn.Module | None = None
        """Found in a pass of ours, where training passes hide it."""

    def remember(self) -> None:
        """Copy the weights as they are, unless that was done or there can't be features."""
        if self._weights or self.why_none is not None:
            return
        own = _weights(self.model)
        size = sum(one.numel() * one.element_size() for one in own.values())
        if any(map(is_distributed, own.values())) or _is_wrapped_by_fsdp(self.model):
            self.why_none = "parameters are spread over ranks, and a pass of one rank would wait"
        elif size > _MOST_BYTES:
            self.why_none = f"a copy of the initial weights would take {size / 2**30:.1f} GiB"
        else:
            self._weights = {name: one.detach().clone() for name, one in own.items()}

    def forget(self, why: str | None = None) -> None:
        """Free the copy.

        Args:
            why: Why there are no features from here on.
        """
        self._weights, self._head, self.why_none = {}, None, why or self.why_none

    def features(self, head: nn.Module | None, args: Any, kwargs: Any) -> Tensor:
        """Input of the head in a pass in evaluation mode.

        Args:
            head: Gives the logits; None if that is not known.
            args: What the model is called with; it may change them.
            kwargs: The same.

        Raises:
            PriorityMonitorError: No linear layer of the model gives its logits.
        """
        module, weights = unwrapped(self.called), self._of_called()
        device = next(module.parameters()).device
        is_half = is_autocast(device.type)
        head = head or self._head
        layers = [head] if head else [one for one in module.modules() if is_linear(one)]
        calls: list[LayerCall] = []

        def called(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            calls.append(LayerCall(layer, args[0] if args else kwargs["input"], output))

        # A buffer may be written to in any pass.
        buffers = {name: weights[name].clone() for name, _ in module.named_buffers()}
        with unchanged_randomness(device), without_trace(module, device):
            for inner in module.modules():
                vars(inner)["training"] = False  # `eval()` may be the user's own
            for layer in layers:
                layer.register_forward_hook(called, with_kwargs=True)
            with torch.autocast(device.type, enabled=is_half):
                output = functional_call(module, weights | buffers, args, kwargs)
        # A compiled model with dropout, or one that adds noise in training, shows it only now.
        self._head = head or giver_in(output, calls)
        found = [one.features for one in calls if one.layer is self._head]
        if not found:
            raise PriorityMonitorError(
                "no linear layer was found that gives the logits; pass head="
            )
        return found[-1]  # of a head that is called twice, the last call counts

    def _of_called(self) -> dict[str, Tensor]:
        if self.called is self.model:
            return self._weights
        names = {id(one): name for name, one in _weights(self.model).items()}
        of_part = _weights(self.called).items()
        return {name: self._weights[names[id(one)]] for name, one in of_part}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        weights = {name: one.cpu().clone() for name, one in self._weights.items()}
        return {"weights": weights, "why_none": self.why_none}

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is damaged, or of another model.
        """
        weights, own = mapping(mapping(state)["weights"]), _weights(self.model)
        if weights and weights.keys() != own.keys():
            raise ArgumentValueError(
                "got the initial weights of a model with other layers; resume with the same model"
            )
        for name, one in weights.items():
            check_has_numbers(one)
            if (one.dtype, one.shape) != (own[name].dtype, own[name].shape):
                raise ArgumentValueError(
                    f"got an initial weight {name} of shape {list(one.shape)} and {one.dtype}, "
                    f"which this model has not; resume with the same model"
                )
        why_none = exactly(state["why_none"], str, NoneType)
        here = {name: one.detach().to(own[name].device, copy=True) for name, one in weights.items()}

        def resume() -> None:
            self.why_none, self._weights = why_none, here

        return resume


def _weights(model: nn.Module) -> dict[str, Tensor]:
    module = unwrapped(model)
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _is_wrapped_by_fsdp(model: nn.Module) -> bool:
    """Whether the first version of FSDP gathers the weights in its own forward passes."""
    return any(type(one).__name__ == "FullyShardedDataParallel" for one in model.modules())
