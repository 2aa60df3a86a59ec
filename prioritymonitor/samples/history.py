"""What happened to each training sample so far.

During an epoch everything is added up on the device of the logits, without waiting for it. At the
end of the epoch one row moves to the host. A sample takes a few numbers, however long the run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentValueError
from ..records import Batch

_SUBSET_SEED = 20230605
_FIRST_SAMPLES = 128
"""So many samples tell the loss that the training began with."""


class SampleHistory:
    """Losses, margins, errors and labels of each tracked sample.

    Args:
        dataset_size: Number of samples an index may name.
        max_tracked: Larger data sets are followed by a fixed random subset of this many samples.
    """

    def __init__(self, dataset_size: int, max_tracked: int) -> None:
        self.tracked: Tensor | None = None
        """Positions in the data set that are followed, sorted `[n]`; None: all of them."""
        self.size = min(dataset_size, max_tracked)
        if dataset_size > max_tracked:
            generator = torch.Generator().manual_seed(_SUBSET_SEED)
            drawn = torch.randperm(dataset_size, generator=generator)[:max_tracked]
            self.tracked = drawn.sort().values
        self.loss = torch.full((self.size,), torch.nan)
        """Loss of each sample in the latest epoch that visited it, `[n]`; NaN before the first."""
        self.decrease = torch.full((self.size,), torch.nan)
        """By how much the latest epoch brought it down, `[n]`: since the epoch of the visit before,
        at a first visit since the start of the training; NaN where the epoch made no visit."""
        self._dataset_size = dataset_size
        self._margin_sum = torch.zeros(self.size)
        self._error_sum = torch.zeros(self.size)
        self._visits = torch.zeros(self.size)
        self._initial = torch.zeros(2)
        """Sum of the first losses, and how many they are."""
        self._began = False
        # One row more than there are samples: what must not count is added up in the last.
        self._epoch = torch.zeros(self.size + 1, 4)
        self._labels = torch.full((self.size + 1, 2), -1, dtype=torch.int32)
        self._relabelled = torch.zeros((), dtype=torch.int64)
        self._slots: Tensor | None = None

    def slots(self, index: Tensor) -> Tensor:
        """Row of each sample, `[B]`; untracked samples share the row past the last."""
        if self._slots is None or self._slots.device != index.device:
            slots = torch.arange(self._dataset_size + 1)
            if self.tracked is not None:
                slots = torch.full((self._dataset_size + 1,), self.size)
                slots[self.tracked] = torch.arange(self.size)
            self._slots = slots.to(index.device)
        inside = (index >= 0) & (index < self._dataset_size)
        return self._slots[torch.where(inside, index, self._dataset_size)]

    def record(self, batch: Batch) -> None:
        """Add a batch with known indices to the running epoch."""
        assert batch.index is not None
        self._to(batch.index.device)
        if not self._began:
            left = _FIRST_SAMPLES - self._initial[1]
            first = batch.counted & (batch.counted.cumsum(0) <= left)
            total = torch.where(first, batch.sample_loss, 0.0).sum().to(self._initial.dtype)
            self._initial += torch.stack((total, first.sum().to(total.dtype)))
        slot = torch.where(batch.counted, self.slots(batch.index), self.size)
        once = torch.ones_like(batch.margin)
        seen = torch.stack((batch.sample_loss, batch.margin, batch.error, once), 1)
        self._epoch.index_add_(0, slot, seen.to(self._epoch.dtype))
        before = self._labels[slot, 0]
        changed = (before >= 0) & (before != batch.target) & (slot < self.size)
        self._relabelled += changed.sum()
        self._labels[slot] = torch.stack((batch.target, batch.rival), 1).int()

    def end_epoch(self) -> int:
        """Close the running epoch.

        Returns:
            How many visits in it showed another label than an earlier visit of the same sample.
        """
        loss, margin, error, visits = self._epoch[:-1].to("cpu", copy=True).unbind(1)
        relabelled = int(self._relabelled)
        self._epoch.zero_()
        self._relabelled.zero_()
        self._began = bool(self._initial[1])
        loss = loss / visits  # NaN without a visit
        before = torch.where(self.loss.isnan(), self.initial_loss, self.loss)
        self.decrease = before - loss
        self.loss = torch.where(loss.isnan(), self.loss, loss)
        self._margin_sum += margin
        self._error_sum += error
        self._visits += visits
        return relabelled

    @property
    def initial_loss(self) -> float:
        """Mean loss of the first 128 samples, most of them before any update; NaN without any."""
        return (self._initial[0] / self._initial[1]).item()

    @property
    def samples_seen(self) -> int:
        """How many samples were visited so far."""
        return int((self._visits > 0).sum())

    @property
    def mean_margin(self) -> Tensor:
        """Mean margin of each sample over its visits, `[n]`; NaN before the first."""
        return self._margin_sum / self._visits

    @property
    def mean_error(self) -> Tensor:
        """Mean error of each sample over its visits, `[n]`; NaN before the first."""
        return self._error_sum / self._visits

    @property
    def given_label(self) -> Tensor:
        """Label of each sample as the loss saw it, int32 `[n]`; −1 before its first visit."""
        return self._labels[:-1, 0].cpu()

    @property
    def rival(self) -> Tensor:
        """Most probable class other than the given label at the latest visit, int32 `[n]`."""
        return self._labels[:-1, 1].to("cpu", copy=True)

    def positions(self, slots: Tensor) -> Tensor:
        """Positions in the data set of some rows."""
        return slots if self.tracked is None else self.tracked[slots]

    def _to(self, device: torch.device) -> None:
        if self._epoch.device != device:
            self._epoch = self._epoch.to(device)
            self._labels = self._labels.to(device)
            self._relabelled = self._relabelled.to(device)
            self._initial = self._initial.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types; the subset of a large data set follows from its size."""
        return {
            "dataset_size": self._dataset_size,
            "initial": self._initial.cpu().clone(),
            "began": self._began,
            "loss": self.loss.clone(),
            "margin_sum": self._margin_sum.clone(),
            "error_sum": self._error_sum.clone(),
            "visits": self._visits.clone(),
            "epoch": self._epoch.cpu().clone(),
            "labels": self._labels.cpu().clone(),
            "relabelled": int(self._relabelled),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ArgumentValueError: It is of a data set of another size.
        """
        if state["dataset_size"] != self._dataset_size or len(state["visits"]) != self.size:
            raise ArgumentValueError(
                f"got the state of a data set of {state['dataset_size']} samples for one of "
                f"{self._dataset_size}; resume with the same data and max_tracked"
            )
        # To the host, wherever the state was loaded to; the device follows with the next batch.
        self._initial = state["initial"].cpu().clone()
        self._began = state["began"]
        self.loss = state["loss"].cpu().clone()
        self._margin_sum = state["margin_sum"].cpu().clone()
        self._error_sum = state["error_sum"].cpu().clone()
        self._visits = state["visits"].cpu().clone()
        self._epoch = state["epoch"].cpu().clone()
        self._labels = state["labels"].cpu().clone()
        self._relabelled = torch.tensor(state["relabelled"])
