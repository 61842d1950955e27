"""Intervals over groups: by hand, against theory, and by their coverage in a simulation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import hierarchical as simulation
from lcfuse_core.errors import GridError, ParameterError
from lcfuse_core.scoring import intervals
from lcfuse_core.scoring.intervals import difference, interval, over_pixels


def scenes_of(right, n_pixels=100):
    """Scenes, in any number of axes, with forest alone, of which so many pixels are right."""
    counts = np.zeros((*np.shape(right), 11, 11), np.int64)
    counts[..., 1, 1], counts[..., 1, 10] = right, n_pixels - np.asarray(right)
    return counts


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


@pytest.mark.parametrize("method", ["bootstrap", "jackknife", "percentile"])
def test_every_method_contains_the_score_and_is_repeatable(method):
    """The same seed gives the same interval; equal scenes give an interval of width zero."""
    groups = scenes_of([80, 60, 90, 70, 55, 65, 85])
    found = interval(groups, method=method)
    assert found == interval(groups, method=method)
    assert found.low < found.value < found.high
    equal = interval(scenes_of([70] * 5), method=method)
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
    assert interval(groups).n_groups == 4
    assert math.isnan(interval(groups, "recall.Barren").value)


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
def test_intervals_over_scenes_have_their_nominal_coverage_and_those_over_pixels_do_not(n_scenes, monkeypatch):
    """Scenes of two classes with a recall of their own each: the pixels of a scene are right or wrong together."""
    monkeypatch.setattr(intervals, "_DRAWS", 99)
    rng, n_sets = np.random.default_rng(0), 120
    recall = rng.beta(6, 4, (4000, 2))
    population = np.zeros((4000, 11, 11), np.int64)
    for column, code in enumerate((1, 10)):
        n_pixels = rng.integers(200, 2000, 4000)
        population[:, code, code] = rng.binomial(n_pixels, recall[:, column])
        population[:, code, 6] = n_pixels - population[:, code, code]
    truth = float(intervals.compute_score(population.sum(0), "aa"))
    samples = [population[rng.integers(0, 4000, n_scenes)] for _ in range(n_sets)]
    covered = np.mean([truth in interval(one) for one in samples])
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / n_sets) <= covered <= 0.99
    assert np.mean([truth in over_pixels(one.sum(0)) for one in samples]) < 0.5


def test_over_pixels_is_the_binomial_interval():
    """One class: the textbook interval of a proportion."""
    half = 1.959964 * math.sqrt(0.6 * 0.4 / 200)
    found = over_pixels(scenes_of([80, 40]).sum(axis=0))
    assert (found.low, found.high) == pytest.approx((0.6 - half, 0.6 + half))


def crossed_error(values):
    """Standard error of the mean of values (worlds, regions), by the analysis of variance of two crossed factors."""
    n, m = values.shape
    rows, cols = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    of_rows, of_cols = np.var(rows, ddof=1) / n, np.var(cols, ddof=1) / m
    both = ((values - rows - cols + values.mean()) ** 2).sum() / ((n - 1) * (m - 1) * n * m)
    return math.sqrt(max(of_rows + of_cols - both, of_rows, of_cols))


def test_the_hierarchical_interval_is_that_of_loops_over_draws_worlds_and_regions():
    """Two classes, so that AA of pooled regions is no mean; two trainings in a world are averaged."""
    rng, draws = np.random.default_rng(1), 40
    one, other = rng.integers(1, 90, (2, 3, 2, 4, 11, 11))
    other[..., 2:] = one[..., 2:]
    other[..., 0] = one.sum(-1) - other[..., 1:].sum(-1)

    def score(side, world, training, regions):
        return float(intervals.compute_score(sum(side[world, training, region] for region in regions), "aa"))

    def parts(world, regions):
        """The difference in a world, and the jackknife's pseudo-value of each region."""
        whole, pseudo = 0.0, np.zeros(4)
        for training in (0, 1):
            for sign, side in ((0.5, one), (-0.5, other)):
                own = score(side, world, training, regions)
                whole += sign * own
                for place in range(4):
                    without = score(side, world, training, [r for i, r in enumerate(regions) if i != place])
                    pseudo[place] += sign * (4 * own - 3 * without)
        return whole, pseudo

    whole, pseudo = zip(*(parts(world, range(4)) for world in range(3)), strict=True)
    value, error = np.mean(whole), crossed_error(np.array(pseudo))
    rng = np.random.default_rng(7)
    drawn_worlds, drawn_regions = rng.integers(0, 3, (draws, 3)), rng.integers(0, 4, (draws, 4))
    away = []
    for worlds, regions in zip(drawn_worlds, drawn_regions, strict=True):
        whole, pseudo = zip(*(parts(world, regions) for world in worlds), strict=True)
        away.append(abs(np.mean(whole) - value) / crossed_error(np.array(pseudo)))
    half = min(np.quantile(away, 0.95, method="higher"), stats.t.ppf(0.975, 2)) * error
    found = intervals.hierarchical(one, other, draws=draws, seed=7)
    assert found.value == pytest.approx(value)
    assert (found.low, found.high) == pytest.approx((max(-1, value - half), min(1, value + half)))
    assert found == intervals.hierarchical(one, other, draws=draws, seed=7)


