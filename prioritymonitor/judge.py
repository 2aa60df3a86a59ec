"""The end of an epoch: from what its samples did to the advice, and the weights that go with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from .errors import ArgumentTypeError, contained
from .records import Decision, EpochOfSamples, Record, StopReason
from .samples.table import SampleTable
from .stopping.kept_weights import WeightKeeper
from .stopping.rule import Rule, first_judged
from .stopping.witnesses import WITNESSES


class Judge:
    """Asks the witnesses and the rule at the end of an epoch; each of them fails alone.

    Args:
        table: What is known of each sample.
        rule: From the records of the epochs to a decision.
        keeper: Keeps the weights of the best epoch; None: nobody does.
        say: Tells the user about a problem.
    """

    def __init__(
        self,
        table: SampleTable,
        rule: Rule,
        keeper: WeightKeeper | None,
        say: Callable[[str], None],
    ) -> None:
        self._table = table
        self._rule = rule
        self._keeper = keeper
        self._say = say

    def end_epoch(
        self, epoch: EpochOfSamples, record: Record, earlier: tuple[Record, ...], before: Decision
    ) -> Decision:
        """Fill in the record of an epoch, and decide.

        Args:
            epoch: What the epoch did to the samples.
            record: Its record, of which only its place is known yet.
            earlier: The records of the epochs before.
            before: The advice so far; a stop stays.
        """
        table = self._table
        record["initial_loss"] = _known(table.history.initial_loss)
        for name, witness in WITNESSES.items():
            with self._alone(name):
                record[name] = _known(witness(epoch, earlier))
        was_judged = first_judged(earlier) is not None
        if not was_judged:  # then this epoch is the best so far
            table.judge()
        record["noise_rate"] = _known(table.noise_rate)
        decision = before if before.stop else self._decide([*earlier, record], before)
        if not before.stop and self._is_best(decision, record["epoch"]):
            self._keep(decision)
            if was_judged:
                table.judge()
        known = table.losses() | {"noise_rate": table.noise_rate}
        record |= {name: _known(value) for name, value in known.items()}
        return self._with_kept_weights(decision)

    def _decide(self, history: list[Record], before: Decision) -> Decision:
        reason = StopReason.RULE_FAILED
        decision = Decision(False, reason, len(history), before.best_epoch, reason.value)
        with self._alone("stop"):
            decision = _checked(self._rule([dict(record) for record in history]))
        return decision

    def _is_best(self, decision: Decision, epoch: int) -> bool:
        """Whether the best epoch's weights are those of now; an average trails by its lag."""
        lag = self._keeper.lag if self._keeper is not None else 0
        best = decision.best_epoch
        return best is not None and best <= epoch <= best + lag

    def _keep(self, decision: Decision) -> None:
        if self._keeper is not None and decision.best_epoch is not None:
            with self._alone("kept weights"):
                self._keeper.keep(decision.best_epoch)

    def _with_kept_weights(self, decision: Decision) -> Decision:
        """The decision with the epoch whose weights there are, where the rule names another."""
        kept = self._keeper.epoch if self._keeper is not None else None
        if kept is None or kept == decision.best_epoch:
            return decision
        message = f"{decision.message}; the weights kept are those of epoch {kept}"
        return replace(decision, best_epoch=kept, message=message)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Contains a failure of one of them, said once; it is asked again the next time."""

        def failed(error: Exception) -> None:
            self._say(
                f"{name} failed, measuring and training go on: {type(error).__name__}: {error}"
            )

        with contained(failed):
            yield


def _checked(decision: Any) -> Decision:
    if isinstance(decision, Decision):
        return decision
    raise ArgumentTypeError(
        f"stop= gave {type(decision).__name__}; it must give a prioritymonitor.Decision"
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
