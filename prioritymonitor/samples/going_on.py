"""Pure: whether a training may go on without the suspects."""

from __future__ import annotations

from torch import Tensor


def why_not_go_on(score: Tensor, given_label: Tensor, rival: Tensor, vote: Tensor) -> str | None:
    return None
