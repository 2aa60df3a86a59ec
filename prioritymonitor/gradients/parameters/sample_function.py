"""The model as a function of one sample, and its gradients for all samples of a micro-batch."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from ...capture.head import logits_in
from ...errors import PriorityMonitorError


@dataclass(frozen=True)
class SampleFunction:
    """The logits of one sample as a function of the parameters.

    Args:
        module: The model.
        parameters: Those to differentiate by, detached.
        args: What the model was called with, B samples. Tensors of B rows are taken sample by
            sample, everything else is shared by the samples.
        kwargs: The same.
        logits_at: Which of `logits_in(output)` the logits are.
    """

    module: nn.Module
    parameters: dict[str, Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    logits_at: int

    def mapped(self, residual: Tensor, part: slice) -> dict[str, Tensor]:
        """Gradients of some samples, all at once.

        Args:
            residual: Gradient of each sample's loss at its logits, `[B, ...]`.
            part: Which b of the samples.

        Returns:
            Parameter name -> `[b, *shape]`.
        """
        leaves, dims, spec = self._flattened(len(residual))
        rows = [leaf if dim is None else leaf[part] for leaf, dim in zip(leaves, dims, strict=True)]
        wanted = residual[part]

        def of_one(sample: list[Any], wanted: Tensor, expanded: dict[str, Tensor]) -> Any:
            one = [_with_row(leaf, dim) for leaf, dim in zip(sample, dims, strict=True)]
            args, kwargs = pytree.tree_unflatten(one, spec)

            def logits_of(parameters: dict[str, Tensor]) -> Tensor:
                return self._logits(parameters, args, kwargs, wanted.shape)

            logits, pull, *_ = vjp(logits_of, self.parameters | expanded)
            return pull(wanted.to(logits.dtype))[0]

        of_all = vmap(of_one, in_dims=(dims, 0, 0), randomness="different")
        return of_all(rows, wanted, self._expanded(len(wanted)))  # type: ignore[no-any-return]

    def one_by_one(self, residual: Tensor, part: slice) -> dict[str, Tensor]:
        """The same by plain autograd, which takes a pass of its own for each sample."""
        leaves, dims, spec = self._flattened(len(residual))
        found: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        for place in range(len(residual))[part]:
            row = slice(place, place + 1)
            one = [leaf if d is None else leaf[row] for leaf, d in zip(leaves, dims, strict=True)]
            args, kwargs = pytree.tree_unflatten(one, spec)
            leaf = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
            wanted = residual[place]
            with torch.enable_grad():
                logits = self._logits(leaf, args, kwargs, wanted.shape)
            of_sample = torch.autograd.grad(
                logits, list(leaf.values()), wanted.to(logits.dtype), allow_unused=True
            )
            for name, gradient in zip(leaf, of_sample, strict=True):
                found[name].append(torch.zeros_like(leaf[name]) if gradient is None else gradient)
        return {name: torch.stack(gradients) for name, gradients in found.items()}

    def _flattened(self, count: int) -> tuple[list[Any], list[int | None], Any]:
        """Arguments, 0 for those that have a row for each sample, and how to put them together."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        return leaves, [0 if _has_rows(leaf, count) else None for leaf in leaves], spec

    def _logits(
        self, parameters: dict[str, Tensor], args: Any, kwargs: Any, shape: torch.Size
    ) -> Tensor:
        # What a forward pass does to its buffers must be lost.
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        output = functional_call(self.module, parameters | buffers, args, kwargs)
        logits = logits_in(output)[self.logits_at]
        if logits.shape != (1, *shape):
            raise PriorityMonitorError(
                f'engine="func" got logits of shape {list(logits.shape)} for one sample, where the '
                f"batch gave {list(shape)} for each; an argument of the model has its samples in "
                'another dimension than the first; use engine="closed_form"'
            )
        return logits.squeeze(0)

    def _expanded(self, count: int) -> dict[str, Tensor]:
        """Weights of recurrent layers, one view for each sample.

        These layers start from a state without samples and change it in place, which can't be
        mapped unless what is added to it has no samples dimension or the state has; with such
        weights it has.
        """
        names = {
            f"{layer}.{name}" if layer else name
            for layer, module in self.module.named_modules()
            if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
            for name, _ in module.named_parameters()
        }
        return {
            name: parameter.expand(count, *parameter.shape)
            for name, parameter in self.parameters.items()
            if name in names
        }


def _has_rows(argument: Any, count: int) -> bool:
    return isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == count


def _with_row(argument: Any, dim: int | None) -> Any:
    return argument if dim is None else argument.unsqueeze(0)


def where_it_failed(error: Exception, model: nn.Module) -> str:
    """What went wrong in which layer, for the user."""
    names = {id(module): name for name, module in model.named_modules()}
    layer = f"the model ({type(model).__name__})"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            layer = f"{names[id(owner)]} ({type(owner).__name__})"
    cause = str(error).strip().split("\n")[0]
    if "data-dependent control flow" in cause:
        cause = "its forward pass depends on the values of a tensor"
    return f"{layer} can't be mapped over samples: {cause[:200]}"
