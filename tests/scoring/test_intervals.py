"""Intervals over scenes: by hand, against what theory says, and by whether they hold the truth as often as they say."""

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lcfuse_core.book import coverage
from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.scoring import intervals
from lcfuse_core.scoring.intervals import difference, interval, interval_table, over_pixels, recall_of
from lcfuse_core.scoring.scores import confusion, summarise

DATA_SETS = int(os.environ.get("LCFUSE_COVERAGE_SETS", "100"))
"""500 for what the chapter says; fewer in the suite."""


def scenes_of(right, n_pixels=100):
    """Scenes with forest alone, of which so many pixels are right."""
    groups = np.zeros((len(right), 11, 11), np.int64)
    groups[:, 1, 1] = right
    groups[:, 1, 10] = n_pixels - np.asarray(right)
    return groups


@pytest.mark.parametrize("name", intervals.BY_NAME)
@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_score_of_many_is_that_of_each(name, seed):
    """The fast form for stacks of matrices agrees with `summarise`, on empty ones and on Snow/Ice too."""
    rng = np.random.default_rng(seed)
    pairs = [rng.choice((0, 1, 3, 6, 8, 10), (2, size)) for size in (30, 30, 5, 1)]
    counts = np.stack([confusion(*pair) for pair in pairs])
    expected = [getattr(summarise(one), name) if one[[1, 6, 10]].any() else math.nan for one in counts]
    np.testing.assert_allclose(intervals.BY_NAME[name](counts), expected)
    np.testing.assert_allclose(intervals.BY_NAME[name](counts[:, None])[:, 0], expected)


def test_the_jackknife_of_a_mean_is_the_textbook_interval():
    """Equally large scenes of one class: AA is a mean of shares, so the interval is Student's."""
    shares = np.array([80, 60, 90, 70, 55, 65])
    found = interval(scenes_of(shares), method="jackknife")
    expected = stats.t.interval(0.95, 5, loc=shares.mean() / 100, scale=stats.sem(shares / 100))
    assert found.value == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n_groups == 6
    assert 0.7 in found
    assert found.high + 1e-9 not in found


@pytest.mark.parametrize("method", intervals.METHODS)
def test_every_method_holds_the_score_and_repeats_itself(method):
    """The value lies inside, a higher level is wider, the same seed gives the same interval."""
    groups = scenes_of([80, 60, 90, 70, 55, 65, 85])
    found = interval(groups, method=method, draws=199)
    assert found == interval(groups, method=method, draws=199)
    assert found.low < found.value < found.high
    wider = interval(groups, method=method, draws=199, level=0.99)
    assert wider.high - wider.low > found.high - found.low


@pytest.mark.parametrize("method", intervals.METHODS)
def test_scenes_that_are_all_alike_leave_no_doubt(method):
    found = interval(scenes_of([70] * 5), method=method, draws=49)
    assert (found.low, found.high) == pytest.approx((0.7, 0.7))


