"""Pictures of overlap and cells: what they count, and that they show it."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from miniatures import WHOLE, write_scene

from lcfuse_core.book import scale_charts
from lcfuse_core.data import packing, patches
from lcfuse_core.data.packed import PackedScene


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def rows(tmp_path):
    return write_scene(tmp_path / "patches", WHOLE[:4])


def packed(rows, folder):
    packing.pack(rows, folder)
    [path] = folder.glob("*.json")
    return PackedScene(path)


def test_every_patch_counts_once_for_each_of_its_pixels(rows, tmp_path):
    scene = packed(rows, tmp_path / "packs")
    files = scale_charts.files_per_pixel(scene)
    assert files.shape == scene.shape
    assert files.sum() == sum(rows_ * cols for _, _, rows_, cols in map(scene.window_of, scene.names))
    side = scene.tile
    tiles = files.reshape(scene.covered.shape[0], side, -1, side)
    assert ((tiles.max(axis=(1, 3)) > 0) == scene.covered).all()


def test_the_picture_says_the_number_of_files_of_each_tile(rows, tmp_path):
    scene = packed(rows, tmp_path / "packs")
    fig = scale_charts.show_overlap(scene)
    said = [int(text.get_text()) for text in fig.axes[1].texts]
    half = scene.tile // 2
    files = scale_charts.files_per_pixel(scene)
    expected = [files[i * scene.tile + half, j * scene.tile + half] for i, j in np.argwhere(scene.covered)]
    assert said == expected


def test_cells_are_drawn_once_for_each_way(rows):
    patch = patches.read_patch(rows.iloc[0])
    ids = np.zeros(patch.s2.shape[1:], np.int32)
    fig = scale_charts.show_cells(patch, {"one": ids, "other": ids})
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == ["one", "other"]
