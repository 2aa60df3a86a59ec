"""Means over families, their errors, and what was asked for."""

import pytest

from benchmarks.environment import read_results
from benchmarks.stopping.leave_one_out import candidates, row
from benchmarks.stopping.runs import variants
from benchmarks.stopping.runs.details import bars, risen
from benchmarks.stopping.runs.kept import read_kept
from benchmarks.stopping.runs.scores import MONITOR, Judged, Outcome, judge
from benchmarks.stopping.runs.settings import Setting, settings
from benchmarks.stopping.runs.summaries import error_of_mean, family_mean
from benchmarks.stopping.runs.variants import Variant, constants
from prioritymonitor.stopping import agreement, reading


def run(family="digits", data="digits", seed=0, rate=0.4, regret=1.0, spent=3, curve=(1.0, 5.0)):
    """A run of which only the monitor's outcome is known."""
    setting = Setting(family, data, rate=rate, epochs=9, seed=seed)
    best = max(curve)
    outcome = Outcome("averaged", 0, spent, spent, True, best - regret, regret, regret)
    curves = {"raw": [0.0], "averaged": list(curve)}
    return Judged(setting, {"curves": curves, "held_out": None}, {MONITOR: [outcome]})


def regret_of(run):
    return run.of(MONITOR).regret


def test_a_family_counts_as_much_as_another():
    runs = [run("a", regret=1.0), run("a", "letter", regret=3.0), run("b", regret=6.0)]
    assert family_mean(runs, regret_of) == pytest.approx((2 + 6) / 2)


def test_the_error_is_that_of_the_mean_over_settings():
    settings = [run(data=data, regret=value) for data, value in (("x", 1), ("y", 2), ("z", 6))]
    expected = (((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2 / 3) ** 0.5
    assert error_of_mean(settings, regret_of) == pytest.approx(expected)


def test_seeds_of_one_setting_are_no_further_evidence():
    once = [run(data=data, regret=value) for data, value in (("x", 1), ("y", 2))]
    twice = [*once, *(run(data=r.setting.data, seed=1, regret=regret_of(r)) for r in once)]
    assert error_of_mean(twice, regret_of) == pytest.approx(error_of_mean(once, regret_of))
    assert error_of_mean([once[0], twice[2]], regret_of) is None


def test_the_rise_is_counted_up_to_the_stop():
    curve = (10.0, 20.0, 40.0, 35.0, 50.0)
    assert risen(run(spent=4, curve=curve)) == pytest.approx(30 / 40)
    assert risen(run(spent=1, curve=(9.0, 8.0))) == 1.0, "it never rose"


def test_bars_are_held_to_the_mean_and_to_the_worst():
    runs = [run("a", regret=0.1), run("b", regret=3.0), run("b", rate=0.0, regret=0.2)]
    found = {bar.what: bar for bar in bars(runs, {MONITOR: 0})}
    assert found["wrong labels: regret, mean over families"].measured == pytest.approx(1.55)
    worst = found["wrong labels: regret, worst run"]
    assert (worst.measured, worst.met) == (3.0, False)
    assert found["no wrong labels: what a stop costs, worst"].met


def test_constants_of_the_rule_are_put_back():
    before = variants.DEFAULTS.copy()
    with constants(AT_STAKE=0.5, WINDOW=1):
        assert (agreement.AT_STAKE, reading.WINDOW) == (0.5, 1)
    after = {name: getattr(place, name) for name, place in variants.PLACES.items()}
    assert after == before


def test_the_family_that_is_left_out_has_no_say_in_its_constants():
    default, other = candidates()[0], candidates()[1]
    assert default == Variant()

    def outcomes(regret):
        return {True: [run(regret=regret).of(MONITOR)], False: []}

    found = {
        default: {"a": outcomes(0.0), "b": outcomes(2.0), "c": outcomes(2.0)},
        other: {"a": outcomes(9.0), "b": outcomes(1.0), "c": outcomes(1.0)},
    }
    assert row(found, "a")["noisy_regret"] == 9.0
    assert row(found, "a")["default_noisy_regret"] == 0.0
    assert row(found, "b")["noisy_regret"] == 2.0


def test_the_tables_are_those_of_the_kept_runs():
    """Of the runs that the results tell one by one; all of them would take too long."""
    wanted = {(one.family, one.group, one.seed): one for one in settings()}
    results = read_results("stopping/grid")
    told = [one for part in ("worst", "human", "slow") for one in results[part]]
    for one in told[::4]:
        (kept,) = read_kept([wanted[one["family"], one["run"], one["seed"]]])
        ours = judge(kept).of(MONITOR)
        assert ours.regret == pytest.approx(one["regret"], abs=1e-4)
        assert (ours.spent if ours.stopped else None) == one["stopped"]