def test_equal_worlds_and_regions_have_an_interval_of_no_width():
    alike = intervals.hierarchical(scenes_of(np.full((3, 1, 4), 70)), draws=49)
    assert (alike.low, alike.value, alike.high) == pytest.approx((0.7, 0.7, 0.7))
    right = np.random.default_rng(0).integers(10, 80, (3, 1, 4))
    gain = intervals.hierarchical(scenes_of(right + 5), scenes_of(right), draws=49)
    assert (gain.low, gain.high) == pytest.approx((0.05, 0.05)), "paired: the variance of worlds cancels"


@pytest.mark.parametrize("shape", [(1, 1, 4, 11, 11), (3, 1, 1, 11, 11), (3, 4, 11, 11), (3, 1, 4, 8, 8)])
def test_one_world_or_one_region_has_no_hierarchical_interval(shape):
    with pytest.raises(GridError, match="two worlds and two regions or more"):
        intervals.hierarchical(np.ones(shape, int))


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_its_definition(p):
    """For each rank k the largest of (m - j + 1) p_(j) over j <= k, at most 1; NaN takes no part."""
    adjusted = intervals.holm([math.nan, *p])
    assert math.isnan(adjusted[0])
    products = [min(1.0, (len(p) - rank) * value) for rank, value in enumerate(sorted(p))]
    expected = [max(products[: rank + 1]) for rank in range(len(p))]
    assert sorted(adjusted[1:]) == pytest.approx(expected)
    by_p = sorted(zip(p, adjusted[1:], strict=True))
    assert [own for _, own in by_p] == sorted(adjusted[1:])


def test_the_components_of_variance_are_those_of_the_simulation():
    """The mean of the estimates over many simulated designs; a score without variation has none."""
    rng, true = np.random.default_rng(0), {"world": 4, "region": 9, "region in world": 2, "training": 1, "rest": 0.5}
    shapes = [(8, 1, 1), (1, 1, 6), (8, 1, 6), (8, 3, 1), (8, 3, 6)]
    found = []
    for _ in range(300):
        effects = [v**0.5 * rng.standard_normal(s) for v, s in zip(true.values(), shapes, strict=True)]
        found.append(intervals.components(70 + sum(effects)))
    for name, value in true.items():
        assert np.mean([one[name] for one in found]) == pytest.approx(value, rel=0.15), name
    assert set(intervals.components(np.full((3, 2, 4), 70.0)).values()) == {0.0}


@pytest.mark.parametrize("scores", [np.ones((5, 1, 6)), np.ones((5, 3)), np.full((2, 2, 2), np.nan)])
def test_components_need_two_of_each_factor_and_no_gaps(scores):
    with pytest.raises(GridError, match="two of each"):
        intervals.components(scores)


@pytest.mark.parametrize("effects", [(0.5, 0.0, 0.1), (0.1, 0.5, 0.1), (0.1, 0.1, 0.5)])
def test_the_hierarchical_interval_has_about_its_nominal_coverage(effects):
    """Whichever effect is the largest; `benchmarks/hierarchical.py` measures it with more data sets."""
    options = SimpleNamespace(sets=40, worlds=5, regions=6, draws=99, seed=1)
    assert simulation.coverage(effects, options)["hierarchical"] >= 85
