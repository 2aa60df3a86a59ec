"""What goes wrong while measuring: counted on the device, judged once per epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Batch

_MOST_UNEXPLAINED = 1e-3
"""Share of the logits' gradient above which the loss is not what we take it for."""


class Health:
    """Counts without waiting for the device.

    Args:
        has_criterion: Whether the loss was passed in, so that it need not be recognised.
        has_named_head: Whether the head was passed in.
        has_identity: Whether batches ought to be traced to samples.
    """

    def __init__(self, *, has_criterion: bool, has_named_head: bool, has_identity: bool) -> None:
        self._has_criterion = has_criterion
        self._has_named_head = has_named_head
        self._has_identity = has_identity
        self._seen_any = False
        self._seen_step = False
        self._batches = 0
        self._untraced = 0
        self._tally: Tensor | None = None

    def add(self, batch: Batch) -> list[str]:
        """Take micro-batches into account.

        Returns:
            Problems to tell, at the first one.

        Raises:
            ValueError: At the first one, if its loss or labels can't be measured; it waits for the
                device.
        """
        self._batches += len(batch.finite)
        self._untraced += len(batch.finite) if batch.index is None else 0
        flags = torch.stack((~batch.finite, ~batch.in_range)).sum(1).to(batch.misfit.dtype)
        if self._tally is None:
            self._tally = torch.zeros(3, dtype=flags.dtype, device=flags.device)
        self._tally[:2] += flags
        self._tally[2] = torch.maximum(self._tally[2], batch.misfit.max())
        if self._seen_any:
            return []
        self._seen_any = True
        return self._judge(*self._tally[1:].tolist())

    def end_epoch(self, epoch: int) -> list[str]:
        """Close an epoch.

        Returns:
            Problems to tell.

        Raises:
            ValueError: What was measured can't be trusted.
        """
        if self._tally is None:
            return []
        not_finite, out_of_range, misfit = self._tally.tolist()
        batches, untraced = self._batches, self._untraced
        self._batches, self._untraced, self._tally = 0, 0, None
        problems = self._judge(out_of_range, misfit)
        if not_finite:
            problems.append(
                f"{not_finite:.0f} batches of epoch {epoch} had NaN or infinite logits or "
                "gradients, from the model or the loss; they were left out"
            )
        if untraced and self._has_identity:
            problems.append(
                f"{untraced} of {batches} batches could not be traced to samples of train_loader: "
                "the model got another number of samples than the loader gave, or the pass had "
                "begun before the monitor was made"
            )
        return problems

    def _judge(self, out_of_range: float, misfit: float) -> list[str]:
        if out_of_range:
            raise ValueError(
                "the criterion got labels that are none of the classes of the logits; "
                "labels run from 0 to the number of classes − 1"
            )
        if misfit <= _MOST_UNEXPLAINED:
            return []
        if not self._has_criterion:
            raise ValueError(
                "the loss is no plain cross-entropy on the model's logits "
                f"({misfit:.1%} of their gradient is unexplained); pass the loss as criterion="
            )
        return [
            "the logits' gradient does not come from criterion alone; only the criterion's own "
            "part is measured"
        ]

    def add_first_step(self, batch: Batch) -> list[str]:
        """Problems to tell of the first measured step."""
        if self._seen_step or batch.features is not None:
            return []
        self._seen_step = True
        if self._has_named_head:
            seen = "the output of head= is not the model's logits"
        else:
            seen = "no linear layer was seen to give the model's logits; pass it as head="
        seen += ", and with torch.compile, compile only what comes before it"
        return [f"{seen}. Statistics of the head are off; losses, suspects and the stop go on"]
