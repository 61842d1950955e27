"""Areas: the worked example of the paper, and intervals with their nominal coverage."""

import numpy as np
import pytest

from lcfuse_core.data.legends import DFC2020
from lcfuse_core.errors import DataError, GridError
from lcfuse_core.scoring import areas, scores

# Olofsson et al. 2014, section 5, table 8: deforestation, forest gain, stable forest, stable non-forest.
EXAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED_PX = np.array([200_000, 150_000, 3_200_000, 6_450_000])
PIXEL_HA = 0.09  # Landsat, 30 m


def test_the_worked_example_of_the_paper_comes_out():
    """Areas in hectares with the halves of their 95 % intervals, and accuracies, as printed in section 5.3."""
    estimate = areas.adjusted(EXAMPLE, MAPPED_PX * PIXEL_HA)
    np.testing.assert_allclose(estimate.area, [21_158, 11_686, 285_770, 581_386], atol=1)
    np.testing.assert_allclose(1.96 * estimate.area_se, [6_158, 3_756, 15_510, 16_282], atol=1)
    np.testing.assert_allclose(estimate.users, [0.88, 0.73, 0.93, 0.96], atol=0.005)
    np.testing.assert_allclose(1.96 * estimate.users_se, [0.07, 0.10, 0.04, 0.02], atol=0.005)
    np.testing.assert_allclose(estimate.producers, [0.75, 0.85, 0.93, 0.96], atol=0.005)
    assert estimate.overall == pytest.approx(0.95, abs=0.005)
    assert 1.96 * estimate.overall_se == pytest.approx(0.02, abs=0.005)


def world(rng, n=40_000):
    """A reference of three classes and a map of it that mistakes one for another."""
    reference = rng.choice([1, 6, 10], n, p=[0.1, 0.6, 0.3])
    wrong = rng.random(n) < np.select([reference == 1, reference == 6], [0.3, 0.1], 0.02)
    return reference, np.where(wrong, rng.choice([1, 6, 10], n), reference)


def test_intervals_cover_the_true_area_at_their_nominal_rate():
    """Brute force: 400 samples of one map. The adjusted area is right on average, the map's pixels are not."""
    rng = np.random.default_rng(0)
    reference, mapped = world(rng)
    names = {code: DFC2020.name_of(code) for code in (1, 6, 10)}
    pixels = areas.pixels_of(mapped)
    hits, adjusted = [], []
    for _ in range(400):
        at = np.concatenate([rng.choice(np.flatnonzero(mapped == code), 60, replace=False) for code in names])
        table = areas.from_confusion(scores.confusion(reference[at], mapped[at]), pixels)
        truth = np.array([(reference == code).sum() / 100 for code in names])
        table = table.loc[list(names.values())]
        adjusted.append(table["adjusted, ha"].to_numpy())
        hits.append(np.abs(adjusted[-1] - truth) <= table["± ha"].to_numpy())
    assert 0.91 < np.mean(hits) < 0.98
    error = np.abs(np.mean(adjusted, axis=0) - truth)
    spread = np.std(adjusted, axis=0)
    assert (error < 4 * spread / np.sqrt(len(adjusted))).all()
    by_pixels = np.array([(mapped == code).sum() / 100 for code in names])
    assert (np.abs(by_pixels - truth) > 8 * error).any()


def test_the_standard_errors_of_accuracies_are_the_spread_of_samples():
    """Brute force: counts drawn from what each map class truly holds, 2,000 times; samples too large to be skewed."""
    rng = np.random.default_rng(1)
    shares = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.02, 0.08, 0.9]])
    mapped = np.array([1000.0, 6000.0, 3000.0])
    drawn = [np.stack([rng.multinomial(500, row) for row in shares]) for _ in range(2000)]
    estimates = [areas.adjusted(sample, mapped) for sample in drawn]
    for name in ("users", "producers", "area", "overall"):
        found = np.std([getattr(estimate, name) for estimate in estimates], axis=0)
        said = np.mean([getattr(estimate, f"{name}_se") for estimate in estimates], axis=0)
        np.testing.assert_allclose(said, found, rtol=0.08, err_msg=name)


def test_a_sample_of_all_pixels_of_a_right_map_changes_nothing():
    """Without errors the adjusted area is that of the map, with standard error zero."""
    estimate = areas.adjusted(np.diag([50, 50, 50]), np.array([10.0, 20.0, 30.0]))
    np.testing.assert_allclose(estimate.area, [10, 20, 30])
    assert (estimate.area_se == 0).all()
    assert estimate.overall == 1


def test_a_class_that_was_not_mapped_has_an_area_and_no_users_accuracy():
    """Half of the pixels mapped as class 0 are class 1, which is not in the map."""
    estimate = areas.adjusted(np.array([[25, 25], [0, 0]]), np.array([100.0, 0.0]))
    np.testing.assert_allclose(estimate.area, [50, 50])
    assert np.isnan(estimate.users[1])
    assert estimate.producers[1] == 0


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(DataError, match="map class 1 with fewer than two samples"):
        areas.adjusted(np.array([[5, 0], [0, 1]]), np.array([1.0, 1.0]))
    with pytest.raises(DataError, match="found no area"):
        areas.adjusted(np.diag([5, 5]), np.zeros(2))
    with pytest.raises(GridError, match=r"a sample of shape \(2, 3\)"):
        areas.adjusted(np.ones((2, 3)), np.ones(2))
