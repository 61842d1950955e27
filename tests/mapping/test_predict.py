"""Maps: blended windows against the scene predicted whole, and GeoTIFFs there and back."""

import os
from itertools import pairwise

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from lcfuse_core.data.legends import DFC2020, SCORED
from lcfuse_core.errors import (
    DataError,
    DiskError,
    GridError,
    LegendError,
    MissingDataError,
    ParameterError,
)
from lcfuse_core.mapping import write
from lcfuse_core.mapping.predict import map_scene, most_likely, read_map, write_map
from lcfuse_core.mapping.windows import window_slices

UTM = "EPSG:32632"
AT = Affine(10, 0, 549892.697, 0, -10, 6344077.614)  # no multiple of 10 m, as in SEN12MS


def coordinate_scene(rows, cols):
    """S2 whose band 1 is the row and band 2 the column; S1 whose VV is their difference."""
    row, col = np.mgrid[:rows, :cols].astype(np.uint16)
    s2 = np.zeros((13, rows, cols), np.uint16)
    s2[0], s2[1] = row, col
    s1 = np.stack([row.astype(np.float32) - col, np.zeros((rows, cols), np.float32)])
    return s2, s1


def coordinates(s2, s1):
    """A network that sees only its own pixel: row, column and S1 come out as the first three classes."""
    out = np.zeros((8, *s2.shape[1:]), np.float32)
    out[0], out[1], out[2] = s2[0], s2[1], s1[0]
    return out


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.integers(0, 20))
def test_every_pixel_comes_back_to_its_place(rows, cols, window, overlap):
    """For a network that looks at single pixels, windows change nothing, whatever the sizes."""
    s2, s1 = coordinate_scene(rows, cols)
    got = map_scene(coordinates, s2, s1, window=window, overlap=min(overlap, window // 2))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, coordinates(s2, s1), atol=1e-4)


@given(st.integers(1, 500), st.integers(1, 80), st.integers(0, 40))
def test_windows_are_equal_cover_all_and_overlap_enough(length, window, overlap):
    """Same size, no gap, at least the overlap, no window beyond the scene or twice the same."""
    overlap = min(overlap, window // 2)
    slices = window_slices(length, window, overlap)
    assert {part.stop - part.start for part in slices} == {min(window, length)}
    assert slices[0].start == 0
    assert slices[-1].stop == length
    for before, after in pairwise(slices):
        assert before.start < after.start <= before.stop - overlap


def test_a_network_that_differs_between_windows_leaves_no_seam():
    """Windows that disagree by 1 are blended over the overlap: no step above 1 / overlap."""
    s2, s1 = coordinate_scene(64, 100)
    calls = []

    def moody(s2, s1):
        calls.append(s2[1, 0, 0])
        return np.full((8, *s2.shape[1:]), len(calls) % 2, np.float32)

    got = map_scene(moody, s2, s1, window=64, overlap=28)
    assert calls == [0, 36]
    steps = np.abs(np.diff(got[0], axis=1))
    assert got[0, 0, 0] == 1
    assert got[0, 0, -1] == 0
    assert 0 < steps.max() <= 1 / 28


def test_all_windows_have_the_scene_size_where_it_is_smaller():
    """A 224-pixel patch is one window of 224."""
    shapes = []
    s2, s1 = coordinate_scene(224, 200)
    map_scene(lambda s2, s1: shapes.append(s1.shape) or coordinates(s2, s1), s2, s1)
    assert shapes == [(2, 224, 200)]


def test_what_cannot_be_mapped_is_refused():
    """Two sizes, impossible windows, and a network that answers wrongly."""
    s2, s1 = coordinate_scene(40, 50)
    with pytest.raises(GridError, match=r"S2 \(13, 40, 50\), S1 \(2, 40, 49\)"):
        map_scene(coordinates, s2, s1[:, :, 1:])
    with pytest.raises(ParameterError, match="overlap=40"):
        map_scene(coordinates, s2, s1, window=40, overlap=40)
    with pytest.raises(ParameterError, match="window=0"):
        map_scene(coordinates, s2, s1, window=0, overlap=0)
    with pytest.raises(GridError, match=r"predict: found shape \(8, 39, 50\)"):
        map_scene(lambda s2, s1: coordinates(s2, s1)[:, 1:], s2, s1)
    with pytest.raises(DataError, match="NaN"):
        map_scene(lambda s2, s1: coordinates(s2, s1) * np.nan, s2, s1)


def test_the_likeliest_class_in_dfc_codes():
    """Class k of the network is the k-th scored class."""
    index = np.array([[0, 3, 7], [6, 5, 1]])
    np.testing.assert_array_equal(most_likely(np.eye(8)[:, index]), np.array(SCORED)[index])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_map_comes_back_as_it_was_written(tmp_path_factory, rows, cols, seed):
    """Classes, CRS, transform and tags survive the file; any size."""
    path = tmp_path_factory.mktemp("maps") / "map.tif"
    classes = np.random.default_rng(seed).integers(0, 11, (rows, cols)).astype(np.uint8)
    write_map(path, classes, crs=UTM, transform=AT, tags={"RUN": "seed 3"})
    back = read_map(path)
    np.testing.assert_array_equal(back.classes, classes)
    assert (back.crs, back.transform) == (rasterio.crs.CRS.from_string(UTM), AT)
    assert back.tags["RUN"] == "seed 3"


def test_the_file_shows_legend_and_nodata(tmp_path):
    """Palette, names and nodata are what others read; a copy to VRT shows what GDAL understood."""
    path = write_map(tmp_path / "new" / "map.tif", np.full((300, 280), 7, np.uint8), crs=UTM, transform=AT)
    with rasterio.open(path) as raster:
        assert raster.nodata == 0
        assert raster.profile["compress"] == "deflate"
        assert raster.profile["tiled"]
        assert raster.colorinterp[0].name == "palette"
        palette = raster.colormap(1)
        assert [palette[code] for code in DFC2020.codes] == [DFC2020.rgba(code) for code in DFC2020.codes]
        assert raster.tags()["CLASS_7"] == "Urban/Built-up"
    rasterio.shutil.copy(path, tmp_path / "copy.vrt", driver="VRT")
    categories = (tmp_path / "copy.vrt").read_text().split("<Category>")[1:]
    assert [text.split("<")[0] for text in categories] == [DFC2020.name_of(code) for code in range(11)]
    assert sorted(os.listdir(path.parent)) == ["map.tif", "map.tif.aux.xml"]


@pytest.mark.filterwarnings("error")
def test_a_map_without_georeference_says_so(tmp_path):
    """The DFC2020 phase archives have none: neither is invented, and nothing warns."""
    classes = np.array([[1, 10], [4, 0], [0, 2]], np.uint8)
    back = read_map(write_map(tmp_path / "map.tif", classes, crs=None, transform=None))
    assert (back.crs, back.transform) == (None, None)
    np.testing.assert_array_equal(back.classes, classes)


def test_what_is_no_map_is_not_written(tmp_path):
    """Probabilities, foreign codes, half a georeference."""
    path = tmp_path / "map.tif"
    with pytest.raises(GridError, match=r"float64 \(8, 4, 4\)"):
        write_map(path, np.ones((8, 4, 4)), crs=None, transform=None)
    with pytest.raises(LegendError, match="class code 17"):
        write_map(path, np.full((4, 4), 17, np.uint8), crs=None, transform=None)
    with pytest.raises(GridError, match="only a transform"):
        write_map(path, np.ones((4, 4), np.uint8), crs=None, transform=AT)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_map(tmp_path, monkeypatch):
    """The write fails half way: the map that was there is there, and nothing else."""
    path = write_map(tmp_path / "map.tif", np.ones((4, 4), np.uint8), crs=UTM, transform=AT)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(DiskError, match="No space left on device, expected to write"):
        write_map(path, np.full((4, 4), 2, np.uint8), crs=UTM, transform=AT)
    assert (read_map(path).classes == 1).all()
    assert sorted(os.listdir(tmp_path)) == ["map.tif", "map.tif.aux.xml"]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_what_is_no_map_is_not_read(tmp_path):
    """No file, a text, half a file, a file of other bands, other codes."""
    with pytest.raises(MissingDataError, match="no such file"):
        read_map(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(DataError, match=r"text\.tif"):
        read_map(tmp_path / "text.tif")
    rng = np.random.default_rng(0)
    path = write_map(tmp_path / "map.tif", rng.integers(0, 11, (300, 300)).astype(np.uint8), crs=UTM, transform=AT)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"map\.tif"):
        read_map(path)
    for name, array in (("s1", np.zeros((2, 8, 8), np.float32)), ("igbp", np.full((1, 8, 8), 17, np.uint8))):
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", count=len(array), height=8, width=8, dtype=array.dtype
        ) as raster:
            raster.write(array)
    with pytest.raises(DataError, match="2 bands of float32"):
        read_map(tmp_path / "s1")
    with pytest.raises(LegendError, match="class code 17"):
        read_map(tmp_path / "igbp")
