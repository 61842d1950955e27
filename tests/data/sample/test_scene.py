"""The sample scene: files of a region of the sample world, with weather."""

import numpy as np
import rasterio

from lcfuse_core.data.legends import SCORED
from lcfuse_core.data.sample import scene, world


def test_sample_scene_shares_signatures_with_its_region_and_is_found_again(tmp_path):
    """Signatures from the same seed; the same files again; weather hides a corner and a hole."""
    name = world.TEST_REGIONS[1].name
    assert scene.signature_seed(3, name) == (3, 2, world._number(name), 1)
    made = scene.make_place(tmp_path / "p", 0, side=96)
    times = [path.stat().st_mtime_ns for path in (made.s2, made.coarse)]
    assert scene.make_place(tmp_path / "p", 0, side=96) == made
    assert [path.stat().st_mtime_ns for path in (made.s2, made.coarse)] == times
    arrays = []
    for path in (made.s2, made.clouds, made.truth):
        with rasterio.open(path) as file:
            arrays.append(file.read())
    s2, clouds, truth = arrays
    assert 0.01 < (s2 == 0).all(axis=0).mean() < 0.3
    assert 0.005 < clouds.mean() < 0.2
    assert set(np.unique(truth)) <= set(SCORED)