def test_one_scene_gives_no_interval_and_none_no_value():
    one, none = interval(scenes_of([70])), interval(np.zeros((0, 11, 11), int))
    assert (one.value, one.n_groups) == (0.7, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(none.value)


def test_three_scenes_say_almost_nothing():
    """Of three groups, one draw in nine is thrice the same: the bootstrap can bound nothing, and says so."""
    found = interval(scenes_of([60, 70, 80]))
    assert (found.low, found.high) == (0, 1)


def test_an_interval_ends_where_the_score_does():
    found = interval(scenes_of([100, 99, 60, 100, 98, 97]), method="jackknife")
    assert found.high == 1
    gain = difference(scenes_of([100, 0, 100, 0]), scenes_of([0, 100, 0, 0]), method="jackknife")
    assert (gain.low, gain.high) == (-1, 1)


def test_scenes_without_the_class_say_nothing_about_it():
    """Recall of water rests on the two scenes that have water; the others are no evidence."""
    groups = scenes_of([70, 80, 60, 90])
    groups[0, 10, 10] = groups[1, 10, 1] = 50
    found = interval(groups, recall_of(10))
    assert (found.value, found.n_groups) == (0.5, 2)
    table = interval_table(groups)
    assert table.loc["Water", "groups"] == 2
    assert table.loc["AA", "groups"] == 4
    assert math.isnan(table.loc["Barren", "value"])


def test_a_paired_difference_is_narrow_where_scenes_are_hard_for_both():
    """A map that is 5 points better in every scene: no doubt, though each score by itself is very unsure."""
    right = np.array([20, 50, 90, 40, 70])
    better = difference(scenes_of(right + 5), scenes_of(right))
    assert (better.value, better.low, better.high) == pytest.approx((0.05, 0.05, 0.05))
    alone = interval(scenes_of(right))
    assert alone.high - alone.low > 0.5
    swapped = difference(scenes_of(right), scenes_of(right + 5))
    assert swapped.value == pytest.approx(-0.05)


@pytest.mark.parametrize("method", intervals.METHODS)
def test_maps_of_other_scenes_cannot_be_paired(method):
    with pytest.raises(GridError, match="same reference pixels"):
        difference(scenes_of([1, 2]), scenes_of([1, 2], n_pixels=90), method=method)
    with pytest.raises(GridError, match="other ones"):
        difference(scenes_of([1, 2]), scenes_of([1]), method=method)


def test_what_is_unknown_is_refused():
    with pytest.raises(ParameterError, match="bootstrap, jackknife, percentile"):
        interval(scenes_of([1, 2]), method="BCa")
    with pytest.raises(ParameterError, match="found 95"):
        interval(scenes_of([1, 2]), level=95)
    with pytest.raises(GridError, match=r"\(11, 11\)"):
        interval(np.eye(11, dtype=int))


@pytest.fixture(scope="module")
def population():
    """Counts of many scenes, whose AA is known."""
    return coverage.draw_population(800 if DATA_SETS < 500 else 3000, seed=1)


def test_errors_of_the_simulation_lie_in_patches(population):
    """Pixels beside each other are right or wrong together; common classes are easier than rare ones."""
    rng = np.random.default_rng(0)
    pairs = [coverage.draw_scene(rng) for _ in range(20)]
    wrong = np.stack([reference != predicted for reference, predicted in pairs]).astype(float)
    beside = np.corrcoef(wrong[:, :, 1:].ravel(), wrong[:, :, :-1].ravel())[0, 1]
    assert beside > 0.7
    recall = [float(recall_of(code)(population.sum(axis=0))) for code in (1, 10)]
    assert recall[0] > recall[1] + 0.3


@pytest.mark.slow
def test_intervals_over_scenes_hold_the_truth_and_those_over_pixels_do_not(population):
    """Of 95 % intervals 92 to 98 % do, with seven regions and with thirty scenes; over pixels hardly any."""
    found = coverage.coverage(population, (7, 30), data_sets=DATA_SETS, methods=("bootstrap",))
    covered = found.set_index(["scenes", "interval"])["covered"]
    # Chance alone moves a share of n data sets: three standard deviations of a binomial, beyond 95 +- 3.
    slack = 0 if DATA_SETS >= 500 else 300 * math.sqrt(0.95 * 0.05 / DATA_SETS) - 3
    for n in (7, 30):
        assert 92 - max(0, slack) <= covered[n, "scenes, bootstrap"] <= 98 + max(0, slack)
        assert covered[n, coverage.PIXELS] < 40


def test_over_pixels_is_the_binomial_interval():
    """One class: the interval of a share, as in every textbook, and far too narrow here."""
    counts = scenes_of([80, 40]).sum(axis=0)
    half = 1.959964 * math.sqrt(0.6 * 0.4 / 200)
    found = over_pixels(counts)
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))


def test_examples_say_where_the_truth_is(population):
    table = coverage.examples(population, n_sets=3)
    assert table["data_set"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table.attrs["truth"] == pytest.approx(100 * float(intervals.average_accuracy(population.sum(axis=0))))
    assert (table["low"] < table["value"]).all()
