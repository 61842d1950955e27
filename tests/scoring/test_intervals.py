"""Intervals over groups: by hand, against theory, and by their coverage in a simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.scoring import intervals
from lcfuse_core.scoring.intervals import difference, interval, interval_table, over_pixels


def scenes_of(right, n_pixels=100):
    """Scenes with forest alone, of which so many pixels are right."""
    groups = np.zeros((len(right), 11, 11), np.int64)
    groups[:, 1, 1] = right
    groups[:, 1, 10] = n_pixels - np.asarray(right)
    return groups


def test_the_jackknife_of_a_mean_is_the_textbook_interval():
    """Equally large scenes of one class: AA is a mean of proportions, so the interval is Student's."""
    shares = np.array([80, 60, 90, 70, 55, 65])
    found = interval(scenes_of(shares), method="jackknife")
    expected = stats.t.interval(0.95, 5, loc=shares.mean() / 100, scale=stats.sem(shares / 100))
    assert found.value == pytest.approx(0.7)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n_groups == 6
    assert 0.7 in found
    assert found.high + 1e-9 not in found
    assert str(found).startswith("70.0 % (")


@pytest.mark.parametrize("method", intervals.METHODS)
def test_every_method_contains_the_score_and_is_repeatable(method):
    """The same seed gives the same interval; equal scenes give an interval of width zero."""
    groups = scenes_of([80, 60, 90, 70, 55, 65, 85])
    found = interval(groups, method=method, draws=199)
    assert found == interval(groups, method=method, draws=199)
    assert found.low < found.value < found.high
    equal = interval(scenes_of([70] * 5), method=method, draws=49)
    assert (equal.low, equal.high) == pytest.approx((0.7, 0.7))


def test_few_groups_give_no_interval_or_one_over_all_scores():
    """Of three groups, one draw in nine is the same group three times: the bootstrap has no bound."""
    one, none = interval(scenes_of([70])), interval(np.zeros((0, 11, 11), int))
    assert (one.value, one.n_groups) == (0.7, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(none.value)
    three = interval(scenes_of([60, 70, 80]))
    assert (three.low, three.high) == (0, 1)


def test_an_interval_ends_where_the_score_does():
    found = interval(scenes_of([100, 99, 60, 100, 98, 97]), method="jackknife")
    assert found.high == 1
    gain = difference(scenes_of([100, 0, 100, 0]), scenes_of([0, 100, 0, 0]), method="jackknife")
    assert (gain.low, gain.high) == (-1, 1)


def test_scenes_without_the_class_are_left_out():
    """Recall of water rests on the two scenes that have water."""
    groups = scenes_of([70, 80, 60, 90])
    groups[0, 10, 10] = groups[1, 10, 1] = 50
    found = interval(groups, "recall.Water")
    assert (found.value, found.n_groups) == (0.5, 2)
    table = interval_table(groups)
    assert table.loc["Water", "groups"] == 2
    assert table.loc["AA", "groups"] == 4
    assert math.isnan(table.loc["Barren", "value"])


def test_a_paired_difference_is_narrow_where_scenes_are_difficult_for_both():
    """A map that is 5 points better in every scene: width zero, though the interval of each score is wide."""
    right = np.array([20, 50, 90, 40, 70])
    better = difference(scenes_of(right + 5), scenes_of(right))
    assert (better.value, better.low, better.high) == pytest.approx((0.05, 0.05, 0.05))
    alone = interval(scenes_of(right))
    assert alone.high - alone.low > 0.5
    assert difference(scenes_of(right), scenes_of(right + 5)).value == pytest.approx(-0.05)


def test_maps_of_other_scenes_cannot_be_paired():
    for others in (scenes_of([1, 2], n_pixels=90), scenes_of([1])):
        with pytest.raises(GridError, match="different ones, expected the same reference pixels"):
            difference(scenes_of([1, 2]), others)


def test_unknown_options_are_refused():
    with pytest.raises(ParameterError, match="bootstrap, jackknife, percentile"):
        interval(scenes_of([1, 2]), method="BCa")
    with pytest.raises(ParameterError, match="'f1'"):
        interval(scenes_of([1, 2]), "f1")
    with pytest.raises(GridError, match=r"\(11, 11\)"):
        interval(np.eye(11, dtype=int))


@pytest.mark.parametrize("n_scenes", [7, 30])
def test_intervals_over_scenes_have_their_nominal_coverage_and_those_over_pixels_do_not(n_scenes):
    """Scenes of two classes with a recall of their own each: the pixels of a scene are right or wrong together."""
    rng, n_sets = np.random.default_rng(0), 120
    recall = rng.beta(6, 4, (4000, 2))
    population = np.zeros((4000, 11, 11), np.int64)
    for column, code in enumerate((1, 10)):
        n_pixels = rng.integers(200, 2000, 4000)
        population[:, code, code] = rng.binomial(n_pixels, recall[:, column])
        population[:, code, 6] = n_pixels - population[:, code, code]
    truth = float(intervals.compute_score(population.sum(0), "aa"))
    samples = [population[rng.integers(0, 4000, n_scenes)] for _ in range(n_sets)]
    covered = np.mean([truth in interval(one, draws=99) for one in samples])
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / n_sets) <= covered <= 0.99
    assert np.mean([truth in over_pixels(one.sum(0)) for one in samples]) < 0.5


def test_over_pixels_is_the_binomial_interval():
    """One class: the textbook interval of a proportion."""
    half = 1.959964 * math.sqrt(0.6 * 0.4 / 200)
    found = over_pixels(scenes_of([80, 40]).sum(axis=0))
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))
