"""Windows: weights that sum to one, and strips that are the scene, once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lcfuse_core.errors import ParameterError
from lcfuse_core.mapping.windows import Tiling, side_weights, window_slices

SIDE = st.integers(1, 300)


@given(SIDE, st.integers(2, 80), st.integers(0, 40), st.integers(0, 20))
def test_weights_sum_to_one_and_margins_weigh_nothing(length, window, overlap, margin):
    """At every pixel; and the outermost pixels of a window count only at the scene's own edge."""
    overlap = min(overlap, window // 2)
    margin = min(margin, overlap // 2)
    slices = window_slices(length, window, overlap)
    total = np.zeros(length)
    for pixels, weight in zip(slices, side_weights(slices, overlap, margin), strict=True):
        assert (weight >= 0).all()
        total[pixels] += weight
        if pixels.start > 0:
            assert (weight[:margin] == 0).all()
        if pixels.stop < length:
            assert (weight[len(weight) - margin :] == 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


@settings(max_examples=30)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(6, 60), st.integers(0, 30), st.integers(25, 120))
def test_units_are_the_scene_once_and_name_all_windows_they_need(rows, cols, window, overlap, panel):
    """Each pixel is in one unit, and each window with weight there is among those of its unit."""
    tiling = Tiling((rows, cols), window, min(overlap, window // 2), 0, panel)
    seen = np.zeros((rows, cols), int)
    for number, unit in enumerate(tiling.units()):
        assert unit.number == number
        seen[unit.rows, unit.cols] += 1
        assert unit.cols.stop - unit.cols.start <= panel
        needed = [
            i for i, part in enumerate(tiling.rows) if part.start < unit.rows.stop and part.stop > unit.rows.start
        ]
        assert needed == list(range(unit.first, unit.last + 1))
    assert (seen == 1).all()


@pytest.mark.parametrize("sizes", [(0, 0, 0, 1), (64, 33, 0, 1), (64, 32, 17, 1), (64, 32, -1, 1), (64, 32, 8, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ParameterError, match=f"window={sizes[0]}, overlap={sizes[1]}"):
        Tiling((100, 100), *sizes)
