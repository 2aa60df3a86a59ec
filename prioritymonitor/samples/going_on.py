"""Pure: whether a training may go on without the suspects."""

from __future__ import annotations

from torch import Tensor

LEAST_CONTRADICTED = 0.1
"""Share of the labels that must be suspects whose neighbours say what the network says."""


def why_not_go_on(score: Tensor, rival: Tensor, vote: Tensor) -> str | None:
    """Why leaving the suspects out may harm; None if it is known to help.

    Some labels are contradicted by network and neighbours alike where none is wrong: those of hard
    samples, which a training needs most. Where wrong labels follow a pattern, both follow it too,
    and contradict few of them. In both cases the suspects are not the wrong labels.

    Args:
        score: How likely each label is wrong, `[n]`.
        rival: The class that the network holds most probable instead, integers `[n]`.
        vote: What the neighbours say, integers `[n]`; −1 where they were not asked.
    """
    asked = vote >= 0
    if not asked.any():
        return "neighbours don't vote, and without them suspects may just be hard samples"
    share = ((score > 0.5) & (vote == rival))[asked].double().mean().item()
    if share >= LEAST_CONTRADICTED:
        return None
    return (
        f"network and neighbours agree on another class for {share:.1%} of the labels only; below "
        f"{LEAST_CONTRADICTED:.0%}, suspects are mostly hard samples or few of the wrong labels"
    )
