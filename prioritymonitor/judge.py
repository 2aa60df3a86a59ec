"""What hangs on samples that can be told apart: their table, the advice, and the kept weights."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from .arguments import Settings
from .capture.rerun import unwrapped
from .data_parallel import DataParallel, NotJudged
from .errors import ArgumentTypeError, ArgumentValueError, contained, described, is_from_signal
from .loaded import mapping
from .records import Decision, EpochOfSamples, Record, StopReason
from .samples.table import SampleTable
from .stopping.kept_weights import WeightKeeper
from .stopping.rule import Rule, measure_only
from .stopping.witnesses import WITNESSES

_MOST_RELABELLED = 0.01
"""Share of samples that may show another label than before, until their identity is doubted."""

_MUCH_MEMORY = 2**30
"""Bytes of the table of samples from which on it is said what it takes."""


class Judge:
    """Follows samples, and asks the witnesses and the rule at the end of each epoch.

    Witnesses, the rule and the kept weights fail each for itself.

    Args:
        table: What is known of each sample.
        keeper: Keeps the weights of the best epoch; None: nobody does.
        rule: From the records of the epochs to a decision.
        say: Tells the user about a problem.
    """

    def __init__(
        self,
        table: SampleTable,
        keeper: WeightKeeper | None,
        rule: Rule,
        say: Callable[[str], None],
    ) -> None:
        self.table = table
        self.others = DataParallel(table, say)
        """The other ranks of a data-parallel run."""
        self.keeper = keeper
        self._rule = rule
        self._say = say
        if self.table.bytes > _MUCH_MEMORY:
            say(
                f"following {self.table.history.size} samples takes "
                f"{self.table.bytes / 2**30:.1f} GiB; max_tracked= follows a random subset instead"
            )

    @classmethod
    def of(
        cls, model: nn.Module, dataset_size: int, settings: Settings, say: Callable[[str], None]
    ) -> Judge:
        """The judge that the user's settings ask for.

        Raises:
            ArgumentValueError: The memory does not hold so many samples.
        """
        try:
            table = SampleTable(dataset_size, settings.max_tracked)
        except (RuntimeError, MemoryError) as error:
            if is_from_signal(error):
                raise
            raise ArgumentValueError(
                f"got a data set of {dataset_size:,} samples, more than the memory can follow: let "
                "its __len__ give how many there really are, use max_tracked= to follow a random "
                "subset, or leave train_loader out and do without suspects and stop"
            ) from error
        keeps, averaged = settings.keep_best is not None, settings.keep_best == "averaged"
        # By their names in the user's own module: a run may be resumed without the wrapper.
        keeper = WeightKeeper(unwrapped(model), averaged) if keeps else None
        return cls(table, keeper, settings.stop or measure_only, say)

    def step_made(self, expected_steps: float) -> None:
        """Take the weights after an optimizer step into the average.

        Args:
            expected_steps: How many of them an epoch has.
        """
        if self.keeper is not None:
            with self._alone("the average of the weights"):
                self.keeper.update(expected_steps)

    def count_steps(self, before: float) -> float:
        """How many optimizer steps the epoch had that ends now; `before` where nobody counted."""
        return float(max(self.keeper.end_epoch(), 1)) if self.keeper is not None else before

    def end_epoch(self, record: Record, earlier: tuple[Record, ...], before: Decision) -> Decision:
        """Close an epoch of the samples, fill in its record, and decide.

        Args:
            record: Of which only its place is known yet.
            earlier: The records of the epochs before.
            before: The advice so far; a stop stays.

        Raises:
            NotJudged: Samples showed other labels than before, or ranks can't know the same.
        """
        self.others.combine(record)
        table, past = self.table, self.table.history.past
        epoch = table.end_epoch()
        if epoch.relabelled > _MOST_RELABELLED * table.history.size:
            table.history.past = past
            if len(earlier) < 2:  # what was known of them before was never checked
                table.forget()
            raise NotJudged(
                StopReason.NO_IDENTITY,
                f"{epoch.relabelled} of them showed another label than before; something between "
                "train_loader and the model changes the order of batches or their labels",
            )
        epoch = self._with_votes(epoch)
        record["samples_seen"] = epoch.samples_seen
        record["initial_loss"] = _known(table.history.initial_loss)
        for name, witness in WITNESSES.items():
            with self._alone(name):
                record[name] = _known(witness(epoch, earlier))
        if not before.stop:
            table.judge()
        record["noise_rate"] = _known(table.noise_rate)
        decision = before if before.stop else self._decide([*earlier, record])
        if not before.stop:
            table.settle([record["epoch"] - peak for peak in _peaks(decision)])
        known = table.losses() | {"noise_rate": table.noise_rate}
        record |= {name: _known(value) for name, value in known.items()}
        return decision if before.stop else self._with_weights(decision, record["epoch"])

    def _with_votes(self, epoch: EpochOfSamples) -> EpochOfSamples:
        """The same with the votes of the neighbours, if they have voted by now."""
        with self._alone("the neighbours' vote"):
            epoch = replace(epoch, vote=self.table.ask_neighbours())
        why_none = self.table.first_visits.why_none
        if why_none is not None:
            self._say(f"neighbours don't vote: {why_none}; the stop rests on what else is known")
        return epoch

    def _decide(self, history: list[Record]) -> Decision:
        with self._alone("stop="):
            return _checked(self._rule([dict(record) for record in history]), len(history))
        reason = StopReason.RULE_FAILED
        # By the rule that only measures, so that weights are kept.
        with self._alone("the best epoch"):
            return replace(measure_only(history), reason=reason, message=reason.value)
        return Decision(False, reason, len(history), None, reason.value)

    def _with_weights(self, decision: Decision, now: int) -> Decision:
        """Keep the weights, and name the epoch of those there are, where the rule names another."""
        keeper = self.keeper
        if keeper is None:
            return decision
        with self._alone("the kept weights"):
            keeper.hold(now)
            keeper.keep(*_peaks(decision))
        best = decision.best_epoch
        if not keeper.has(best):
            best = next(iter(keeper.kept), now)
        if decision.stop and best is not None:
            keeper.keep(best)
            keeper.freeze()
        if best == decision.best_epoch or not keeper.has(best):
            return decision
        message = f"{decision.message}; the weights kept are those of epoch {best}"
        return replace(decision, best_epoch=best, message=message)

    def restore(self, decision: Decision) -> int | None:
        """Put the weights of the best epoch into the model.

        Returns:
            The epoch; None if its weights are not there.
        """
        epoch = decision.best_epoch
        if self.keeper is None or epoch is None or not self.keeper.has(epoch):
            return None
        self.keeper.restore(epoch)
        return epoch

    def _alone(self, name: str) -> contained:
        """Contains a failure of one part, said once; it is asked again the next time."""

        def failed(error: Exception) -> None:
            self._say(f"{name} failed, measuring and training go on: {described(error)}")

        return contained(failed)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types."""
        keeper = self.keeper.state_dict() if self.keeper is not None else None
        return {"table": self.table.state_dict(), "keeper": keeper}

    def resuming(self, state: dict[str, Any]) -> Callable[[], None]:
        """What goes on from a `state_dict`.

        Raises:
            ArgumentValueError: It is damaged, or of a run on other data or with other weights.
        """
        mapping(state)
        if (self.keeper is None) != (state["keeper"] is None):
            has = "without" if state["keeper"] is None else "with"
            raise ArgumentValueError(
                f"got a state {has} kept weights; make the monitor with the same keep_best as the "
                "one that saved it"
            )
        resume_table = self.table.resuming(state["table"])
        resume_keeper = self.keeper.resuming(state["keeper"]) if self.keeper is not None else None

        def resume() -> None:
            resume_table()
            if resume_keeper is not None:
                resume_keeper()

        return resume


def _peaks(decision: Decision) -> tuple[int, ...]:
    """The epochs that may turn out to be the best one."""
    best = decision.best_epoch
    return decision.peak_epochs or (() if best is None else (best,))


def _checked(decision: Any, now: int) -> Decision:
    """What a rule gave, as numbers that can be saved: it may be anyone's function."""
    if not isinstance(decision, Decision) or not isinstance(decision.reason, StopReason):
        raise ArgumentTypeError(
            f"got {type(decision).__name__} from the function; it must return a Decision with a "
            "StopReason"
        )
    best, peaks = decision.best_epoch, tuple(map(operator.index, decision.peak_epochs))
    checked = replace(
        decision,
        stop=bool(decision.stop),
        epoch=operator.index(decision.epoch),
        best_epoch=None if best is None else operator.index(best),
        message=str(decision.message),
        peak_epochs=peaks,
    )
    named = [*peaks, now if checked.best_epoch is None else checked.best_epoch]
    if not 0 <= checked.epoch <= now or not all(1 <= epoch <= now for epoch in named):
        raise ArgumentValueError(
            f"got a Decision of epoch {checked.epoch} that names {sorted({*named})} from the "
            f"function; it must name epochs from 1 to {now}, the latest"
        )
    return checked


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
