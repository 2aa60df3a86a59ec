"""What a monitor tells of a run, as of its last closed epoch; reading changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .records import Suspect
from .run import Run


class Readings:
    """The part of `GradientMonitor` that is only read; from any thread."""

    _run: Run

    @property
    def noise_rate(self) -> float:
        """Estimated share of wrong labels among the samples seen, in [0, 1]; NaN before epoch 1."""
        return self._run.table.noise_rate

    @property
    def latest(self) -> dict[str, float]:
        """Statistics of the last measured step by tag, without prefix; empty before the first."""
        return self._run.steps.statistics.peek()

    def history(self) -> list[dict[str, Any]]:
        """One record per closed epoch, the first one first; also after the stop.

        Returns:
            Plain dicts, with the same keys in every epoch: `epoch`, `step`, `time` (seconds since
            1970), `samples_seen`, `initial_loss`, `train_loss`, `clean_loss`, `noisy_loss`,
            `noise_rate`, `priority`, `agreement`, `contradicted`, `prediction_changes`,
            `validation`, `validation_samples`, `best_epoch`, `stop`, `reason` (the name of a
            `StopReason`). None where a value is not known.
        """
        return [dict(record) for record in self._run.records]

    def suspects(self, k: int | None = None, min_score: float = 0.5) -> list[Suspect]:
        """The training samples whose labels are taken to be wrong, the likeliest first.

        Args:
            k: How many at most, at least 0; None: all.
            min_score: Only scores above this, in [0, 1]; with 0 all samples that were visited.

        Returns:
            Tuples `(index, score, given_label, predicted_label)`; the index is the place in
            `train_loader.dataset`. Empty before much is learnt.

        Raises:
            ArgumentTypeError: `k` is no whole number, or `min_score` no number.
            ArgumentValueError: One of them is out of its range.
        """
        arguments.check_count("k", k, least=0)
        arguments.check_share("min_score", min_score)
        return self._run.table.suspects(k, min_score)

    def clean_indices(self) -> NDArray[np.int64]:
        """Samples to go on training with after `restore_best()`: those that are no suspects.

        Returns:
            Places in `train_loader.dataset`, int64, sorted; empty where that is not known to help,
            and the log says why.

        Examples:
            >>> part = Subset(dataset, monitor.clean_indices())  # doctest: +SKIP
        """
        indices, why_none = self._run.table.clean_indices()
        self._run.log.once(*why_none)
        return indices

    def samples(self) -> dict[str, NDArray[Any]]:
        """Everything known of each sample, as of the last closed epoch.

        Returns:
            Columns by name, arrays `[n]` with one entry for each sample followed, in the order of
            the data set; empty without sample identities:

            - `index`, `given_label`, `predicted_label`, `score`: as in `suspects()`;
            - `visits`: how often it was trained on; `loss`: of its latest epoch;
            - `mean_margin`, in [−1, 1], and `mean_error`, in [0, √2], over all visits;
            - `vote`: the label given to most of its neighbours, for 5,000 samples at most.

            −1 or NaN where a value is not known.

        Examples:
            >>> table = pd.DataFrame(monitor.samples())  # doctest: +SKIP
        """
        return self._run.table.columns()
