"""The table of samples: their past, how noisy each label is taken to be, and the suspects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..loaded import like, mapping, within
from ..records import Columns, EpochOfSamples, Suspect, Visits
from .first_visits import FirstVisits
from .going_on import why_not_go_on
from .history import Exchange, SampleHistory, of_first
from .noisiness import chance_at_first_visit, is_plausible, noisy_part, wrong_label_chance


@dataclass(frozen=True)
class Verdict:
    """How likely each label is wrong as it stood at some time; replaced as a whole."""

    chance: Tensor
    """`[n]`; NaN before the first visit."""
    rival: Tensor
    """Most probable other class at that time, int32 `[n]`."""


class SampleTable:
    """Everything that is known of each sample that is followed.

    The verdict on labels is that of the best epoch so far: errors gathered after noise began to be
    fitted would make wrong labels look clean. There is none before much is learnt.

    Args:
        dataset_size: Number of samples an index may name.
        max_tracked: At most so many of them are followed; None: all.
    """

    def __init__(self, dataset_size: int, max_tracked: int | None) -> None:
        self.history = SampleHistory(dataset_size, max_tracked)
        self.first_visits = FirstVisits(self.history)
        self._verdict: Verdict | None = None
        self._latest: tuple[Verdict | None, Verdict | None] = (None, None)
        """Those of the epoch before and of the last one."""
        self._on_device: Tensor | None = None
        """How noisy each label is taken to be by that, on the device of the logits, `[n + 1]`."""
        self._known = torch.full(
            (self.history.size + 1,), torch.nan, dtype=torch.float32, device="cpu"
        )

    def record(self, visits: Visits, is_noisy: Tensor | None) -> None:
        """Add visits of known samples.

        Args:
            visits: The visits.
            is_noisy: Their true membership `[B]` where that is known.
        """
        if visits.is_own is not None:
            visits = replace(visits, counted=visits.counted & visits.is_own)
        assert visits.index is not None
        self.history.record(visits)
        rows = self.history.rows(visits.index)
        self.first_visits.record(visits, rows)
        if is_noisy is not None:
            self._known = self._known.to(is_noisy.device)
            self._known[rows] = is_noisy.float()

    def noisy_weight(self, visits: Visits) -> Tensor:
        """How noisy each label is taken to be now, `[B]`.

        From the sample's past visits; at its first visit, from the error of that visit, which no
        memory of the label can have touched yet.
        """
        momentary = chance_at_first_visit(visits.error, visits.classes)
        if visits.is_own is not None:
            momentary = torch.where(visits.is_own, momentary, 0.5)
        if self._verdict is None or visits.index is None:
            return momentary
        if self._on_device is None:
            past = torch.where(self._verdict.chance.isnan(), torch.nan, self._weight(self._verdict))
            unknown = torch.full((1,), torch.nan, device="cpu")
            self._on_device = torch.cat((past, unknown)).to(visits.index.device)
        past = self._on_device[self.history.rows(visits.index)].to(momentary.dtype)
        return torch.where(past.isnan(), momentary, past)

    def combine(self, ranks: Exchange) -> int:
        """Make the running epoch that of all ranks, which then know the same.

        Returns:
            How many visits showed another label than another rank's visit of the same sample.
        """
        in_conflict = self.history.combine(ranks)
        if self.first_visits.is_open or self.first_visits.why_none is not None:
            self.first_visits.combine(ranks)
        known = self._known.cpu()
        if not int(ranks.total((~known.isnan()).sum())):
            return in_conflict
        is_known, joined = of_first(ranks, ~known.isnan(), known)
        self._known = torch.where(is_known, joined, torch.nan).to(self._known.device)
        return in_conflict

    def end_epoch(self) -> EpochOfSamples:
        """Close an epoch; its votes are those that were there before."""
        predicted_before = self.history.past.predicted
        relabelled = self.history.end_epoch()
        past = self.history.past
        return EpochOfSamples(
            decrease=past.decrease,
            # A change is judged by the margins at both of its ends: by one alone, chance in it
            # would take noise that comes back to the mean for something learnt.
            noisy_part=self._unless_known(noisy_part(past.mean_margin)),
            samples_seen=past.samples_seen,
            relabelled=relabelled,
            predicted=torch.where(past.decrease.isnan(), -1, past.predicted),
            predicted_before=predicted_before,
            given_label=past.given_label,
            vote=self._vote(),
        )

    def ask_neighbours(self) -> Tensor:
        """Let the neighbours vote once enough of them were seen; their votes, int32 `[n]`."""
        self.first_visits.end_epoch(self.history.past.given_label)
        return self._vote()

    def _vote(self) -> Tensor:
        vote, past = self.first_visits.vote, self.history.past
        return vote if vote is not None else torch.full_like(past.given_label, -1)

    def judge(self) -> None:
        """Judge the labels by what is known now; not before much is learnt."""
        past, vote = self.history.past, self._vote()
        chance = wrong_label_chance(
            past.mean_error, past.given_label, past.rival, vote, self.history.classes
        )
        backed = torch.where(vote >= 0, (vote == past.given_label).float(), torch.nan)
        is_told = self._is_known or is_plausible(
            chance, past.mean_error, backed, self.history.classes
        )
        self._latest = (self._latest[-1], Verdict(chance, past.rival) if is_told else None)
        if self._verdict is None:
            self.settle([0])

    def settle(self, epochs_ago: Sequence[int]) -> None:
        """Let the verdict be that of the epoch that lies farthest back, but of the last two.

        Args:
            epochs_ago: How far epochs lie back that may be the best one.
        """
        if not epochs_ago or not set(epochs_ago) <= {0, 1}:
            return
        verdict = self._latest[-1 - max(epochs_ago)]
        if verdict is not None:
            self._verdict, self._on_device = verdict, None

    @property
    def _is_known(self) -> bool:
        """Whether the user has told which labels are wrong."""
        return not bool(self._known.isnan().all())

    def forget(self) -> None:
        """Judge the labels by nothing."""
        self._verdict, self._on_device, self._latest = None, None, (None, None)

    # Readings

    @property
    def bytes(self) -> int:
        """Memory that it takes, here and on the device of the logits."""
        own = (self.history.bytes_per_sample + 16) * self.history.size
        return own + self.first_visits.bytes

    @property
    def noise_rate(self) -> float:
        """Share of the samples visited so far whose label is taken to be noisy; NaN before any."""
        if self._verdict is None:
            return float("nan")
        weight = self._weight(self._verdict)[~self._verdict.chance.isnan()]
        return (weight > 0.5).double().mean().item()

    def losses(self) -> dict[str, float]:
        """Mean losses of all samples visited, of the clean and of the noisy ones."""
        loss, verdict = self.history.past.loss, self._verdict
        seen = ~loss.isnan()
        weight = self._weight(verdict) if verdict is not None else torch.full_like(loss, 0.5)
        loss, weight = loss[seen].double(), weight[seen].double()
        return {
            "train_loss": loss.mean().item(),
            "clean_loss": (((1 - weight) * loss).sum() / (1 - weight).sum()).item(),
            "noisy_loss": ((weight * loss).sum() / weight.sum()).item(),
        }

    def suspects(self, k: int | None, min_score: float) -> list[Suspect]:
        """Samples whose labels were judged, the likeliest to be wrong first.

        Args:
            k: How many at most; None: all.
            min_score: Only scores above this; 0 for all of them.
        """
        columns = self.suspect_columns(k, min_score).values()
        return [Suspect(*row) for row in zip(*(one.tolist() for one in columns), strict=True)]

    def suspect_columns(self, k: int | None = None, min_score: float = 0.0) -> Columns:
        """The same by column, with the names of `Suspect`."""
        verdict = self._verdict
        if verdict is None:
            return {name: np.empty(0, np.int64) for name in Suspect._fields}
        score = torch.where(verdict.chance.isnan(), -1.0, self._weight(verdict))
        (rows,) = torch.where(score > min_score if min_score > 0 else score >= 0)
        order = score[rows].argsort(descending=True, stable=True)
        rows = rows[order[:k]]
        return {
            "index": self.history.index_of(rows).numpy(),
            "score": score[rows].numpy(),
            "given_label": self.history.past.given_label[rows].numpy(),
            "predicted_label": verdict.rival[rows].numpy(),
        }

    def clean_indices(self) -> tuple[NDArray[np.int64], list[str]]:
        """Places of the samples that are no suspects, sorted; none, and why, if that may harm."""
        verdict = self._verdict
        if verdict is None:
            return np.empty(0, np.int64), ["clean_indices() is empty: no label was judged yet"]
        score = self._weight(verdict)
        why_not = why_not_go_on(score, verdict.rival, self._vote())
        if why_not is not None and not self._is_known:
            return np.empty(0, np.int64), [f"clean_indices() is empty: {why_not}"]
        (rows,) = torch.where(~verdict.chance.isnan() & (score <= 0.5))
        return self.history.index_of(rows).numpy().astype(np.int64), []

    def columns(self) -> Columns:
        """One row for each sample followed, in the order of the data set."""
        past, verdict = self.history.past, self._verdict
        size = self.history.size
        unknown, no_label = np.full(size, np.nan, np.float32), np.full(size, -1, np.int32)
        score = unknown
        if verdict is not None:
            score = torch.where(verdict.chance.isnan(), torch.nan, self._weight(verdict)).numpy()
        return {
            "index": self.history.index_of(torch.arange(size, device="cpu")).numpy(),
            "visits": past.visits.int().numpy(),
            "given_label": past.given_label.numpy().copy(),
            "predicted_label": no_label if verdict is None else verdict.rival.numpy().copy(),
            "loss": past.loss.numpy().copy(),
            "mean_margin": past.mean_margin.numpy(),
            "mean_error": past.mean_error.numpy(),
            "score": score,
            "vote": self._vote().numpy().copy(),
        }

    def _unless_known(self, weight: Tensor) -> Tensor:
        known = self._known[:-1].cpu()
        return torch.where(known.isnan(), weight, known)

    def _weight(self, verdict: Verdict) -> Tensor:
        """How noisy each label is taken to be, `[n]`."""
        return self._unless_known(verdict.chance.nan_to_num(nan=0.5))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        verdicts = {"verdict": self._verdict, "latest": self._latest[-1]}
        kept = {name: None if one is None else dict(vars(one)) for name, one in verdicts.items()}
        return kept | {
            "history": self.history.state_dict(),
            "known": self._known.cpu().clone(),
            "first_visits": self.first_visits.state_dict(),
        }

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is of a data set of another size, or damaged.
        """
        mapping(state)
        resume_history = self.history.resuming(state["history"])
        classes = state["history"]["classes"]
        resume_first_visits = self.first_visits.resuming(state["first_visits"], classes)
        known = like(state["known"], self._known)
        within(known[:-1], 0, 1, or_nan=True)
        verdict, latest = (self._loaded(state[name], classes) for name in ("verdict", "latest"))

        def resume() -> None:
            resume_history()
            resume_first_visits()
            self._known, self._verdict, self._on_device = known, verdict, None
            self._latest = (None, latest)

        return resume

    def _loaded(self, verdict: dict[str, Tensor] | None, classes: int) -> Verdict | None:
        past = self.history.past
        if verdict is None:
            return None
        mapping(verdict)
        chance, rival = like(verdict["chance"], past.loss), like(verdict["rival"], past.rival)
        return Verdict(within(chance, 0, 1, or_nan=True), within(rival, -1, classes - 1))
