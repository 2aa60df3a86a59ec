"""What the layers of a compiled model see: it is run once more, as it was written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .hooks import Guard, ModuleHook
from .private import gathers_parameters, has_own_graph
from .rerun import RandomState, is_autocast, unchanged_randomness, unwrapped, without_trace


class LayerCall(NamedTuple):
    """A layer, its input and its output, detached."""

    layer: Any
    features: Tensor
    output: Tensor


class SecondRun(NamedTuple):
    """A forward pass that was run once more."""

    output: Any
    calls: list[LayerCall]


class EagerRerun:
    """A model that may be compiled, now or later; compiled layers call no hooks.

    Args:
        model: The model that the loop calls.
        guard: Times the hooks, and gets any exception of ours.
    """

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._begun: RandomState | None = None
        hook = ModuleHook(self.pass_begins, guard)
        self._handle = guard.attach(model.register_forward_pre_hook, hook)
        self._attachments = guard.attachments

    def close(self) -> None:
        """Leave the model as it was found."""
        self._attachments.remove(self._handle)

    def pass_begins(self, model: nn.Module, args: Any) -> None:
        """A forward pass begins, which may have to be run again."""
        is_followed = torch.is_grad_enabled() and any(map(has_own_graph, self._modules))
        self._begun = RandomState.now(_device(model)) if is_followed else None

    def run_again(self, args: Any, kwargs: Any, layers: Iterable[nn.Module]) -> SecondRun | None:
        """Run the pass that just ended once more, without a trace and without gradients.

        Args:
            args: What the model was called with.
            kwargs: The same.
            layers: Those to look at.

        Returns:
            None if the model is not compiled, or can't be run again, as where ranks exchange
            something in each pass: one without a monitor would not come.
        """
        if self._begun is None:
            return None
        module, device = unwrapped(self._model), _device(self._model)
        if _exchanges_in_passes(module):
            return None
        is_half = is_autocast(device.type)
        calls: list[LayerCall] = []

        def called(layer: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            features = args[0] if args else kwargs["input"]
            calls.append(LayerCall(layer, features, output))

        try:
            with unchanged_randomness(device), without_trace(module, device):
                handles = [x.register_forward_hook(called, with_kwargs=True) for x in layers]
                self._begun.restore()
                buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
                with torch.autocast(device.type, enabled=is_half):
                    output = functional_call(module, buffers, args, kwargs)
                for handle in handles:
                    handle.remove()
        except Exception:  # some models can't be run twice; their head is not measured then
            return None
        return SecondRun(output, calls)


def _exchanges_in_passes(model: nn.Module) -> bool:
    """True if a pass in the mode that the model is in waits for other ranks."""
    norms = (one for one in model.modules() if isinstance(one, nn.SyncBatchNorm))
    return gathers_parameters(model) or any(one.training for one in norms)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
