"""Learning at home: what of a scene is learnt from, and that a network knows the place better afterwards."""

import numpy as np
import pytest
from places import AT, UTM, member, scene_arrays, write

from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX, SCORED, dfc_to_index
from lcfuse_core.errors import DataError
from lcfuse_core.mapping import coarse, members
from lcfuse_core.mapping import scene as rasters

GRASS, CROPS = SCORED.index(4), SCORED.index(6)


@pytest.fixture
def place(tmp_path):
    """A scene whose west is dark and called Grassland, whose east is bright and called Cropland; a corner unseen."""
    s2, s1 = scene_arrays(rows=160, cols=192)
    s2 = s2 // 4 + np.where(np.arange(192) < 96, 500, 3000).astype(np.uint16)
    s2[:, :20, :20] = 0
    igbp = np.full((1, 160, 192), 10, np.uint8)
    igbp[0, :, 96:] = 12
    igbp[0, :30, 150:] = 9  # Savanna
    files = write(tmp_path / "s2.tif", s2), write(tmp_path / "s1.tif", s1)
    return files, write(tmp_path / "igbp.tif", igbp), igbp[0]


def test_windows_carry_the_labels_and_cells_of_their_place(place, monkeypatch):
    """Unseen pixels and Savanna are not learnt from; windows do not overlap, and stop at the number allowed."""
    files, labels, _ = place
    monkeypatch.setattr(members, "WINDOW_PX", 64)
    with rasters.open_scene(files[:1], files[1:]) as scene, coarse.open_coarse(labels, scene.grid) as found:
        stack = members.windows_to_learn_from(scene, found, crop=32, seed=0)
        corners = [tuple(int(part.split()[-1]) for part in name.split(", ")) for name in stack.names]
        assert len(set(corners)) == len(corners) == 2 * 3  # the corner window is 9 per cent unseen: kept
        for number, (row, col) in enumerate(corners):
            rows, cols = slice(row, row + 64), slice(col, col + 64)
            seen, own = scene.read(rows, cols), found.labels(scene.grid, rows, cols)
            known = seen.valid & (own < SAVANNA_INDEX)
            np.testing.assert_array_equal(stack.labels[number].numpy(), np.where(known, own, IGNORE))
            np.testing.assert_array_equal(stack.s2[number].numpy(), seen.s2)
            cells = stack.cells[number].numpy()
            assert 1 < cells.max() < 9  # 46 pixels a cell
            assert all(len(np.unique(own[cells == cell])) <= 1 for cell in np.unique(cells))
        monkeypatch.setattr(members, "WINDOWS", 2)
        assert len(members.windows_to_learn_from(scene, found, crop=32, seed=0)) == 2
    assert set(dfc_to_index(np.array([4, 6]))) == {GRASS, CROPS}


def test_a_network_learns_the_place_and_is_found_again(place, tmp_path):
    """Random weights learn dark from bright in sixty steps; a second call reads the checkpoint."""
    files, labels, _ = place
    stranger = member(tmp_path / "both.safetensors")
    with rasters.open_scene(files[:1], files[1:]) as scene, coarse.open_coarse(labels, scene.grid) as found:
        seen = scene.read(slice(0, 160), slice(0, 192))
        own = found.labels(scene.grid, slice(0, 160), slice(0, 192))
        known = seen.valid & (own < SAVANNA_INDEX)

        def agreement(one):
            return (one.answer(one.prepare(seen)).argmax(axis=0) == own)[known].mean()

        learnt = members.learn_at_home(scene, found, stranger, tmp_path / "out", steps=60)
        assert agreement(learnt) > 0.85 > agreement(stranger) + 0.2
        (kept,) = (tmp_path / "out").glob("at-home-*.safetensors")
        before = kept.stat().st_mtime_ns
        again = members.learn_at_home(scene, found, stranger, tmp_path / "out", steps=60)
        assert kept.stat().st_mtime_ns == before
        assert again.sha256 == learnt.sha256 != stranger.sha256
        members.learn_at_home(scene, found, stranger, tmp_path / "out", steps=2)
        assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2  # other steps, another network


def test_a_map_that_says_nothing_of_the_place_is_refused(place, tmp_path):
    files, _, igbp = place
    silent = write(tmp_path / "fill.tif", np.full((1, *igbp.shape), 255, np.uint8), crs=UTM, transform=AT)
    with rasters.open_scene(files[:1], files[1:]) as scene, coarse.open_coarse(silent, scene.grid) as found:
        with pytest.raises(DataError, match="no window to learn from"):
            members.windows_to_learn_from(scene, found, crop=32, seed=0)
        with pytest.raises(DataError, match="expected 500 a side"):
            members.windows_to_learn_from(scene, found, crop=500, seed=0)
