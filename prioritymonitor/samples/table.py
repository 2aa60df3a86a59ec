"""The run so far: history of the samples, who is noisy, clean priority and decision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..gradients.statistics import priority_gain
from ..records import Batch, Decision, StopReason, Suspect
from ..stopping.rule import StopRule, decide, peak_epoch
from .history import SampleHistory
from .noisiness import (
    MOST_NOISE,
    chance_at_first_visit,
    noisy_part,
    wrong_label_chance,
)


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
        self.history = SampleHistory(dataset_size, max_tracked)
        self._gained: list[float] = []
        """Clean priority after each epoch, in nats, of all samples together."""
        self.decision = Decision(
            False, StopReason.TOO_EARLY, 0, None, "no epoch has been completed yet"
        )
        self._rule = rule
        self._average_lag = average_lag
        self._first: int | None = None
        """The first epoch after which labels could be judged."""
        self._chance: Tensor | None = None
        """How likely each label is wrong as it stood after the best epoch, `[n]`, NaN before the
        first visit: errors gathered after noise began to be fitted would make wrong labels look
        clean."""
        self._rival: Tensor | None = None
        """Most probable other class at that time, int32 `[n]`."""
        self._on_device: Tensor | None = None
        """How noisy each label is taken to be by that, on the device of the batches, `[n + 1]`."""
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

        From the sample's past visits; at its first visit, from the error of that visit, which no
        memory of the label can have touched yet.
        """
        momentary = chance_at_first_visit(batch.error)
        if self._chance is None or batch.index is None:
            return momentary
        if self._on_device is None:
            past = torch.where(self._chance.isnan(), torch.nan, self._weight)
            self._on_device = torch.cat((past, torch.tensor([torch.nan]))).to(batch.index.device)
        past = self._on_device[self.history.slots(batch.index)].to(momentary.dtype)
        return torch.where(past.isnan(), momentary, past)

    def end_epoch(self) -> tuple[dict[str, Any], int]:
        """Close an epoch and decide.

        Returns:
            The scalars of the epoch, and how many samples changed their label in it.
        """
        relabelled = self.history.end_epoch()
        margin = self.history.mean_margin
        # A change is judged by the margins at both of its ends: by one alone, chance in it would
        # take noise that comes back to the mean for something learnt.
        gain = priority_gain(self.history.decrease, self._unless_known(noisy_part(margin)))
        self._gained.append(gain + (self._gained[-1] if self._gained else 0.0))
        now, priority, was_judged = len(self._gained), self.priority, self._first is not None
        if not was_judged:  # then this epoch is the best so far
            self._settle()
            self._first = now if self.noise_rate < MOST_NOISE else None
        self.decision = decide(
            priority, self._rule, self._average_lag, self.history.initial_loss, self._first
        )
        if was_judged and self.decision.best_epoch == now:
            self._settle()
        return self._scalars(priority), relabelled

    @property
    def priority(self) -> list[float]:
        """Clean priority after each epoch, in nats per sample visited so far."""
        samples = max(self.history.samples_seen, 1)
        return [gained / samples for gained in self._gained]

    def _settle(self) -> None:
        """Judge the labels by what is known now until a later epoch is the best one."""
        history, self._rival = self.history, self.history.rival
        self._chance = wrong_label_chance(history.mean_error, history.given_label, self._rival)
        self._on_device = None

    def _unless_known(self, weight: Tensor) -> Tensor:
        known = self._known[:-1].cpu()
        return torch.where(known.isnan(), weight, known)

    @property
    def _weight(self) -> Tensor:
        """How noisy each label is taken to be, `[n]`."""
        assert self._chance is not None
        return self._unless_known(self._chance.nan_to_num(nan=0.5))

    def _scalars(self, priority: list[float]) -> dict[str, Any]:
        seen = ~self.history.loss.isnan()
        loss, weight = self.history.loss[seen].double(), self._weight[seen].double()
        peak = peak_epoch(priority, self._first)
        return {
            "epoch": len(priority),
            "priority": priority[-1],
            "noise_rate": self.noise_rate,
            "train_loss": loss.mean().item(),
            "clean_loss": (((1 - weight) * loss).sum() / (1 - weight).sum()).item(),
            "noisy_loss": ((weight * loss).sum() / weight.sum()).item(),
            "epochs_since_peak": self.decision.epoch - peak,
            "best_epoch": self.decision.best_epoch,
            "stop": self.decision.stop,
        }

    @property
    def noise_rate(self) -> float:
        """Share of the samples visited so far whose label is taken to be noisy; NaN before any."""
        if self._chance is None:
            return float("nan")
        return (self._weight[~self._chance.isnan()] > 0.5).double().mean().item()

    def suspects(self, k: int | None) -> list[Suspect]:
        """Samples visited so far, the likeliest to be mislabelled first."""
        columns = self.suspect_columns(k).values()
        return [Suspect(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]

    def suspect_columns(self, k: int | None) -> dict[str, np.ndarray[Any, Any]]:
        """The same by the fields of `Suspect`."""
        samples = self.samples()
        score = samples["score"]
        order = np.argsort(-score, kind="stable")[: np.count_nonzero(score >= 0)][:k]
        return {name: samples[name][order] for name in Suspect._fields}

    def samples(self) -> dict[str, np.ndarray[Any, Any]]:
        """Columns of all that is known of each sample, `[n]` each; −1 or NaN where unknown."""
        history, size = self.history, self.history.size
        chance, rival = self._chance, self._rival
        unknown = torch.full((size,), torch.nan)
        columns = {
            "index": history.positions(torch.arange(size)),
            "given_label": history.given_label,
            "predicted_label": torch.full((size,), -1) if rival is None else rival,
            "loss": history.loss,
            "mean_margin": history.mean_margin,
            "mean_error": history.mean_error,
            "score": unknown
            if chance is None
            else torch.where(chance.isnan(), torch.nan, self._weight),
        }
        return {name: column.numpy() for name, column in columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        decision = {**vars(self.decision), "reason": self.decision.reason.name}
        return {
            "history": self.history.state_dict(),
            "gained": list(self._gained),
            "decision": decision,
            "first": self._first,
            "chance": self._chance,
            "rival": self._rival,
            "known": self._known.cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.history.load_state_dict(state["history"])
        self._gained = list(state["gained"])
        reason = StopReason[state["decision"]["reason"]]
        self.decision = Decision(**{**state["decision"], "reason": reason})
        self._first = state["first"]
        self._known = state["known"].cpu().clone()
        self._chance, self._rival = (
            None if state[name] is None else state[name].cpu().clone()
            for name in ("chance", "rival")
        )
        self._on_device = None
