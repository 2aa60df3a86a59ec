"""What the samples of a run look like to a network that saw no label, as the monitor sees it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prioritymonitor.capture.projection import Projection

_TOGETHER = 250


def representation(model: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs and features under the weights of now, each projected to 64 numbers, `[n, 2, 64]`.

    NaN where inputs are no floating point numbers, as tokens.
    """
    features = _projected(_features(model, head, inputs))
    if inputs.is_floating_point():
        return torch.stack((_projected(inputs), features), 1)
    return torch.stack((torch.full_like(features, torch.nan), features), 1)


@torch.no_grad()
def _features(model: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
    """Input of the head in evaluation mode, `[n, D]`."""
    found: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, given, output: found.append(given[0]))
    model.eval()
    for some in inputs.split(_TOGETHER):
        model(some)
    model.train()
    hook.remove()
    return torch.cat(found)


def _projected(rows: Tensor) -> Tensor:
    """As the monitor does it, by the first batch; here by the first of the data set."""
    projection = Projection()
    return torch.cat([projection(some) for some in rows.float().split(_TOGETHER)])
