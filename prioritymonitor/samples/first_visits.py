"""What samples look like at their first visit, kept until their neighbours have voted."""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ..loaded import damaged, exactly, like, mapping, within
from ..records import MOST_VOTES, REPRESENTATION, TargetKind, Visits
from .history import Exchange, SampleHistory, of_first
from .neighbours import best_votes

MOST_CANDIDATES = 20_000
"""Samples that can be neighbours: a fixed random subset of a larger data set."""

_ENOUGH, _NEARLY_ALL = 200, 0.9
"""So many candidates must have been visited, or such a share of them if they are few."""

_MOST_VISITS = 3
"""As many for each sample may go by, where few of the candidates are among them."""

_SEED = 20240212


class FirstVisits:
    """Gathers what samples look like before labels are learnt; then their neighbours vote, once.

    Each representation is kept as 64 whole numbers of a byte, and a scale. All of it goes once the
    votes are there.

    Args:
        history: Knows the samples that are followed.
    """

    def __init__(self, history: SampleHistory) -> None:
        self.vote: Tensor | None = None
        """What its neighbours say of each sample, int32 `[n]`, −1 where nothing; None so far."""
        self.why_none: str | None = None
        """Why there are no votes; None if there are, or may still be."""
        self.rows_of_all: Callable[[Tensor, int], Tensor] = _first
        """Gives the first rows of all ranks, so many at most, from those of this one."""
        self.when_closed: Callable[[], None] = _nothing
        """Called when no more is to be gathered."""
        self._history = history
        self._count = min(history.size, MOST_CANDIDATES)
        self._is_candidate: Tensor | None = None
        self._slots: Tensor | None = None
        self._values: Tensor | None = None
        self._scales: Tensor | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is still gathering."""
        return self.vote is None and self.why_none is None

    def wanted(self, index: Tensor) -> Tensor:
        """Which samples can be neighbours, bool `[B]`.

        Args:
            index: Places in the data set, on the host; −1 where it is not known.
        """
        if self._history.tracked is None and self._count == self._history.size:
            return index >= 0
        if self._is_candidate is None:
            size = self._history.dataset_size + 1  # the last one stands for −1
            self._is_candidate = torch.zeros(size, dtype=torch.bool, device="cpu")
            self._is_candidate[self._history.index_of(self._candidates())] = True
        return self._is_candidate[index]

    def record(self, visits: Visits, rows: Tensor) -> None:
        """Keep what samples look like that were not seen before.

        Args:
            visits: The visits.
            rows: Rows of the samples in the history, `[B]`.
        """
        if not self.is_open or visits.representation is None:
            return
        if visits.targets is not TargetKind.ONE:
            self.give_up(f"the targets are {visits.targets.value}, and votes are on a single class")
            return
        self._to(rows.device)
        assert self._values is not None
        assert self._scales is not None
        shown = visits.representation
        scale = shown.abs().amax(2) / 127
        scale = torch.where(scale.isfinite(), scale, torch.nan)
        slot = self._slot(rows)
        is_new = visits.counted & self._scales[slot].isnan().all(1) & ~scale.isnan().all(1)
        slot = torch.where(is_new, slot, self._count)
        self._values[slot] = (shown / scale[:, :, None]).nan_to_num(0.0).round().to(torch.int8)
        self._scales[slot] = scale
        self._scales[-1] = torch.nan  # what must not count was written there

    def combine(self, ranks: Exchange) -> None:
        """Take what other ranks have seen."""
        reasons = ranks.total(torch.tensor(int(not self.is_open), device="cpu"))
        if int(reasons):
            self.give_up("another rank can't tell what samples look like")
            return
        if self._values is None or self._scales is None:
            self._values, self._scales = self._empty()
        scales = self._scales.cpu()
        was_seen = ~scales.isnan().all(1)
        is_known, values, joined = of_first(ranks, was_seen, self._values.cpu(), scales)
        self._values = values.to(self._values.device)
        joined = torch.where(is_known[:, None], joined, torch.nan)
        self._scales = joined.to(self._scales.device)

    def end_epoch(self, given_label: Tensor) -> None:
        """Let the neighbours vote, if enough of them were seen by now.

        Args:
            given_label: Of each sample that is followed, `[n]`; −1 where it is not known.
        """
        if not self.is_open:
            return
        visits = int(self._history.past.visits.sum())
        if self._scales is None or self._values is None:
            if visits:
                self.give_up("the model's own forward pass was not called, only parts of the model")
            return
        scales = self._scales[:-1].cpu()
        candidates = self._candidates()
        label = given_label[candidates]
        (seen,) = torch.where(~scales.isnan().all(1) & (label >= 0))
        if len(seen) >= min(_ENOUGH, _NEARLY_ALL * self._count):
            vectors = self._values[seen.to(self._values.device)].cpu() * scales[seen][:, :, None]
            asked = _drawn(len(seen), MOST_VOTES)
            votes = best_votes(vectors.unbind(1), label[seen], asked)
            column = torch.full_like(given_label, -1)
            column[candidates[seen[asked]]] = votes.to(column.dtype)
            self.vote = column
            self._close()
        elif visits >= _MOST_VISITS * self._history.size:
            self.give_up(f"only {len(seen)} samples show what they look like")

    def give_up(self, reason: str) -> None:
        """There will be no votes, unless there are some already."""
        if self.is_open:
            self.why_none = reason
            self._close()

    def _close(self) -> None:
        self._values = self._scales = self._is_candidate = self._slots = None
        self.when_closed()

    def _candidates(self) -> Tensor:
        """Rows of the samples that can be neighbours, sorted."""
        return _drawn(self._history.size, self._count)

    def _slot(self, rows: Tensor) -> Tensor:
        """Place of each sample among the candidates; the one past the last for any other."""
        size, count = self._history.size, self._count
        if count == size:
            return rows
        if self._slots is None or self._slots.device != rows.device:
            slots = torch.full((size + 1,), count, dtype=torch.int32, device="cpu")
            slots[self._candidates()] = torch.arange(count, dtype=torch.int32, device="cpu")
            self._slots = slots.to(rows.device)
        return self._slots[rows].long()

    def _to(self, device: torch.device) -> None:
        if self._values is None or self._scales is None:
            self._values, self._scales = self._empty()
        self._values, self._scales = self._values.to(device), self._scales.to(device)

    def _empty(self) -> tuple[Tensor, Tensor]:
        shape = (self._count + 1, *REPRESENTATION)
        values = torch.zeros(shape, dtype=torch.int8, device="cpu")
        return values, torch.full(shape[:2], torch.nan, dtype=torch.float32, device="cpu")

    @property
    def bytes(self) -> int:
        """Memory that it takes, here and on the device of the logits."""
        kept = [self.vote, self._is_candidate, self._slots, self._values, self._scales]
        return sum(one.numel() * one.element_size() for one in kept if one is not None)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types; which samples are candidates follows from their number."""
        kept = {"vote": self.vote, "values": self._values, "scales": self._scales}
        copies = {name: None if x is None else x.cpu().clone() for name, x in kept.items()}
        return copies | {"why_none": self.why_none}

    def resuming(self, state: dict[str, Any], classes: int) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Args:
            state: The state.
            classes: How many each label is one of.

        Raises:
            ArgumentValueError: It is damaged.
        """
        mapping(state)
        vote, why_none = state["vote"], exactly(state["why_none"], str, NoneType)
        if vote is not None:
            vote = within(like(vote, self._history.past.given_label), -1, classes - 1)
        values, scales = state["values"], state["scales"]
        is_gathering = values is not None or scales is not None
        if is_gathering:
            empty = self._empty()
            values, scales = like(values, empty[0]), like(scales, empty[1])
            within(scales, 0, torch.inf, or_nan=True)
        if [vote is not None, why_none is not None, is_gathering].count(True) > 1:
            raise damaged("votes of neighbours, and others that are still to come")

        def resume() -> None:
            self.vote, self.why_none = vote, why_none
            self._values, self._scales = values, scales
            if not self.is_open:
                self._close()

        return resume


def _drawn(count: int, most: int) -> Tensor:
    """At most so many of the first `count` whole numbers, sorted: the same ones each time."""
    if count <= most:
        return torch.arange(count, device="cpu")
    generator = torch.Generator("cpu").manual_seed(_SEED)
    return torch.randperm(count, generator=generator, device="cpu")[:most].sort().values


def _first(own: Tensor, most: int) -> Tensor:
    return own[:most]


def _nothing() -> None:
    """Nobody wants to know."""
