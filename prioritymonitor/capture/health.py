"""What goes wrong while measuring: counted on the device, judged once per epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Observation, Step

_MOST_UNEXPLAINED = 1e-3
"""Share of the logits' gradient above which the loss is not what we take it for."""


class Health:
    """Counts without waiting for the device.

    Args:
        has_criterion: Whether the loss was passed in, so that it need not be recognised.
        has_named_head: Whether the head was passed in.
    """

    def __init__(self, *, has_criterion: bool, has_named_head: bool) -> None:
        self._has_criterion = has_criterion
        self._has_named_head = has_named_head
        self._seen_any = False
        self._seen_step = False
        self._passes = 0
        self._untraced = 0
        self._steps_untraced = 0
        self._tally: Tensor | None = None

    def add(self, observation: Observation) -> list[str]:
        """Take micro-batches into account.

        Returns:
            Problems to tell, at the first one.

        Raises:
            ValueError: At the first one, if its loss or labels can't be measured; it waits for the
                device.
        """
        health, passes = observation.health, len(observation.health.finite)
        self._passes += passes
        if observation.visits.index is None:
            self._untraced += passes
        else:
            self._steps_untraced = 0
        flags = torch.stack((~health.finite, ~health.in_range)).sum(1).to(health.unexplained.dtype)
        if self._tally is None:
            self._tally = torch.zeros(3, dtype=flags.dtype, device=flags.device)
        self._tally[:2] += flags
        self._tally[2] = torch.maximum(self._tally[2], health.unexplained.max())
        if self._seen_any:
            return []
        self._seen_any = True
        return self._judge(*self._tally[1:].tolist())

    def end_epoch(self, epoch: int, has_identity: bool) -> list[str]:
        """Close an epoch.

        Args:
            epoch: Which one, from 1.
            has_identity: Whether batches ought to be traced to samples.

        Returns:
            Problems to tell.

        Raises:
            ValueError: What was measured can't be trusted.
        """
        if self._tally is None:
            return []
        not_finite, out_of_range, unexplained = self._tally.tolist()
        passes, untraced = self._passes, self._untraced
        self._passes, self._untraced, self._tally = 0, 0, None
        problems = self._judge(out_of_range, unexplained)
        if not_finite:
            problems.append(
                f"{not_finite:.0f} batches of epoch {epoch} had NaN or infinite logits or "
                "gradients, from the model or the loss; they were left out"
            )
        if untraced and has_identity:
            problems.append(
                f"{untraced} of {passes} batches could not be traced to samples of train_loader: "
                "the model got another number of samples than the loader gave, or the pass had "
                "begun before the monitor was made"
            )
        return problems

    def add_step(self, expected_steps: float, has_identity: bool) -> list[str]:
        """Take an optimizer step into account.

        Args:
            expected_steps: How many of them an epoch has.
            has_identity: Whether batches ought to be traced to samples.

        Returns:
            Problems to tell, once no step of two epochs has used a batch of the train loader.
        """
        self._steps_untraced += 1
        if not has_identity or self._steps_untraced != 2 * int(expected_steps) + 16:
            return []
        return [
            f"{self._steps_untraced} optimizer steps used no batch of train_loader; pass the "
            "loader that the loop iterates over, and the model that it calls; one in a larger "
            "compiled function is not seen, so compile it by itself: torch.compile(model)"
        ]

    def _judge(self, out_of_range: float, unexplained: float) -> list[str]:
        if out_of_range:
            raise ValueError(
                "the criterion got labels that are none of the classes of the logits; "
                "labels run from 0 to the number of classes − 1"
            )
        if unexplained <= _MOST_UNEXPLAINED:
            return []
        if not self._has_criterion:
            raise ValueError(
                "the loss is no plain cross-entropy on the model's logits "
                f"({unexplained:.1%} of their gradient is unexplained); pass the loss as criterion="
            )
        return [
            "the logits' gradient does not come from criterion alone; only the criterion's own "
            "part is measured"
        ]

    def add_first_step(self, step: Step) -> list[str]:
        """Problems to tell of the first measured step."""
        if self._seen_step or not step.observations:
            return []
        self._seen_step = True
        if step.observations[0].head.features is not None:
            return []
        if self._has_named_head:
            seen = "the output of head= is not the model's logits"
        else:
            seen = "no linear layer was seen to give the model's logits; pass it as head="
        seen += ", and with torch.compile, compile only what comes before it"
        return [f"{seen}. Statistics of the head are off; losses, suspects and the stop go on"]
