"""Borders and small objects: by hand and by brute force."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lcfuse_core.errors import GridError
from lcfuse_core.scoring.spatial import near_borders, near_small_objects

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


def test_grids_that_do_not_fit_are_refused():
    ones = np.ones((4, 4), np.uint8)
    with pytest.raises(GridError, match=r"shape \(1, 4, 4\), expected \(H, W\)"):
        near_small_objects(ones[None])
