"""What held-out labels would add to the rule, on the runs that hold some out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from benchmarks.stopping.runs.kept import records_of
from benchmarks.stopping.runs.replay import choice_of
from benchmarks.stopping.runs.rivals import Choice, Watched, noisy_validation
from benchmarks.stopping.runs.scores import Judged, validation_of
from benchmarks.stopping.runs.variants import History, constants
from prioritymonitor import StopRule
from prioritymonitor.records import Record
from prioritymonitor.stopping.agreement import read_agreement
from prioritymonitor.stopping.reading import WINDOW, Reading, read_share

MOST_SAMPLES = 2_000
"""As many held-out samples as the monitor looks at."""

Readings = list[Reading | None]
"""After each epoch; None where nothing can be said."""
Join = Callable[[Reading, Reading], Reading]
"""From what the vote and the held-out labels say to what both say."""
Rule = Callable[[Judged], Choice]
"""A rule on the run without the held-out samples."""


def vote_of(history: History) -> Readings:
    """What the neighbours' vote says after each epoch."""
    tolerance = StopRule().tolerance
    return [read_agreement(history[:now], tolerance) for now in range(1, len(history) + 1)]


def held_out_of(history: History, errors: float, window: int) -> Readings:
    """What the averaged weights' accuracy on held-out samples says after each epoch.

    Args:
        history: The records.
        errors: The line, in standard errors of the accuracy.
        window: Epochs over which it is averaged.
    """
    readings: Readings = []
    with constants(WINDOW=window, ALIKE=0.0):
        for now in range(1, len(history) + 1):
            found = read_share(history[:now], "validation", "", 0.0)
            assert found is not None
            count = history[0]["validation_samples"]
            error = (found.highest * (1 - found.highest) / count) ** 0.5
            readings.append(replace(found, line=errors * error))
    return readings


def choose(run: Judged, readings: Readings, at_peak: bool) -> Choice:
    """Stop as the monitor's rule does, once the line was reached for so many epochs running.

    Args:
        run: The run.
        readings: After each epoch.
        at_peak: Whether the best epoch is the peak before the line is reached, too.
    """
    setting, below, end = run.setting, 0, len(readings)
    for now, found in enumerate(readings, 1):
        below = below + 1 if found is not None and found.is_below else 0
        if below >= StopRule().patience:
            end = now
            break
    last = readings[end - 1]
    best = last.peak if last is not None and (last.is_below or at_peak) else end
    return Choice(best * setting.views_per_epoch, end, end < setting.epochs)


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
    history = history_of(run)
    pairs = zip(vote_of(history), held_out_of(history, errors, window), strict=True)
    both = [other if one is None or other is None else how(one, other) for one, other in pairs]
    return choose(run, both, at_peak)


def the_rule(run: Judged) -> Choice:
    """The monitor's, which looks at held-out labels."""
    return choice_of(run.setting, history_of(run))


def vote_only(run: Judged) -> Choice:
    """The monitor's, without held-out labels."""
    return choice_of(run.setting, [one | {"validation": None} for one in history_of(run)])


def held_out_only(run: Judged, errors: float, window: int = WINDOW) -> Choice:
    """By the held-out labels alone."""
    return choose(run, held_out_of(history_of(run), errors, window), at_peak=True)


def best_epoch(run: Judged, by_loss: bool = False) -> Choice:
    """Noisy validation over the whole run, the rival."""
    setting, curves = run.setting, run.kept["held_out"]["curves"]
    watched = Watched(setting.epochs, setting.views_per_epoch, {}, validation_of(curves))
    return noisy_validation(watched, "averaged", patience=None, by_loss=by_loss)


def history_of(run: Judged) -> list[Record]:
    """Of the run without the held-out samples."""
    held_out = run.kept["held_out"]
    count = {"validation_samples": min(held_out["samples"], MOST_SAMPLES)}
    return [record | count for record in records_of(held_out["history"])]


WITNESSED: dict[str, Rule] = {
    "vote only": vote_only,
    "the rule": the_rule,
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
    "vote stops, held-out peak without mean at the end of any run": partial(
        joined, how=peak_by(of_held_out), window=1, at_peak=True
    ),
    "stop if either is below (1.5 errors), held-out peak without mean": partial(
        joined, how=stop_by(either, of_held_out), errors=1.5, window=1
    ),
}
