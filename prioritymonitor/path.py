"""The run so far: history of the samples, who is noisy, clean priority and decision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .decision import StopRule, decide
from .history import SampleHistory
from .membership import consistent_noise_rate, noisy_weight
from .records import Batch, Decision, StopReason, Suspect
from .statistics import clean_priority

_MOST_NOISE = 0.9
"""Noise rate from which on labels look wrong because nothing has been learnt yet."""


class PriorityPath:
    """Follows the clean priority along the path of the training run.

    Args:
        dataset_size: Number of samples an index may name.
        max_tracked: At most so many of them are followed.
        rule: When to stop; None: never.
        average_lag: Epochs by which the kept weights trail the raw ones.
    """

    def __init__(
        self, dataset_size: int, max_tracked: int, rule: StopRule | None, average_lag: int
    ) -> None:
        delay = (rule or StopRule()).membership_delay
        self.history = SampleHistory(dataset_size, max_tracked, margins_kept=delay + 1)
        self.priority: list[float] = []
        """Clean priority after each epoch, as it looks today."""
        self.decision = Decision(
            False, StopReason.TOO_EARLY, 0, None, "no epoch has been completed yet"
        )
        self._rule = rule
        self._average_lag = average_lag
        self._noisy_weight: Tensor | None = None
        """Today's membership of each tracked sample, float32 `[n]`."""
        self._on_device: Tensor | None = None
        self._prior = 0.5
        """Noise rate at which the membership of all samples is consistent with itself."""
        self._known = torch.full((self.history.size + 1,), torch.nan, dtype=torch.float32)

    def record(self, batch: Batch, is_noisy: Tensor | None) -> None:
        """Add a batch with known indices.

        Args:
            batch: The batch.
            is_noisy: Its true membership `[B]` where that is known.
        """
        if self.decision.stop:
            return  # what is gathered after the stop would only blur what is known
        self.history.record(batch)
        if is_noisy is not None and batch.index is not None:
            self._known = self._known.to(is_noisy.device)
            self._known[self.history.slots(batch.index)] = is_noisy.float()

    def membership(self, batch: Batch) -> Tensor:
        """How noisy each label of a batch is taken to be now, `[B]`.

        From the sample's past visits; at its first visit, from the margin of that visit, which no
        memory of the label can have touched yet.
        """
        momentary = noisy_weight(batch.margin, self._prior)
        if self._noisy_weight is None or batch.index is None:
            return momentary
        if self._on_device is None:
            past = torch.cat((self._noisy_weight, torch.tensor([torch.nan])))
            self._on_device = past.to(batch.index.device)
        past = self._on_device[self.history.slots(batch.index)].to(momentary.dtype)
        return torch.where(past.isnan(), momentary, past)

    def end_epoch(self) -> tuple[dict[str, Any], int]:
        """Close an epoch and decide.

        Returns:
            The scalars of the epoch, and how many samples changed their label in it.
        """
        relabelled = self.history.end_epoch()
        weight = self._judge()
        loss = self.history.losses[-1]
        self.priority = clean_priority(self.history.losses, weight).tolist()
        self.decision = decide(self.priority, self._rule, self._average_lag, self._learns())
        self._noisy_weight = torch.where(loss.isnan(), torch.nan, weight)
        self._on_device = None
        return self._scalars(loss.double(), weight.double()), relabelled

    def _learns(self) -> bool:
        """False while most labels look wrong, as they do before anything is learnt."""
        return not self.history.is_empty and self._prior < _MOST_NOISE

    def _judge(self) -> Tensor:
        margin = self.history.settled_margin
        self._prior = consistent_noise_rate(margin)
        known = self._known[:-1].cpu()
        return torch.where(known.isnan(), noisy_weight(margin, self._prior), known)

    def _scalars(self, loss: Tensor, weight: Tensor) -> dict[str, Any]:
        seen = ~loss.isnan()
        loss, weight = loss[seen], weight[seen]
        return {
            "epoch": len(self.priority),
            "priority": self.priority[-1],
            "noise_rate": self.noise_rate,
            "train_loss": loss.mean().item(),
            "clean_loss": (((1 - weight) * loss).sum() / (1 - weight).sum()).item(),
            "noisy_loss": ((weight * loss).sum() / weight.sum()).item(),
            "epochs_since_peak": self.decision.epoch - self.priority.index(max(self.priority)) - 1,
            "best_epoch": self.decision.best_epoch,
            "stop": self.decision.stop,
        }

    @property
    def noise_rate(self) -> float:
        """Share of the samples visited so far whose label is taken to be noisy; NaN before any."""
        if self._noisy_weight is None:
            return float("nan")
        seen = self._noisy_weight[~self._noisy_weight.isnan()]
        return (seen > 0.5).double().mean().item()

    def suspects(self, k: int | None) -> list[Suspect]:
        """Samples visited so far, the likeliest to be mislabelled first."""
        if self._noisy_weight is None:
            return []
        score = self._noisy_weight.nan_to_num(nan=-1.0)
        slots = score.argsort(descending=True, stable=True)[: int((score >= 0).sum())][:k]
        columns = (
            self.history.positions(slots),
            score[slots],
            self.history.given_label[slots],
            self.history.settled_rival[slots],
        )
        return [Suspect(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        decision = {**vars(self.decision), "reason": self.decision.reason.name}
        return {
            "history": self.history.state_dict(),
            "priority": list(self.priority),
            "decision": decision,
            "noisy_weight": self._noisy_weight,
            "prior": self._prior,
            "known": self._known.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.history.load_state_dict(state["history"])
        self.priority = list(state["priority"])
        reason = StopReason[state["decision"]["reason"]]
        self.decision = Decision(**{**state["decision"], "reason": reason})
        weight = state["noisy_weight"]
        self._noisy_weight = weight.cpu() if weight is not None else None
        self._prior = state["prior"]
        self._known = state["known"].cpu().clone()
        self._on_device = None
