"""GeoTIFFs of maps: written and read back, with legend and georeference, whole or not at all."""

import os

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st
from places import AT, UTM, write

from lcfuse_core import _runtime
from lcfuse_core.data.legends import DFC2020
from lcfuse_core.errors import DataError, DiskError, GridError, LegendError, MissingDataError
from lcfuse_core.mapping.write import read_map, write_map


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_map_is_read_back_as_it_was_written(tmp_path_factory, rows, cols, seed):
    """Classes, CRS, transform and tags; any size."""
    path = tmp_path_factory.mktemp("maps") / "map.tif"
    classes = np.random.default_rng(seed).integers(0, 11, (rows, cols)).astype(np.uint8)
    write_map(path, classes, crs=UTM, transform=AT, tags={"RUN": "seed 3"})
    back = read_map(path)
    np.testing.assert_array_equal(back.classes, classes)
    assert (back.crs, back.transform) == (rasterio.crs.CRS.from_string(UTM), AT)
    assert back.tags["RUN"] == "seed 3"


def test_file_has_legend_and_nodata(tmp_path):
    """Palette, names and nodata as other programs read them; a copy to VRT shows what GDAL found."""
    path = write_map(tmp_path / "new" / "map.tif", np.full((300, 280), 7, np.uint8), crs=UTM, transform=AT)
    with rasterio.open(path) as raster:
        assert (raster.nodata, raster.profile["compress"], raster.profile["tiled"]) == (0, "deflate", True)
        assert raster.colorinterp[0].name == "palette"
        palette = raster.colormap(1)
        assert [palette[code] for code in DFC2020.codes] == [DFC2020.rgba(code) for code in DFC2020.codes]
        assert raster.tags()["CLASS_7"] == "Urban/Built-up"
    rasterio.shutil.copy(path, tmp_path / "copy.vrt", driver="VRT")
    categories = (tmp_path / "copy.vrt").read_text().split("<Category>")[1:]
    assert [text.split("<")[0] for text in categories] == [DFC2020.name_of(code) for code in range(11)]
    assert sorted(os.listdir(path.parent)) == ["map.tif", "map.tif.aux.xml"]


@pytest.mark.filterwarnings("error")
def test_map_without_georeference_stays_without(tmp_path):
    """As the phase archives of DFC2020: no georeference is invented, and nothing warns."""
    classes = np.array([[1, 10], [4, 0], [0, 2]], np.uint8)
    back = read_map(write_map(tmp_path / "map.tif", classes, crs=None, transform=None))
    assert (back.crs, back.transform) == (None, None)
    np.testing.assert_array_equal(back.classes, classes)


def test_invalid_map_is_not_written(tmp_path):
    """Probabilities, unknown codes, half a georeference."""
    path = tmp_path / "map.tif"
    with pytest.raises(GridError, match=r"float64 \(8, 4, 4\)"):
        write_map(path, np.ones((8, 4, 4)), crs=None, transform=None)
    with pytest.raises(LegendError, match="class code 17"):
        write_map(path, np.full((4, 4), 17, np.uint8), crs=None, transform=None)
    with pytest.raises(GridError, match="only a transform"):
        write_map(path, np.ones((4, 4), np.uint8), crs=None, transform=AT)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_and_damaged_pixels_leave_the_old_map(tmp_path, monkeypatch):
    """The write fails, or other pixels are read back: the earlier map is there, and nothing else."""
    path = write_map(tmp_path / "map.tif", np.ones((4, 4), np.uint8), crs=UTM, transform=AT)

    def full(_):
        raise OSError(28, "No space left on device")

    for module, name, fault, found in (
        (_runtime.os, "fsync", full, "No space left on device"),
        (rasterio.io.DatasetReader, "read", lambda *_, **__: np.zeros((1, 4, 4), np.uint8), "pixels read back differ"),
    ):
        monkeypatch.setattr(module, name, fault)
        with pytest.raises(DiskError, match=found):
            write_map(path, np.full((4, 4), 2, np.uint8), crs=UTM, transform=AT)
        monkeypatch.undo()
        assert (read_map(path).classes == 1).all()
        assert sorted(os.listdir(tmp_path)) == ["map.tif", "map.tif.aux.xml"]


def test_invalid_map_is_not_read(tmp_path):
    """A missing file, a text, half a file, a file of other bands, other codes, a file that refers to another."""
    with pytest.raises(MissingDataError, match="no such file"):
        read_map(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    random = np.random.default_rng(0).integers(0, 11, (300, 300)).astype(np.uint8)
    path = write_map(tmp_path / "map.tif", random, crs=UTM, transform=AT)
    rasterio.shutil.copy(path, tmp_path / "refers.tif", driver="VRT")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("text.tif", "map.tif", "refers.tif"):
        with pytest.raises(DataError, match=name):
            read_map(tmp_path / name)
    with pytest.raises(DataError, match="2 bands of float32"):
        read_map(write(tmp_path / "s1.tif", np.zeros((2, 8, 8), np.float32)))
    with pytest.raises(LegendError, match="class code 17"):
        read_map(write(tmp_path / "igbp.tif", np.full((1, 8, 8), 17, np.uint8)))
