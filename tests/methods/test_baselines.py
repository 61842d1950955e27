"""Baselines without training: proportions add up, swaps keep the counts of every cell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import PLACE, UTM
from toys import IGBP_OF_CLASS

from lcfuse_core.data.patches import Patch
from lcfuse_core.data.source import patch_cells
from lcfuse_core.methods.baselines import _laid_out, filled_map, soft_label, soft_map, swap, swapped_map


def patch_of(classes, **place):
    """A patch of these network classes (255: Savanna) as MODIS labels; its images are empty."""
    lc = np.zeros((4, *classes.shape), np.uint8)
    lc[0] = np.where(classes == 255, 9, IGBP_OF_CLASS[np.minimum(classes, 7)])
    s2, s1 = np.zeros((13, *classes.shape), np.uint16), np.zeros((2, *classes.shape), np.float32)
    return Patch("baseline", s1, s2, lc, **place)


@pytest.fixture(scope="module")
def cells_patch():
    """128 x 128 pixels of real cells, their labels drawn from three classes."""
    bare = patch_of(np.zeros((128, 128), int), crs=UTM, transform=PLACE)
    cells = patch_cells(bare)
    classes = np.random.default_rng(1).choice([0, 4, 7], cells.max() + 1)[cells]
    return patch_of(classes, crs=UTM, transform=PLACE)


def test_filling_changes_only_labels_that_cannot_be_right():
    """Savanna takes the nearest other label; a patch of Savanna alone is returned as it is."""
    classes = np.zeros((30, 60), int)
    classes[:, 40:] = 7
    classes[:, 10:30] = 255
    filled = filled_map(patch_of(classes))
    usable = classes != 255
    np.testing.assert_array_equal(filled[usable], np.where(classes == 7, 10, 1)[usable])
    assert (filled[:, :40] == 1).all()
    classes[:, 30:40] = 255  # now water is as near as forest, at the middle
    assert (filled_map(patch_of(classes))[:, :24] == 1).all()
    assert (filled_map(patch_of(classes))[:, 26:] == 10).all()
    assert (filled_map(patch_of(np.full((20, 20), 255))) == 3).all()


def test_soft_labels_are_shares(cells_patch):
    """All alike for a patch without a label."""
    shares = soft_label(cells_patch)
    assert (shares.shape, shares.dtype) == ((8, 128, 128), np.float32)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=1e-5)
    assert (shares[[1, 2, 3, 5, 6]] == 0).all()
    np.testing.assert_allclose(soft_label(patch_of(np.full((40, 40), 255))), 1 / 8)


def test_a_patch_of_one_label_stays_as_it_is():
    """Savanna is filled from around it."""
    classes = np.full((60, 60), 4)
    classes[20:30, 20:30] = 255
    np.testing.assert_array_equal(soft_label(patch_of(classes))[4], 1)
    assert (soft_map(patch_of(classes)) == 6).all()
    assert (swapped_map(patch_of(classes)) == 6).all()


def test_two_labels_are_equal_at_their_border():
    """Beyond the reach of the blur the nearer one has all."""
    classes = np.zeros((60, 200), int)
    classes[:, 100:] = 7
    share = soft_label(patch_of(classes))[0, 30]
    assert share[99] + share[100] == pytest.approx(1, abs=1e-5)
    assert share[0] == pytest.approx(1, abs=1e-4)
    assert (np.diff(share) <= 1e-6).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_a_layout_keeps_the_shares_of_each_cell(seed):
    """To the pixel."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 5, (20, 20)).astype(np.int32)
    share = rng.dirichlet(np.full(8, 0.4), 5)
    classes = _laid_out(share, cells, rng)
    for cell in range(5):
        counts = np.bincount(classes[cells == cell], minlength=8)
        np.testing.assert_allclose(counts, share[cell] * (cells == cell).sum(), atol=1)


def together(classes):
    """Proportion of neighbouring pixels that are of one class."""
    return ((classes[1:] == classes[:-1]).mean() + (classes[:, 1:] == classes[:, :-1]).mean()) / 2


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_swapping_keeps_counts_and_joins_classes(seed):
    """Every class has as many pixels in every cell as before; neighbours agree far more often."""
    rng = np.random.default_rng(seed)
    cells = (np.mgrid[:40, :40][0] // 20 * 2 + np.mgrid[:40, :40][1] // 20).astype(np.int32)
    before = _laid_out(rng.dirichlet(np.ones(8), 4), cells, rng)
    after = swap(before, cells)
    for cell in range(4):
        counts = [np.bincount(classes[cells == cell], minlength=8) for classes in (before, after)]
        np.testing.assert_array_equal(*counts)
    assert together(after) > together(before) + 0.2


def test_a_mixed_cell_between_two_pure_ones_is_sorted():
    """Each class moves to the side of the pure cell of its class."""
    cells = np.repeat(np.array([0, 1, 2], np.int32), 20)[None].repeat(20, axis=0)
    classes = np.where(cells == 2, 7, 0).astype(np.uint8)
    rng = np.random.default_rng(0)
    classes[:, 20:40] = rng.permutation(np.repeat([0, 7], 200)).reshape(20, 20)
    after = swap(classes, cells)
    assert (after[:, :20] == 0).all()
    assert (after[:, 40:] == 7).all()
    assert (after[:, 20:30] == 0).mean() > 0.95


def test_the_sum_of_attraction_rises():
    """By a brute-force sum over the pixels up to five away, with the weights of the paper."""
    rng = np.random.default_rng(3)
    cells = np.zeros((20, 20), np.int32)
    classes = _laid_out(np.array([[0.3, 0, 0.3, 0, 0, 0.4, 0, 0]]), cells, rng)
    offsets = [(row, col) for row in range(-5, 6) for col in range(-5, 6) if 0 < np.hypot(row, col) <= 5]

    def attraction(classes):
        padded = np.pad(classes, 5, mode="edge")
        shifted = [(np.hypot(row, col), padded[5 + row : 25 + row, 5 + col : 25 + col]) for row, col in offsets]
        return sum(np.exp(-distance / 2.5) * (other == classes).sum() for distance, other in shifted)

    assert attraction(swap(classes, cells)) > 1.2 * attraction(classes)
