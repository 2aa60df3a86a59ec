"""Pure: what samples look like and which labels were given, in; what their neighbours say, out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEIGHBOURS = 10
"""How many vote on a sample."""

_ASKED_TO_COMPARE = 1_000
"""Samples whose votes tell which representation is the better one."""

_TOGETHER = 2**23
"""Similarities that are held at a time: 32 MiB."""

_GROUP = 20
"""Samples of which the nearest is found first: the k nearest lie in the k groups of the nearest."""


def best_votes(representations: Sequence[Tensor], label: Tensor, asked: Tensor) -> Tensor:
    """Votes in the representation whose votes agree most with the given labels.

    That needs no truth: labels that neighbours agree on are what a representation can see, and
    wrong ones are as wrong in all of them.

    Args:
        representations: `[n, d]` each; NaN for samples that one of them does not know.
        label: The given labels, integers `[n]`.
        asked: Rows of the samples to vote on, `[m]`.

    Returns:
        int64 `[m]`; −1 where the representation does not know the sample.
    """
    known = [(vectors, vectors.isfinite().all(1)) for vectors in representations]
    most = max(int(rows.sum()) for _, rows in known)
    # One that is known of few samples would be judged by other neighbours.
    known = [(vectors, rows) for vectors, rows in known if 2 * int(rows.sum()) > most]
    some = asked[:: len(asked) // _ASKED_TO_COMPARE + 1]

    def agreement(one: tuple[Tensor, Tensor]) -> float:
        vote = votes_among(one[0], one[1], label, some)
        return (vote == label[some])[vote >= 0].double().mean().nan_to_num(nan=0.0).item()

    best = max(known, key=agreement) if len(known) > 1 else known[0]
    return votes_among(best[0], best[1], label, asked)


def votes_among(vectors: Tensor, known: Tensor, label: Tensor, asked: Tensor) -> Tensor:
    """Votes by the samples that are known; −1 on others.

    Args:
        vectors: What samples look like, `[n, d]`.
        known: Which of them count, bool `[n]`.
        label: The given labels, integers `[n]`.
        asked: Rows of the samples to vote on, `[m]`.
    """
    (rows,) = torch.where(known)
    place = torch.full_like(known, -1, dtype=torch.int64)
    place[rows] = torch.arange(len(rows), device="cpu")
    found = torch.full_like(asked, -1)
    can_be_asked = known[asked]
    found[can_be_asked] = neighbour_votes(vectors[rows], label[rows], place[asked[can_be_asked]])
    return found


def neighbour_votes(
    vectors: Tensor, label: Tensor, asked: Tensor, neighbours: int = NEIGHBOURS
) -> Tensor:
    """The label given to most of the nearest other samples; of several, that of the nearer ones.

    Args:
        vectors: What samples look like, `[n, d]`, finite.
        label: The given labels, integers `[n]`.
        asked: Rows of the samples to vote on, `[m]`.
        neighbours: How many others vote, or all of them where there are fewer.

    Returns:
        int64 `[m]`; −1 for a sample without any other.
    """
    votes = min(neighbours, len(vectors) - 1)
    if votes < 1 or not len(asked):
        return torch.full((len(asked),), -1, dtype=torch.int64, device="cpu")
    group = _GROUP if len(vectors) >= 2 * _GROUP * votes else 1
    filled = torch.nn.functional.pad(comparable(vectors), (0, 0, 0, -len(vectors) % group))
    together = min(max(_TOGETHER // len(filled), 1), len(asked))
    memory = filled.new_empty(together, len(filled))  # one piece: freed ones are not all used again
    found = []
    for rows in asked.split(together):
        likeness = torch.mm(filled[rows], filled.T, out=memory[: len(rows)])
        likeness[:, len(vectors) :] = -torch.inf
        likeness.scatter_(1, rows[:, None], -torch.inf)  # itself
        found.append(_majority(label[_largest(likeness, votes, group)]))
    return torch.cat(found)


def comparable(vectors: Tensor) -> Tensor:
    """The metric: vectors whose inner products say how alike samples are, `[n, d]`.

    The products are cosines of what sets the samples apart from their mean.
    """
    return torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)


def _largest(values: Tensor, count: int, group: int) -> Tensor:
    """Columns of the largest values in each row, the largest first, `[m, count]`.

    The sorting is in the groups that hold the largest only, which makes it cheap.
    """
    groups = values.shape[1] // group
    by_group = values.view(len(values), group, groups)
    best = by_group.amax(1).topk(count).indices
    within = by_group.gather(2, best[:, None].expand(-1, group, -1)).flatten(1)
    place = within.topk(count).indices
    return best.gather(1, place % count) + place // count * groups


def _majority(labels: Tensor) -> Tensor:
    """The most frequent label of each row, `[m]`; of several, the first one."""
    count = (labels[:, :, None] == labels[:, None]).sum(2)
    order = torch.arange(labels.shape[1], device="cpu")
    first = (count * len(order) - order).argmax(1)
    return labels.gather(1, first[:, None]).squeeze(1).long()
