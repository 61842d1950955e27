"""Windows: weights that sum to one, and strips that are the scene, once."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcfuse_core.errors import ParameterError
from lcfuse_core.mapping.windows import Predicted, Tiling, _side_weights, _window_slices, blend

SIDE = st.integers(1, 300)


@given(SIDE, st.integers(1, 80), st.integers(0, 40))
def test_windows_are_equal_cover_all_and_overlap_enough(length, window, overlap):
    overlap = min(overlap, window // 2)
    slices = _window_slices(length, window, overlap)
    assert {part.stop - part.start for part in slices} == {min(window, length)}
    assert (slices[0].start, slices[-1].stop) == (0, length)
    for before, after in pairwise(slices):
        assert before.start < after.start <= before.stop - overlap


@given(SIDE, st.integers(2, 80), st.integers(0, 40), st.integers(0, 20))
def test_weights_sum_to_one_and_are_zero_in_margins(length, window, overlap, margin):
    """At every pixel; and the outermost pixels of a window count only at the scene's own edge."""
    overlap = min(overlap, window // 2)
    margin = min(margin, overlap // 2)
    slices = _window_slices(length, window, overlap)
    total = np.zeros(length)
    for pixels, weight in zip(slices, _side_weights(slices, overlap, margin), strict=True):
        assert (weight >= 0).all()
        total[pixels] += weight
        if pixels.start > 0:
            assert (weight[:margin] == 0).all()
        if pixels.stop < length:
            assert (weight[len(weight) - margin :] == 0).all()
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 60), st.integers(0, 30))
def test_strips_are_the_scene_once(rows, cols, window, overlap):
    """Blending the coordinates of every pixel gives them back, in strips that follow each other; gaps stay invalid."""
    tiling = Tiling((rows, cols), window, min(overlap, window // 2), 0)
    scene = np.arange(rows * cols, dtype=np.float32).reshape(1, rows, cols)
    known = np.random.default_rng(0).random((rows, cols)) > 0.3
    windows = (
        Predicted(i, j, known[r, c], scene[:, r, c] if known[r, c].any() else None)
        for i, r in enumerate(tiling.rows)
        for j, c in enumerate(tiling.cols)
    )
    stop = 0
    for strip, values, valid in blend(windows, tiling, 1):
        assert strip.start == stop
        stop = strip.stop
        np.testing.assert_array_equal(valid, known[strip])
        np.testing.assert_allclose(values[0][valid], scene[0, strip][valid], rtol=1e-5, atol=1e-3)
    assert stop == rows


@pytest.mark.parametrize("sizes", [(0, 0, 0), (64, 33, 0), (64, 32, 17), (64, 32, -1)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ParameterError, match=f"window={sizes[0]}, overlap={sizes[1]}"):
        Tiling((100, 100), *sizes)
