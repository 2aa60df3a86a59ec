"""Per-sample gradients of a plain model by the formulas of Opacus. Import it only if it is needed.

Opacus' own hooks are full backward hooks, which raise in a model with in-place activations, keep
their state on the parameters, and lose count at a forward pass without a backward pass. These are
tensor hooks with no state outside: what a layer was called with lives as long as its graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import prepare_layer
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn

from ...capture.hooks import Guard, Handle, Hook, ModuleHook
from ...errors import is_from_signal, may_pass

Samples = dict[nn.Parameter, Tensor]
"""Parameter -> gradients of the samples of one forward pass, `[B, *shape]`."""


class LayerSamples:
    """Hooks on the layers of a model, while it is attached.

    Args:
        model: The model that the loop calls.
        guard: What all hooks of the monitor share.
        on_failure: Called with a layer that can't be measured, and why.
    """

    def __init__(
        self,
        model: nn.Module,
        guard: Guard,
        on_failure: Callable[[nn.Module, Exception], None],
    ) -> None:
        self._model = model
        self._guard = guard
        self._on_failure = on_failure
        self._handles: list[Handle] = []
        self._current: Samples | None = None

    def begin(self) -> Samples:
        """A forward pass begins; what is returned fills up in its backward pass."""
        if not self._handles:
            hook = ModuleHook(self._called, self._guard)
            self._handles = [
                self._guard.attach(layer.register_forward_hook, hook, with_kwargs=True)
                for layer in _layers(self._model)
            ]
        self._current = {}
        return self._current

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            self._guard.attachments.remove(handle)
        self._handles, self._current = [], None

    def _called(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        is_tracked = isinstance(output, Tensor) and output.requires_grad
        if self._current is None or not (is_tracked and torch.is_grad_enabled()):
            return
        inputs = [
            value.detach() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
        ]
        arrived = functools.partial(self._arrived, layer, inputs, self._current)
        output.register_hook(Hook(arrived, self._guard))

    def _arrived(
        self, layer: nn.Module, inputs: list[Tensor], samples: Samples, gradient: Tensor
    ) -> None:
        if not self._handles:
            return
        try:
            found = _gradients(layer, inputs, gradient.detach())
        except Exception as error:
            if may_pass(error) or is_from_signal(error):
                raise
            self._on_failure(layer, error)
            return
        for parameter, rows in found.items():
            if parameter.requires_grad:
                samples[parameter] = _added(samples.get(parameter), rows)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that Opacus treats as one, as it chooses them itself."""
    has_own = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    # A recurrent layer of Opacus shows the weights of its cells as its own; they do the work.
    if has_own and type(module) not in (DPRNN, DPLSTM, DPGRU):
        yield module
        if type(module) not in GradSampleModule.GRAD_SAMPLERS:
            return
    for child in module.children():
        yield from _layers(child)


def _gradients(layer: nn.Module, inputs: list[Tensor], gradient: Tensor) -> Samples:
    dtype = next(layer.parameters()).dtype  # half precision under autocast is undone
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    gradient = gradient.to(dtype)
    formula = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
        if formula is not None:
            return formula(layer, inputs, gradient)  # type: ignore[no-any-return]
        return _mapped(layer, inputs[0], gradient)


def _mapped(layer: nn.Module, features: Tensor, gradient: Tensor) -> Samples:
    prepare_layer(layer, batch_first=True)
    compute = vars(layer).pop("ft_compute_sample_grad")
    parameters = list(layer.parameters())
    return dict(zip(parameters, compute(parameters, features, gradient), strict=True))


def _added(earlier: Tensor | None, rows: Tensor) -> Tensor:
    """A layer that is called several times in a pass, as in a recurrent network."""
    if earlier is None:
        return rows
    if len(rows) > len(earlier):
        earlier, rows = rows, earlier
    earlier = earlier.clone()
    earlier[: len(rows)] += rows
    return earlier
