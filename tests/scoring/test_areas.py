"""Areas: the worked example of the paper, and intervals with their nominal coverage."""

import numpy as np
import pytest

from lcfuse_core.data.legends import DFC2020
from lcfuse_core.errors import DataError
from lcfuse_core.scoring import areas, scores

# Olofsson et al. 2014, section 5, table 8: deforestation, forest gain, stable forest, stable non-forest.
EXAMPLE = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED_PX = np.array([200_000, 150_000, 3_200_000, 6_450_000])
PIXEL_HA = 0.09  # Landsat, 30 m


def test_the_worked_example_of_the_paper_comes_out():
    """Areas in hectares with the halves of their 95 % intervals, as printed in section 5.3."""
    area, error = areas._adjusted(EXAMPLE, MAPPED_PX * PIXEL_HA)
    np.testing.assert_allclose(area, [21_158, 11_686, 285_770, 581_386], atol=1)
    np.testing.assert_allclose(1.96 * error, [6_158, 3_756, 15_510, 16_282], atol=1)


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


def test_a_class_that_was_not_mapped_has_an_area():
    """Half of the pixels mapped as class 0 are class 1, which is not in the map; a map without errors stays."""
    np.testing.assert_allclose(areas._adjusted(np.array([[25, 25], [0, 0]]), np.array([100.0, 0.0]))[0], [50, 50])
    np.testing.assert_allclose(areas._adjusted(np.diag([50, 50]), np.array([10.0, 20.0])), [[10, 20], [0, 0]])


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(DataError, match="map class 1 with fewer than two samples"):
        areas._adjusted(np.array([[5, 0], [0, 1]]), np.array([1.0, 1.0]))
    with pytest.raises(DataError, match="found no area"):
        areas._adjusted(np.diag([5, 5]), np.zeros(2))
