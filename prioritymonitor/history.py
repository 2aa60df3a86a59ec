"""What happened to each training sample, epoch by epoch.

During an epoch everything is added up on the device of the logits, without waiting for it. At the
end of the epoch one row moves to the host: losses in half precision (2 bytes per sample and epoch)
and the cumulative margin in single precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentValueError
from .records import Batch

_LARGEST_HALF = torch.finfo(torch.float16).max
_SUBSET_SEED = 20230605


class SampleHistory:
    """Losses, margins and labels of each tracked sample.

    Args:
        dataset_size: Number of samples an index may name.
        max_tracked: Larger data sets are followed by a fixed random subset of this many samples.
        margins_kept: For how many past epochs the mean margin is kept as it stood.
    """

    def __init__(self, dataset_size: int, max_tracked: int, margins_kept: int) -> None:
        self.tracked: Tensor | None = None
        """Positions in the data set that are followed, sorted `[n]`; None: all of them."""
        self.size = min(dataset_size, max_tracked)
        if dataset_size > max_tracked:
            generator = torch.Generator().manual_seed(_SUBSET_SEED)
            drawn = torch.randperm(dataset_size, generator=generator)[:max_tracked]
            self.tracked = drawn.sort().values
        self.losses: list[Tensor] = []
        """Loss of each sample in each epoch, float16 `[n]` each; NaN before a first visit."""
        self._dataset_size = dataset_size
        self._margins_kept = margins_kept
        self._margin_sum = torch.zeros(self.size, dtype=torch.float32)
        self._visits = torch.zeros(self.size, dtype=torch.float32)
        self._mean_margins: list[Tensor] = []
        self._rivals: list[Tensor] = []
        # One row more than there are samples: what must not count is added up in the last.
        self._epoch = torch.zeros(self.size + 1, 3, dtype=torch.float32)
        self._labels = torch.full((self.size + 1, 2), -1, dtype=torch.int32)
        self._relabelled = torch.zeros((), dtype=torch.int64)
        self._slots: Tensor | None = None

    @property
    def epochs(self) -> int:
        """Number of complete epochs."""
        return len(self.losses)

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
        slot = torch.where(batch.counted, self.slots(batch.index), self.size)
        seen = torch.stack((batch.sample_loss, batch.margin, torch.ones_like(batch.margin)), 1)
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
        loss, margin, visits = self._epoch[:-1].to("cpu", copy=True).unbind(1)
        relabelled = int(self._relabelled)
        self._epoch.zero_()
        self._relabelled.zero_()
        visited = visits > 0
        row = (loss / visits).clamp(max=_LARGEST_HALF).half()
        if self.losses:
            row = torch.where(visited, row, self.losses[-1])
            first = visited & self.losses[-1].isnan()
            for earlier in self.losses if bool(first.any()) else []:
                earlier[first] = row[first]  # unknown before: no change from then to now
        self.losses.append(row)
        self._margin_sum += margin
        self._visits += visits
        self._mean_margins.append(self._margin_sum / self._visits)
        self._rivals.append(self._labels[:-1, 1].to("cpu", copy=True))
        del self._mean_margins[: -self._margins_kept], self._rivals[: -self._margins_kept]
        return relabelled

    @property
    def is_empty(self) -> bool:
        """True if no sample was ever visited."""
        return not bool(self._visits.any())

    @property
    def settled_margin(self) -> Tensor:
        """Mean margin as it stood before the latest `margins_kept − 1` epochs, float32 `[n]`."""
        return self._mean_margins[0]

    @property
    def settled_rival(self) -> Tensor:
        """Most probable class other than the given label at that time, int32 `[n]`; −1: unknown."""
        return self._rivals[0]

    @property
    def given_label(self) -> Tensor:
        """Label of each sample as the loss saw it, int32 `[n]`; −1 before its first visit."""
        return self._labels[:-1, 0].cpu()

    def positions(self, slots: Tensor) -> Tensor:
        """Positions in the data set of some rows."""
        return slots if self.tracked is None else self.tracked[slots]

    def _to(self, device: torch.device) -> None:
        if self._epoch.device != device:
            self._epoch = self._epoch.to(device)
            self._labels = self._labels.to(device)
            self._relabelled = self._relabelled.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types; the subset of a large data set follows from its size."""
        return {
            "dataset_size": self._dataset_size,
            "losses": torch.stack(self.losses) if self.losses else torch.zeros(0, self.size),
            "margin_sum": self._margin_sum.clone(),
            "visits": self._visits.clone(),
            "mean_margins": list(self._mean_margins),
            "rivals": list(self._rivals),
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
        self.losses = list(state["losses"].cpu().clone().unbind(0))
        self._margin_sum = state["margin_sum"].cpu().clone()
        self._visits = state["visits"].cpu().clone()
        self._mean_margins = [margin.cpu() for margin in state["mean_margins"]]
        self._rivals = [rival.cpu() for rival in state["rivals"]]
        self._epoch = state["epoch"].cpu().clone()
        self._labels = state["labels"].cpu().clone()
        self._relabelled = torch.tensor(state["relabelled"])
