"""What the ranks of a data-parallel run do together: they end epochs, and know the same of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .errors import contained, described
from .meetings import OutOfTouch
from .ranks import Ranks, is_alone
from .records import Observation, Record, StopReason
from .samples.table import SampleTable

_MOST_IN_CONFLICT = 0.01
"""Share of samples that ranks may show with different labels, until they are doubted to be the
same samples."""


_Result = TypeVar("_Result")


class NotJudged(Exception):
    """Why nothing was concluded from an epoch, nor will be from the next ones.

    Args:
        reason: As a fixed set of values.
        message: The same in words.
        is_untold: Whether this rank must say it, though it may not be the first.
    """

    def __init__(self, reason: StopReason, message: str, is_untold: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_untold = is_untold


class DataParallel:
    """Has all ranks know of an epoch what one process would that trained on all of their batches.

    Nothing happens where this process is alone.

    Args:
        table: What is known of each sample.
        say: Tells the user about a problem.
    """

    def __init__(self, table: SampleTable, say: Callable[[str], None]) -> None:
        self._table = table
        self._say = say
        self._batches: int | None = None
        self._has_left = False
        self._meetings = 0
        self._saved_by: tuple[int, int] | None = None
        self._parts = 0, 0
        """Whether this rank goes on with its part of an epoch, and how many parts there were."""
        self.at_epoch_end: Callable[[Ranks, int], None] = _nothing
        """What else ranks exchange then; gets them and the number of steps."""
        table.first_visits.rows_of_all = self._rows_of_all
        if not is_alone():
            # The others know from now on that this rank has a monitor.
            with contained(lambda error: say(f"other ranks can't be reached: {described(error)}")):
                assert self._ranks is not None

    @functools.cached_property
    def _ranks(self) -> Ranks | None:
        """The process group may be made after the monitor; when training has begun, it is known."""
        return Ranks.of_process()

    @property
    def _others(self) -> Ranks | None:
        return None if self._has_left else self._ranks

    @property
    def _others_so_far(self) -> Ranks | None:
        """The same before training has begun, when the process group may still be made."""
        return None if is_alone() else self._others

    @property
    def place(self) -> tuple[int, int]:
        """Number of this rank, and how many there are."""
        ranks = self._others_so_far
        return (0, 1) if ranks is None else (ranks.rank, len(ranks.members))

    def id_of_run(self, own: str) -> str:
        """The same on all ranks: whichever of them saves a state, the first one writes."""
        ranks = self._others_so_far
        return own if ranks is None else ranks.of_first("id", own)

    def resume(self, rank: int, count: int) -> None:
        """A state was loaded that one of so many ranks has saved in mid-epoch."""
        self._saved_by = rank, count

    @property
    def are_there(self) -> bool:
        """Whether other ranks have a part of each batch, and this one is in touch with them."""
        return self._others is not None

    def epoch_begins(self, batches: int | None) -> None:
        """Training on a traversal of so many batches begins."""
        if self._others is not None:
            self._batches = batches
            self._others.epoch_begins(batches)

    def may_end_now(self) -> bool:
        """Whether ranks come to the end of an epoch at the same time, with their last batches."""
        return self._others is None or self._others.have_as_many(self._batches)

    def had_no_batch(self) -> None:
        """A traversal was over at once: this rank makes no step, and can't end an epoch."""
        if self._others is not None:
            self.leave("train_loader gave no batch, so epochs can't be told")

    def begins_with(self, observation: Observation) -> None:
        """Samples are trained on, in batches as large as these."""
        self._take_part()
        if self._others is not None:
            batch = len(observation.visits.counted) // len(observation.health.finite)
            self._table.history.share_first_samples(batch, self._others)

    def _take_part(self) -> None:
        """Of an epoch that is resumed in its middle, each rank goes on with what it has seen.

        Nobody goes on with what others have seen whose states were not saved, or not loaded.
        """
        if self._saved_by is None:
            return
        (rank, count), self._saved_by = self._saved_by, None
        is_own = self._others is None or self._others.rank == rank
        history = self._table.history
        if (rank, count) != self.place:
            history.take_no_more_first_samples()
        if not is_own:
            history.begin_epoch_anew()
        self._parts = int(is_own), count
        if self._others is None:
            self._tell_of_lost(count - 1)

    def _tell_of_lost(self, ranks: int) -> None:
        self._parts = 0, 0
        if ranks:
            self._say(
                f"the epoch in which the run was resumed lacks what {ranks} of the ranks had seen "
                "of it: save state_dict() where an epoch ends, or that of each rank"
            )

    def combine(self, record: Record) -> None:
        """Have all ranks know the same of the epoch that ends.

        Args:
            record: Of the epoch; what was tried on held-out samples becomes that of all ranks.

        Raises:
            NotJudged: Ranks can't know the same, or have other data than each other.
        """
        self._take_part()
        ranks = self._others
        if ranks is None:
            return
        before, self._meetings = ranks.members, self._meetings + 1
        try:
            name = f"epoch {self._meetings}"  # not its own number: a state may be loaded twice
            why_not = ranks.together(name, lambda: self._exchanged(ranks, record))
        except OutOfTouch as error:
            raise NotJudged(StopReason.OUT_OF_TOUCH, str(error), error.is_untold) from error
        if why_not is not None:
            raise NotJudged(StopReason.NO_IDENTITY, why_not)
        self._tell_of({*before} - {*ranks.members})

    def _exchanged(self, ranks: Ranks, record: Record) -> str | None:
        """Why it can't be put together; None if it was."""
        size, (kept, parts) = self._table.history.dataset_size, self._parts
        own = torch.tensor([size, record["epoch"], parts], device="cpu")
        least, most = (ranks.least(torch.stack((own, -own))) * torch.tensor([[1], [-1]])).tolist()
        if least[1] != most[1]:
            raise OutOfTouch(f"ranks resumed different states: epochs {least[1]} and {most[1]} end")
        if least[0] != most[0]:
            return f"data sets of ranks differ: they have from {least[0]} to {most[0]} samples"
        if most[2]:
            self._tell_of_lost(most[2] - int(ranks.total(torch.tensor(kept, device="cpu"))))
        in_conflict = self._table.combine(ranks)
        if in_conflict > _MOST_IN_CONFLICT * self._table.history.size:
            return (
                f"ranks show different labels for {in_conflict} of them: let every rank have the "
                "whole data set, and a DistributedSampler its part of it"
            )
        record |= _validation_of_all(ranks, record)
        self.at_epoch_end(ranks, record["step"])
        return None

    def _tell_of(self, gone: set[int]) -> None:
        for rank in sorted(gone):
            self._say(
                f"rank {rank} has no monitor, or has closed it: labels and the stop are judged "
                "without its samples from here on"
            )

    def in_step(self, exchange: Callable[[Ranks], _Result]) -> _Result:
        """Exchange something in the middle of an epoch, at the same step on each rank.

        Raises:
            OutOfTouch: A rank doesn't; the judgement goes on.
            RuntimeError: The connection is lost.
        """
        ranks = self._others
        assert ranks is not None
        before = ranks.members
        result = ranks.in_step(lambda: exchange(ranks))
        self._tell_of({*before} - {*ranks.members})
        return result

    def _rows_of_all(self, own: Tensor, most: int) -> Tensor:
        if not self.are_there:
            return own[:most]
        return self.in_step(lambda ranks: ranks.first_rows(own, most)).to(own.device)

    def leave(self, why: str | None) -> None:
        """Nothing is judged any more: other ranks need not wait for this one.

        Args:
            why: None if the monitor was closed.
        """
        if not self._has_left and "_ranks" in vars(self) and self._ranks is not None:
            self._ranks.leave(why)
        self._has_left = True


def _validation_of_all(ranks: Ranks, record: Record) -> Record:
    """What the ranks found on their held-out samples, each counted as it has samples.

    Where all have found the very same, they have the same samples.
    """
    share, count = record["validation"] or 0.0, record["validation_samples"] or 0
    own = torch.tensor([share, count], dtype=torch.float64, device="cpu")
    least, minus_most = ranks.least(torch.stack((own, -own)))
    right, samples = ranks.total(torch.stack((own.prod(), own[1]))).tolist()
    if torch.equal(least, -minus_most):
        return {}
    return {"validation": right / samples, "validation_samples": int(samples)}


def _nothing(ranks: Ranks, steps: int) -> None:
    """Nobody has more to exchange."""
