"""Gradients of all parameters as the paper groups them, over the whole training set.

The public API measures segments at the head and batch by batch. Here they cover all parameters and
all samples, so that what is seen is no scatter of small batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import one_hot

CHUNK = 500
GROUPS = (False, True)
"""Clean, noisy."""


def group_statistics(model: nn.Module, images: Tensor, given: Tensor, true: Tensor) -> dict:
    """Segments of one class and logit, and both groups as a whole.

    `alpha` is the paper's: the noisy segment is −alpha times the clean one, here by projection.
    Numbers of segments are means over classes, the ratio that of the roots of summed squares, as in
    the public API.
    """
    segments, groups = group_gradients(model, images, given, true)
    clean, noisy = segments[:, 0], segments[:, 1]
    product = (clean * noisy).sum(1)
    square = [part.square().sum(1) for part in (clean, noisy)]
    whole = groups.sum(0)
    return {
        "segment_ratio": (square[0].sum() / square[1].sum()).sqrt().item(),
        "segment_cosine": (product / (square[0] * square[1]).sqrt()).mean().item(),
        "alpha": -(product / square[0]).mean().item(),
        "dominance_ratio": (groups[0].norm() / groups[1].norm()).item(),
        "group_cosine": torch.cosine_similarity(*groups, dim=0).item(),
        "noise_share": (groups[1] @ whole / (whole @ whole)).item(),
    }


def group_gradients(
    model: nn.Module, images: Tensor, given: Tensor, true: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of gradients: `[C, 2, P]` of each class's own logit, and `[2, P]` of all logits."""
    parameters = list(model.parameters())
    classes = int(true.max()) + 1
    size = sum(parameter.numel() for parameter in parameters)
    segments, groups = torch.zeros(classes, 2, size), torch.zeros(2, size)
    for label in range(classes):
        for group, wrong in enumerate(GROUPS):
            rows = ((true == label) & ((given != true) == wrong)).nonzero().squeeze(1)
            for part in rows.split(CHUNK):
                logits = model(images[part])
                residual = residuals(logits.detach(), given[part])
                own = own_logit(residual, label)
                segments[label, group] += flat_gradient(logits, parameters, own)
                if logits.shape[1] > 1:
                    groups[group] += flat_gradient(logits, parameters, residual)
    # A single logit is every class's own, and the groups are the sums of their segments.
    return segments, groups if logits.shape[1] > 1 else segments.sum(0)


def residuals(logits: Tensor, given: Tensor) -> Tensor:
    """Derivative of each sample's loss at its logits, `[n, C]`; `[n, 1]` for a single logit."""
    if logits.shape[1] == 1:
        return logits.sigmoid() - given.unsqueeze(1)
    return logits.softmax(1) - one_hot(given, logits.shape[1])


def own_logit(residual: Tensor, label: int) -> Tensor:
    """The residual at one class's logit, 0 elsewhere."""
    if residual.shape[1] == 1:
        return residual
    return residual * one_hot(torch.tensor(label), residual.shape[1])


def flat_gradient(logits: Tensor, parameters: list[nn.Parameter], residual: Tensor) -> Tensor:
    gradients = torch.autograd.grad(logits, parameters, residual, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


# Angles between the gradients of single samples


def angles(
    model: nn.Module, images: Tensor, given: Tensor, true: Tensor, samples: int
) -> dict[str, Tensor]:
    """Angles in degrees between single-logit gradients of samples that truly belong to class 0.

    Args:
        model: The network.
        images: All training images.
        given: Their labels.
        true: Their true classes.
        samples: How many of each group.

    Returns:
        Those of all pairs of clean samples, and of all pairs of a clean and a noisy one.
    """
    wrong = given != true
    chosen = [((true == 0) & (wrong == noisy)).nonzero().squeeze(1)[:samples] for noisy in GROUPS]
    rows = torch.cat(chosen)
    with torch.no_grad():
        residual = residuals(model(images[rows]), given[rows])[:, 0]
    products = sum(
        part.flatten(1) @ part.flatten(1).T for part in logit_gradients(model, images[rows])
    )
    norms = products.diagonal().sqrt()
    signs = residual.sign()
    cosines = products / (norms * norms.unsqueeze(1)) * (signs * signs.unsqueeze(1))
    degrees = cosines.clamp(-1, 1).acos().rad2deg()
    clean = len(chosen[0])
    pairs = torch.ones(clean, clean, dtype=torch.bool).triu(1)
    return {
        "clean_clean": degrees[:clean, :clean][pairs],
        "clean_noisy": degrees[:clean, clean:].flatten(),
    }


def logit_gradients(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Gradient of logit 0 of each sample, parameter by parameter."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def logit(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(model, parameters, (image.unsqueeze(0),))[0, 0]

    each: Callable[..., dict[str, Tensor]] = vmap(grad(logit), (None, 0), chunk_size=50)
    return iter(each(parameters, images).values())
