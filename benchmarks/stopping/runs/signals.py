"""What the rivals look at, measured while a run trains."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Columns = dict[str, Tensor]

_DISPARITY_BATCHES = 5
_CHUNK = 16
_MOST_NUMBERS = 2**25
"""Of the gradients of a chunk of samples."""
_FEW = 16


def of_visits(logits: Tensor, labels: Tensor, features: Tensor, head: nn.Linear) -> Columns:
    """What is known of each sample of a batch before the update, `[B]` each.

    Logits and features as the training pass made them, `[B, C]` and `[B, D]`; the head as the
    update left it, which only the alignment of GWA looks at.
    """
    own = labels.unsqueeze(1)
    probability = logits.softmax(1)
    others = logits.scatter(1, own, -torch.inf)
    margins = [
        values.gather(1, own).squeeze(1) - values.scatter(1, own, -torch.inf).amax(1)
        for values in (probability, logits)
    ]
    residual = probability.scatter_add(1, own, -torch.ones_like(own, dtype=logits.dtype))
    size = residual.norm(dim=1)
    weight, bias = head.weight.detach(), head.bias.detach()
    along = -(residual * (logits - bias)).sum(1)
    products = (residual @ residual.T) * (features @ features.T + 1)
    alone = products.diagonal()
    return {
        "loss": nn.functional.cross_entropy(logits, labels, reduction="none"),
        "margin": margins[0],
        "logit_margin": margins[1],
        "el2n": size,
        "predicted": logits.argmax(1),
        "rival": others.argmax(1),
        "alignment": along / (size * features.norm(dim=1) * weight.norm() + 1e-12),
        "alone": alone,
        "together": (products.sum(1) - alone) / len(labels),
    }


def of_groups(logits: Tensor, labels: Tensor, features: Tensor, noisy: Tensor) -> Tensor:
    """Products of the clean and the noisy group's head gradients, `[5]`.

    `<G_c, G_c>`, `<G_c, G_n>`, `<G_n, G_n>`, and the parts of the first and third with i = j.
    """
    residual = logits.softmax(1)
    residual = residual.scatter_add(
        1, labels.unsqueeze(1), -torch.ones_like(labels, dtype=logits.dtype).unsqueeze(1)
    )
    products = (residual @ residual.T) * (features @ features.T + 1)
    group = torch.stack((~noisy, noisy)).float()
    sums, diagonal = group @ products @ group.T, group @ products.diagonal()
    return torch.stack((sums[0, 0], sums[0, 1], sums[1, 1], *diagonal)) / len(labels) ** 2


def of_parameters(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int) -> dict[str, float]:
    """Signals from the gradients of all parameters at the end of an epoch.

    Args:
        model: Copied, so that its buffers and gradients stay as they are.
        inputs: Training inputs `[n, D]`.
        labels: Given labels `[n]`.
        batch: Size of the training batches.
    """
    drawn = torch.randperm(len(labels))[: _DISPARITY_BATCHES * batch].split(batch)
    gradients = [_rescaled_gradient(model, inputs[one], labels[one]) for one in drawn]
    distances = [(one - other).norm() for one, other in combinations(gradients, 2)]
    first = drawn[0][:_FEW] if _is_large(model) else drawn[0]
    total, squares = _moments(model, inputs[first], labels[first])
    count = len(first)
    mean = total / count
    variance = (squares / count - mean**2) * count / (count - 1)
    return {
        "gradient_disparity": torch.stack(distances).mean().item(),
        "evidence": (1 - count * (mean**2 / (variance + 1e-5)).mean()).item(),
        "coherence": ((total**2).sum() / squares.sum()).item(),
    }


def _rescaled_gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean loss in units of the batch's standard deviation of losses."""
    parameters = {name: p.detach().requires_grad_() for name, p in _trained(model).items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits = functional_call(model, (parameters, buffers), (inputs,))
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    gradients = torch.autograd.grad((loss / loss.std()).mean(), list(parameters.values()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def _moments(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares of the per-sample gradients, `[P]` each.

    In evaluation mode: with batch statistics the gradient of a single sample is not defined.
    """
    parameters = {name: p.detach() for name, p in _trained(model).items()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], input: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, buffers), (input.unsqueeze(0),))
        return nn.functional.cross_entropy(logits, label.unsqueeze(0))

    # Few networks of this size can be mapped over samples.
    by_sample = _one_by_one(grad(loss)) if _is_large(model) else vmap(grad(loss), (None, 0, 0))
    was_training = model.training
    model.eval()
    total, squares = torch.zeros(()), torch.zeros(())
    for some, theirs in zip(inputs.split(_CHUNK), labels.split(_CHUNK), strict=True):
        gradients = by_sample(parameters, some, theirs)
        flat = torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)
        total, squares = total + flat.sum(0), squares + flat.square().sum(0)
    model.train(was_training)
    return total, squares


def _one_by_one(gradients: Callable[..., Columns]) -> Callable[..., Columns]:
    def of_samples(parameters: Columns, inputs: Tensor, labels: Tensor) -> Columns:
        each = [gradients(parameters, *one) for one in zip(inputs, labels, strict=True)]
        return {name: torch.stack([one[name] for one in each]) for name in parameters}

    return of_samples


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _is_large(model: nn.Module) -> bool:
    return _CHUNK * sum(p.numel() for p in _trained(model).values()) > _MOST_NUMBERS
