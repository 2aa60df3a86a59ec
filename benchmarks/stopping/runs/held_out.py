"""What held-out labels would add to the rule, on the runs that hold some out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.stopping.runs.kept import records_of
from benchmarks.stopping.runs.rivals import Choice, Watched, noisy_validation
from benchmarks.stopping.runs.scores import Judged, validation_of
from benchmarks.stopping.runs.variants import History, Readings, Variant, Vote
from prioritymonitor.stopping.reading import WINDOW, Reading

MOST_SAMPLES = 2_000
"""As many held-out samples as the monitor looks at."""

Join = Callable[[Reading, Reading], Reading]
"""From what the vote and the held-out labels say to what both say."""
Rule = Callable[[Judged], Choice]
"""A rule on the run without the held-out samples."""


@dataclass(frozen=True)
class HeldOut:
    """The accuracy of the averaged weights on held-out samples with their given labels.

    Attributes:
        samples: How many there are.
        errors: The line, in standard errors of the accuracy.
        window: Epochs over which it is averaged.
    """

    samples: int
    errors: float = 1.0
    window: int = WINDOW

    def __call__(self, history: History) -> Readings:
        """The peak is the best epoch, or the middle one of the best epochs."""
        values = [record["validation"] for record in history]
        ends = range(1, len(values) + 1)
        windows = [values[max(end - self.window, 0) : end] for end in ends]
        means = [sum(window) / len(window) for window in windows]
        readings: Readings = []
        for end in ends:
            highest = max(means[:end])
            peak = max(means.index(highest) - self.window // 2, 0) + 1
            error = (highest * (1 - highest) / min(self.samples, MOST_SAMPLES)) ** 0.5
            fall = highest - means[end - 1]
            readings.append(Reading("", peak, highest, fall, self.errors * error))
        return readings


def peak_by(choose: Callable[[int, int], int]) -> Join:
    """The vote says when to stop; the best epoch follows from both peaks."""
    return lambda vote, held_out: Reading(
        "", choose(vote.peak, held_out.peak), vote.highest, vote.fall, vote.line
    )


def stop_by(choose: Callable[[bool, bool], bool], peak: Callable[[int, int], int]) -> Join:
    """When to stop and the best epoch follow from both."""
    return lambda vote, held_out: Reading(
        "", peak(vote.peak, held_out.peak), 1.0, choose(vote.is_below, held_out.is_below), 1.0
    )


def of_vote(vote: int, held_out: int) -> int:
    """The peak of the vote."""
    return vote


def of_held_out(vote: int, held_out: int) -> int:
    """The peak of the held-out labels."""
    return held_out


def middle(vote: int, held_out: int) -> int:
    """Half-way between the peaks, the later epoch where there are two such."""
    return -(-(vote + held_out) // 2)


def both(vote: bool, held_out: bool) -> bool:
    """Both are below their lines."""
    return vote and held_out


def either(vote: bool, held_out: bool) -> bool:
    """One of them is below its line."""
    return vote or held_out


def joined(
    run: Judged, how: Join, errors: float = 1.0, window: int = WINDOW, at_peak: bool = False
) -> Choice:
    """What the vote and the held-out labels say of a run together."""

    def read(history: History) -> Readings:
        held_out = HeldOut(_samples(run), errors, window)(history)
        pairs = zip(Vote()(history), held_out, strict=True)
        return [other if one is None or other is None else how(one, other) for one, other in pairs]

    return Variant(read, at_peak=at_peak)(run.setting, history_of(run))


def vote_only(run: Judged, later: int = 0) -> Choice:
    """The rule as it is without held-out labels."""
    return Variant(Vote(), later=later)(run.setting, history_of(run))


def held_out_only(run: Judged, errors: float, window: int = WINDOW) -> Choice:
    """By the held-out labels alone."""
    read = HeldOut(_samples(run), errors, window)
    return Variant(read, at_peak=True)(run.setting, history_of(run))


def best_epoch(run: Judged, by_loss: bool = False) -> Choice:
    """Noisy validation over the whole run, the rival."""
    setting, curves = run.setting, run.kept["held_out"]["curves"]
    watched = Watched(setting.epochs, setting.views_per_epoch, {}, validation_of(curves))
    return noisy_validation(watched, "averaged", patience=None, by_loss=by_loss)


def history_of(run: Judged) -> History:
    """Of the run without the held-out samples."""
    return records_of(run.kept["held_out"]["history"])


def _samples(run: Judged) -> int:
    return int(run.kept["held_out"]["samples"])


WITNESSED: dict[str, Rule] = {
    "vote only": vote_only,
    "held-out only, line 1 standard error": partial(held_out_only, errors=1.0),
    "held-out only, no mean, line 1 standard error": partial(held_out_only, errors=1.0, window=1),
    "best accuracy of the whole run (a rival)": best_epoch,
    "lowest loss of the whole run (a rival)": partial(best_epoch, by_loss=True),
    "vote stops, later peak": partial(joined, how=peak_by(max)),
    "vote stops, earlier peak": partial(joined, how=peak_by(min)),
    "vote stops, middle of the peaks": partial(joined, how=peak_by(middle)),
    "vote stops, held-out peak": partial(joined, how=peak_by(of_held_out)),
    "vote stops, held-out peak without mean": partial(joined, how=peak_by(of_held_out), window=1),
    "vote stops, held-out peak at the end of any run": partial(
        joined, how=peak_by(of_held_out), at_peak=True
    ),
    "vote stops, middle of the peaks at the end of any run": partial(
        joined, how=peak_by(middle), at_peak=True
    ),
    "stop if both are below, peak of the vote": partial(joined, how=stop_by(both, of_vote)),
    "stop if both are below, held-out peak": partial(joined, how=stop_by(both, of_held_out)),
    "stop if either is below, peak of the vote": partial(joined, how=stop_by(either, of_vote)),
    "stop if either is below, held-out peak": partial(joined, how=stop_by(either, of_held_out)),
    "stop if either is below, middle of the peaks": partial(joined, how=stop_by(either, middle)),
    "vote stops, middle of the peaks, held-out without mean": partial(
        joined, how=peak_by(middle), window=1
    ),
}
