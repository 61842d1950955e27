"""Windowed prediction of files against the fusion of the whole; windows whose weights sum to one."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import AT, UTM, member, scene_arrays, write
from rasterio.crs import CRS

from lcfuse_core.data.legends import index_to_dfc
from lcfuse_core.data.patches import Patch
from lcfuse_core.errors import DataError, ParameterError
from lcfuse_core.mapping import predict
from lcfuse_core.mapping.coarse import open_coarse
from lcfuse_core.mapping.predict import Tiling, Window, _side_weights, _window_slices, blend, strips
from lcfuse_core.mapping.scene import Grid, open_scene
from lcfuse_core.methods.fusion import Fusion, FusionPlan
from lcfuse_core.training.predict import predict as predict_patch


@pytest.fixture
def files(tmp_path):
    """Files and arrays of a scene with a corner without data, and a coarse map with a legend of its own."""
    s2, s1 = scene_arrays()
    s2[:, :30, :50] = 0
    igbp = np.full((1, 150, 200), 10, np.uint8)
    igbp[0, :, 100:] = 12
    (tmp_path / "legend.yaml").write_text("10: Grassland\n12: Croplands\n")  # read per pixel, not per MODIS cell
    names = [write(tmp_path / f"{name}.tif", array) for name, array in (("s2", s2), ("s1", s1), ("igbp", igbp))]
    return names, (s2, s1, igbp), tmp_path / "legend.yaml"


@pytest.mark.parametrize("window", [64, 256])
def test_strips_equal_the_fusion_of_the_whole(files, tmp_path, window):
    """Two members, four flips, a coarse prior: equal to the last digit, as 6 px of margin hide the padding."""
    (s2_path, s1_path, igbp_path), (s2, s1, igbp), legend = files
    plan = FusionPlan(symmetries=4, prior_power=0.3)
    members = [member(tmp_path / "a.safetensors"), member(tmp_path / "b.safetensors", seed=5)]
    grid = Grid(CRS.from_string(UTM), AT, (150, 200))
    with open_scene(s2_path, s1_path) as scene, open_coarse(igbp_path, grid, legend) as coarse:
        parts = list(strips(scene, members, Tiling(grid.shape, window, 24, 6), plan, coarse=coarse))
        posterior = coarse.posterior()
    got = {name: np.concatenate([layers[name] for _, layers in parts], axis=1) for name in parts[0][1]}
    functions = {m.name: lambda patch, run=m.run: predict_patch(run, patch) for m in members}
    whole = Patch("whole", s1, s2, np.repeat(igbp, 4, axis=0))
    expected = Fusion(functions, plan, posterior).predict(whole)
    inner = np.s_[:, 37:, 57:]  # away from the corner without data, which the fusion does not mask
    np.testing.assert_allclose(got["probabilities"][inner] * 0.004, expected[inner], atol=0.0025)
    np.testing.assert_allclose(got["confidence"][inner] * 0.004, expected.max(0)[None][inner], atol=0.0025)
    margin = np.subtract(*np.sort(expected, axis=0)[[-1, -2]]) > 0.001
    clear = np.broadcast_to(margin, (1, *margin.shape))[inner]
    np.testing.assert_array_equal(
        got["landcover"][inner][clear], index_to_dfc(expected.argmax(axis=0))[None][inner][clear]
    )
    hidden = np.zeros((1, 150, 200), bool)
    hidden[:, :30, :50] = True
    np.testing.assert_array_equal(got["landcover"] == 0, hidden)
    np.testing.assert_array_equal(got["confidence"] == 255, hidden)
    assert (got["probabilities"][:, hidden[0]] == 255).all()


def test_members_are_chosen_by_the_sensors_of_the_scene(tmp_path):
    """With radar those that use it; without, those that do not; an error if none is left."""
    both = member(tmp_path / "both.safetensors")
    alone = member(tmp_path / "alone.safetensors", inputs=("s2",), seed=1)
    assert predict.choose([both, alone], has_s1=True) == [both]
    assert predict.choose([alone], has_s1=True) == [alone]
    assert predict.choose([both, alone], has_s1=False) == [alone]
    with pytest.raises(DataError, match=r"found no Sentinel-1, which both uses.*--s1"):
        predict.choose([both], has_s1=False)


# Windows ------------------------------------------------------------------------------------------

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
        Window(i, j, known[r, c], scene[:, r, c] if known[r, c].any() else None)
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
