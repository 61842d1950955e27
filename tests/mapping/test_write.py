"""GeoTIFFs of maps: written and read back, with legend and georeference; what is no map is not read."""

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from places import AT, UTM, write

from lcfuse_core.data.legends import DFC2020
from lcfuse_core.errors import DataError, GridError, LegendError, MissingDataError
from lcfuse_core.mapping.scene import Grid
from lcfuse_core.mapping.write import LAYERS, create, read_map


def map_file(path, classes, crs=UTM, transform=AT, **tags):
    grid = Grid(crs and rasterio.crs.CRS.from_string(crs), transform, classes.shape)
    with create(path, LAYERS["landcover"], grid, tags) as raster:
        raster.write(classes, 1)
    return path


def test_a_map_is_read_back_with_legend_georeference_and_tags(tmp_path):
    """Palette and nodata as other programs read them; the names of the classes in tags."""
    classes = np.random.default_rng(0).integers(0, 11, (300, 280)).astype(np.uint8)
    path = map_file(tmp_path / "map.tif", classes, RUN="seed 3")
    back = read_map(path)
    np.testing.assert_array_equal(back.classes, classes)
    assert (back.crs, back.transform) == (rasterio.crs.CRS.from_string(UTM), AT)
    with rasterio.open(path) as raster:
        assert (raster.tags()["RUN"], raster.tags()["CLASS_7"]) == ("seed 3", "Urban/Built-up")
        assert (raster.nodata, raster.colorinterp[0].name) == (0, "palette")
        palette = raster.colormap(1)
        assert [palette[code] for code in DFC2020.codes] == [DFC2020.rgba(code) for code in DFC2020.codes]


@pytest.mark.filterwarnings("error")
def test_a_map_without_georeference_stays_without(tmp_path):
    """As the phase archives of DFC2020: no georeference is invented, and nothing warns."""
    back = read_map(map_file(tmp_path / "map.tif", np.array([[1, 10], [4, 0]], np.uint8), None, None))
    assert (back.crs, back.transform) == (None, None)


@pytest.mark.parametrize("how", ["nodata 255", "nodata 6", "mask"])
def test_pixels_that_the_file_declares_unknown_have_no_class(tmp_path, how):
    classes = np.full((1, 40, 40), 10, np.uint8)
    classes[:, :, :20] = hidden = 255 if how == "nodata 255" else 6
    path = write(tmp_path / "map.tif", classes, nodata=None if how == "mask" else hidden)
    if how == "mask":
        with rasterio.open(path, "r+") as file:
            file.write_mask(np.where(classes[0] == 6, 0, 255).astype(np.uint8))
    found = read_map(path).classes
    assert (found[:, :20] == 0).all()
    assert (found[:, 20:] == 10).all()


def test_an_invalid_map_is_not_read(tmp_path):
    """A missing file, a text, half a file, a file of other bands, other codes, a file that refers to another."""
    with pytest.raises(MissingDataError, match="no such file"):
        read_map(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not a raster")
    random = np.random.default_rng(0).integers(0, 11, (300, 300)).astype(np.uint8)
    path = map_file(tmp_path / "map.tif", random)
    rasterio.shutil.copy(path, tmp_path / "refers.tif", driver="VRT")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for name in ("text.tif", "map.tif", "refers.tif"):
        with pytest.raises(DataError, match=name):
            read_map(tmp_path / name)
    with pytest.raises(DataError, match="2 bands of float32"):
        read_map(write(tmp_path / "s1.tif", np.zeros((2, 8, 8), np.float32)))
    with pytest.raises(GridError, match="a transform without CRS"):
        read_map(write(tmp_path / "half.tif", np.ones((1, 8, 8), np.uint8), crs=None))
    with pytest.raises(LegendError, match="class code 17"):
        read_map(write(tmp_path / "igbp.tif", np.full((1, 8, 8), 17, np.uint8)))
