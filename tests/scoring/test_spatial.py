"""Borders and coarse cells: by hand, by brute force, and on the true geometry of the MODIS grid."""

from itertools import product

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lcfuse_core.data.cells import cell_ids
from lcfuse_core.errors import GridError
from lcfuse_core.scoring.scores import summarise
from lcfuse_core.scoring.spatial import cell_confusion, near_borders, near_small_objects

maps = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from((0, 1, 6, 10)))


def others_within(labels, radius):
    """Brute force: for each pixel, whether another known class lies within the square around it."""
    rows, cols = labels.shape
    found = np.zeros(labels.shape, bool)
    for row, col in product(range(rows), range(cols)):
        window = labels[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1]
        found[row, col] = labels[row, col] > 0 and bool(set(window[window > 0].tolist()) - {labels[row, col]})
    return found


@given(maps, st.integers(0, 4))
def test_pixels_near_borders_are_those_of_a_loop(labels, radius):
    np.testing.assert_array_equal(near_borders(labels, radius), others_within(labels, radius))


def test_small_objects_are_those_smaller_than_a_cell_and_inside_the_patch():
    """A pond of 4 x 4 pixels counts with its surroundings of 2 pixels; a lake and a pond at the edge do not."""
    reference = np.ones((120, 120), np.uint8)
    reference[10:14, 20:24] = 10
    reference[40:100, 40:100] = 10  # 3,600 pixels, more than a cell
    reference[60:64, 116:] = 6
    expected = np.zeros(reference.shape, bool)
    expected[8:16, 18:26] = True
    np.testing.assert_array_equal(near_small_objects(reference, 2), expected)
    reference[40:87, 40:85], reference[87:100], reference[:, 85:100] = 10, 1, 1  # now 47 x 45, less than a cell
    assert near_small_objects(reference, 2)[40, 40]
    assert not near_small_objects(np.zeros((5, 5), np.uint8)).any()


def cells_of(side):
    """Cells of a patch in the north of Italy, sheared against its rows as real ones are."""
    return cell_ids(Affine(10, 0, 5e5, 0, -10, 5e6), "EPSG:32632", (side, side))[0]


def test_a_map_agrees_with_modis_where_the_majority_of_the_cell_does():
    """Each whole cell: 60 % of its pixels with the class of MODIS, 40 % another class; then the other way round."""
    ids = cells_of(200)
    rng = np.random.default_rng(0)
    coarse = rng.choice((1, 6, 10), ids.max() + 1).astype(np.uint8)[ids]
    other = rng.random(ids.shape) < 0.4
    mostly, hardly = np.where(other, 4, coarse).astype(np.uint8), np.where(~other, 4, coarse).astype(np.uint8)
    n_whole = int((np.bincount(ids.ravel()) > 0.98 * 463.3127**2 / 100).sum())
    agreeing = cell_confusion(coarse, mostly, ids)
    assert agreeing.sum() == n_whole >= 9
    assert summarise(agreeing).oa == 1
    assert summarise(cell_confusion(coarse, hardly, ids)).oa == 0
    assert cell_confusion(coarse, hardly, ids)[:, 4].sum() == n_whole


def test_cells_that_are_cut_are_not_counted():
    small = np.ones((20, 20), np.uint8)
    assert cell_confusion(small, small, cells_of(20)).sum() == 0


def test_grids_that_do_not_fit_are_refused():
    ones = np.ones((4, 4), np.uint8)
    with pytest.raises(GridError, match=r"shape \(1, 4, 4\), expected \(H, W\)"):
        near_small_objects(ones[None])
    with pytest.raises(GridError, match="cells"):
        cell_confusion(ones, ones, np.zeros((3, 3), np.int32))
