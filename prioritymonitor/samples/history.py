"""What happened to each training sample so far.

During an epoch everything is added up on the device of the logits, without waiting for it. At the
end of the epoch one row moves to the host. A sample takes a few numbers, however long the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ArgumentValueError
from ..loaded import exactly, like, mapping
from ..records import Visits
from .past import Past, check_first, check_running

_SUBSET_SEED = 20230605
_FIRST_SAMPLES = 128
"""So many samples tell the loss that the training began with."""


class Exchange(Protocol):
    """What ranks that measure together can do."""

    rank: int
    """Number of this one."""
    members: list[int]
    """Numbers of all of them."""

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on the host."""

    def least(self, tensor: Tensor) -> Tensor:
        """The least over the ranks, on the host."""


def of_first(ranks: Exchange, was_seen: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """Rows of all ranks, each as the rank of the lowest number has it that has seen it.

    Args:
        ranks: Those that exchange them.
        was_seen: What this one has seen, bool `[n]`.
        columns: `[n, ...]` each, on the host.

    Returns:
        Which rows anyone has seen, bool `[n]`, and the columns, with zeros where nobody has.
    """
    nobody = max(ranks.members) + 1
    first = ranks.least(torch.where(was_seen, ranks.rank, nobody).to(torch.int32))
    is_own = first == ranks.rank
    own = [torch.where(is_own.view(-1, *[1] * (one.ndim - 1)), one, 0) for one in columns]
    return first < nobody, *map(ranks.total, own)


class SampleHistory:
    """Losses, margins, errors and labels of each sample that is followed.

    Args:
        dataset_size: Number of samples an index may name.
        max_tracked: Larger data sets are followed by a fixed random subset of this many samples;
            None: all are followed.
    """

    def __init__(self, dataset_size: int, max_tracked: int | None) -> None:
        self.tracked: Tensor | None = None
        """Places in the data set that are followed, sorted `[n]`; None: all of them."""
        self.size = min(dataset_size, max_tracked or dataset_size)
        if self.size < dataset_size:
            generator = torch.Generator("cpu").manual_seed(_SUBSET_SEED)
            drawn = torch.randperm(dataset_size, generator=generator, device="cpu")
            self.tracked = drawn[: self.size].sort().values
        self.dataset_size = dataset_size
        """Number of samples an index may name."""
        self.classes = 2
        """How many each label is one of: the most that visits showed."""
        nothing, unknown = _full(self.size, 0.0), _full(self.size, torch.nan)
        no_label = _full(self.size, -1, torch.int32)
        self.past = Past(unknown, unknown, nothing, nothing, nothing, *[no_label] * 3)
        self._first_samples, self._takes_first = _FIRST_SAMPLES, True
        self._initial = _full(2, 0.0)
        """Sum of the first losses, and how many they are."""
        self._began = False
        # One row more than there are samples: what must not count is added up in the last.
        self._epoch = _full((self.size + 1, 4), 0.0)
        self._labels = _full((self.size + 1, 3), -1, torch.int32)
        self._relabelled = _full((), 0, torch.int64)
        self._rows: Tensor | None = None

    def rows(self, index: Tensor) -> Tensor:
        """Row of each sample, `[B]`; samples that are not followed share the row past the last."""
        inside = (index >= 0) & (index < self.dataset_size)
        if self.tracked is None:
            return torch.where(inside, index, self.size)
        if self._rows is None or self._rows.device != index.device:
            rows = _full(self.dataset_size + 1, self.size, torch.int64)
            rows[self.tracked] = torch.arange(self.size, device="cpu")
            self._rows = rows.to(index.device)
        return self._rows[torch.where(inside, index, self.dataset_size)]

    def record(self, visits: Visits) -> None:
        """Add visits of known samples to the running epoch."""
        assert visits.index is not None
        self._to(visits.index.device)
        self.classes = max(self.classes, visits.classes)
        if not self._began and self._takes_first:
            left = self._first_samples - self._initial[1]
            first = visits.counted & (visits.counted.cumsum(0) <= left)
            total = torch.where(first, visits.sample_loss, 0.0).sum().to(self._initial.dtype)
            self._initial += torch.stack((total, first.sum().to(total.dtype)))
        row = torch.where(visits.counted, self.rows(visits.index), self.size)
        once = torch.ones_like(visits.margin)
        seen = torch.stack((visits.sample_loss, visits.margin, visits.error, once), 1)
        self._epoch.index_add_(0, row, seen.to(self._epoch.dtype))
        before = self._labels[row, 0]
        changed = (before >= 0) & (before != visits.given_label) & (row < self.size)
        self._relabelled += changed.sum()
        predicted = torch.where(visits.margin > 0, visits.given_label, visits.rival)
        self._labels[row] = torch.stack((visits.given_label, visits.rival, predicted), 1).int()

    def share_first_samples(self, batch: int, ranks: Exchange) -> None:
        """Of the samples that tell the initial loss, take the part of this rank.

        They are the first ones of the joined batches, to which each rank gives `batch` samples.
        """
        count, place = len(ranks.members), ranks.members.index(ranks.rank)
        steps, left = divmod(_FIRST_SAMPLES, count * batch)
        self._first_samples = steps * batch + min(max(left - place * batch, 0), batch)

    def begin_epoch_anew(self) -> None:
        """Forget what the running epoch has shown so far."""
        self._epoch.zero_()
        self._relabelled.zero_()
        if not self._began:
            self._initial.zero_()

    def take_no_more_first_samples(self) -> None:
        """Those that tell the initial loss have been, if any have."""
        self._takes_first = not self._initial[1]

    def combine(self, ranks: Exchange) -> int:
        """Make the running epoch that of all ranks.

        A sample that several of them have seen, as padding makes them, counts as the first saw it.

        Returns:
            How many visits of such samples showed another label than the first of them.
        """
        epoch, labels = self._epoch[:-1].cpu(), self._labels[:-1].cpu()
        own = epoch[:, 3] > 0
        was_seen, joined_epoch, theirs = of_first(ranks, own, epoch, labels)
        in_conflict = own & (labels[:, 0] != theirs[:, 0])
        self._epoch[:-1] = joined_epoch.to(self._epoch.device)
        joined = torch.where(was_seen.unsqueeze(1), theirs, labels)
        self._labels[:-1] = joined.to(self._labels.device)
        counts = torch.stack((self._relabelled.cpu(), in_conflict.sum()))
        loss, count, relabelled, conflicts = ranks.total(
            torch.cat((self._initial.cpu().double(), counts.double()))
        )
        if not self._began:
            self._initial = torch.stack((loss, count)).to(self._initial)
        self._relabelled = relabelled.to(self._relabelled)
        self.classes = -int(ranks.least(torch.tensor(-self.classes, device="cpu")))
        return int(conflicts)

    def end_epoch(self) -> int:
        """Close the running epoch.

        Returns:
            How many visits in it showed another label than an earlier visit of the same sample.
        """
        past = self.past
        loss, margin, error, visits = self._epoch[:-1].to("cpu", copy=True).unbind(1)
        given_label, rival, predicted = self._labels[:-1].to("cpu", copy=True).unbind(1)
        relabelled = int(self._relabelled)
        loss = loss / visits  # NaN without a visit
        before = torch.where(past.loss.isnan(), self.initial_loss, past.loss)
        self.past = Past(
            loss=torch.where(loss.isnan(), past.loss, loss),
            decrease=before - loss,
            margin_sum=past.margin_sum + margin,
            error_sum=past.error_sum + error,
            visits=past.visits + visits,
            given_label=given_label.contiguous(),
            rival=rival.contiguous(),
            predicted=predicted.contiguous(),
        )
        self._began = bool(self._initial[1])
        self._epoch.zero_()
        self._relabelled.zero_()
        return relabelled

    @property
    def initial_loss(self) -> float:
        """Mean loss of the first 128 samples, most of them before any update; NaN without any."""
        return (self._initial[0] / self._initial[1]).item()

    def index_of(self, rows: Tensor) -> Tensor:
        """Places in the data set of some rows."""
        return rows if self.tracked is None else self.tracked[rows]

    @property
    def bytes_per_sample(self) -> int:
        """Memory that a sample takes, here and on the device of the logits."""
        columns = [*vars(self.past).values(), *self._epoch.T, *self._labels.T]
        own = sum(int(column.element_size()) for column in columns)
        return own if self.tracked is None else own + 16  # its place, and its row

    def _to(self, device: torch.device) -> None:
        if self._epoch.device != device:
            self._epoch = self._epoch.to(device)
            self._labels = self._labels.to(device)
            self._relabelled = self._relabelled.to(device)
            self._initial = self._initial.to(device)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types; the subset of a large data set follows from its size."""
        return {
            "dataset_size": self.dataset_size,
            "classes": self.classes,
            "initial": self._initial.cpu().clone(),
            "began": self._began,
            "past": asdict(self.past),
            "epoch": self._epoch.cpu().clone(),
            "labels": self._labels.cpu().clone(),
            "relabelled": int(self._relabelled),
        }

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is of a data set of another size, or damaged.
        """
        known = mapping(mapping(state)["past"])
        found = len(known["visits"])
        if state["dataset_size"] != self.dataset_size or found != self.size:
            raise ArgumentValueError(
                f"got the state of a data set of {state['dataset_size']!r:.20} samples, {found} of "
                f"them followed, for one of {self.dataset_size}, of which {self.size} are; resume "
                "with the same data and max_tracked"
            )
        # To the host, wherever the state was loaded to; the device follows with the next batch.
        columns = vars(self.past).items()
        past = Past(**{name: like(known[name], column) for name, column in columns})
        running: dict[str, Any] = {
            name: like(state[name.removeprefix("_")], getattr(self, name))
            for name in ("_initial", "_epoch", "_labels")
        }
        classes = exactly(state["classes"], int)
        past.check(classes)
        check_first(running["_initial"])
        check_running(running["_epoch"], running["_labels"], classes)
        running |= {
            "past": past,
            "classes": classes,
            "_began": exactly(state["began"], bool),
            "_relabelled": _full((), exactly(state["relabelled"], int), torch.int64),
        }
        return lambda: vars(self).update(running)


def _full(shape: Any, value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """On the host, whatever the default device and type are."""
    shape = (shape,) if isinstance(shape, int) else shape
    return torch.full(shape, value, dtype=dtype, device="cpu")
