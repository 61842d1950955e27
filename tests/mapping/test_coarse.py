"""The coarse map of a scene: labels in the outlines of their cells, legends, and what they say of a pixel."""

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from places import AT, UTM, write
from rasterio.warp import Resampling, calculate_default_transform, reproject

from lcfuse_core.data.cells import SINUSOIDAL, modis_cells, modis_raster
from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX
from lcfuse_core.errors import DataError, GridError, LegendError, MissingDataError
from lcfuse_core.mapping import coarse
from lcfuse_core.mapping.scene import Grid

GRID = Grid(UTM, AT, (260, 330))
ROWS, COLS = slice(0, 260), slice(0, 330)
REAL = Path(__file__).parents[3] / "shared" / "data" / "mcd12q1"


@pytest.fixture
def label():
    """IGBP codes at 10 m, the same within each cell of MODIS."""
    row, col = modis_cells(AT, UTM, GRID.shape)
    codes = np.array([1, 5, 8, 10, 12, 13, 15, 17], np.uint8)
    return codes[(row * 3 + col * 5) % 8]


def in_sinusoidal(path, label):
    codes, transform = modis_raster(AT, UTM, label)
    return write(path, codes[None], crs=SINUSOIDAL, transform=transform, nodata=255)


def test_every_pixel_has_the_label_of_its_cell(label, tmp_path):
    """From the sinusoidal grid itself; all but the few pixels within centimetres of an outline."""
    with coarse.open_coarse(in_sinusoidal(tmp_path / "c.tif", label), GRID) as found:
        got = found.codes_at(ROWS, COLS)
        part = found.codes_at(slice(101, 222), slice(65, 300))
        labels = found.labels(ROWS, COLS)
    assert (got == label).mean() > 0.9999
    np.testing.assert_array_equal(part, got[101:222, 65:300])
    np.testing.assert_array_equal(labels == SAVANNA_INDEX, got == 8)
    assert (labels[got == 15] == IGNORE).all()  # snow says nothing


def test_outlines_survive_a_raster_in_degrees(label, tmp_path):
    """A product handed on in degrees has lost them; they are found again. Read pixel by pixel it would be worse."""
    path = in_sinusoidal(tmp_path / "c.tif", label)
    with coarse.open_coarse(path, GRID) as found:
        codes, place = found.codes, found._file.transform
    at, cols, rows = calculate_default_transform(
        SINUSOIDAL, "EPSG:4326", *codes.shape[::-1],
        *(place.c, place.f + place.e * codes.shape[0], place.c + place.a * codes.shape[1], place.f),
        resolution=0.0041667,
    )  # fmt: skip
    degrees = np.full((rows, cols), 255, np.uint8)
    reproject(codes, degrees, src_transform=place, src_crs=SINUSOIDAL, dst_transform=at, dst_crs="EPSG:4326",
              src_nodata=255, dst_nodata=255, resampling=Resampling.nearest)  # fmt: skip
    write(tmp_path / "d.tif", degrees[None], crs="EPSG:4326", transform=at)
    plain = json.dumps({code: "none" if code == 15 else "Forest" for code in (1, 5, 8, 10, 12, 13, 15, 17)})
    (tmp_path / "own.json").write_text(plain)
    with coarse.open_coarse(tmp_path / "d.tif", GRID) as found:
        cells = found.codes_at(ROWS, COLS)
    with coarse.open_coarse(tmp_path / "d.tif", GRID, tmp_path / "own.json") as found:
        pixels = found.codes_at(ROWS, COLS)
    share = (cells == label).mean()
    assert share > 0.9
    assert share > (pixels == label).mean() + 0.05


def test_any_legend_maps_codes_to_classes(tmp_path):
    """Names or codes; what it does not know is an error that lists it."""
    raster = np.kron(np.array([[10, 20], [40, 80]], np.uint8), np.ones((130, 165), np.uint8))
    write(tmp_path / "c.tif", raster[None])
    legend = tmp_path / "legend.yaml"
    legend.write_text("10: Forest\n20: 2\n40: croplands\n80: none\n")
    with coarse.open_coarse(tmp_path / "c.tif", GRID, legend) as found:
        labels = found.labels(ROWS, COLS)
        assert labels[0, 0] == 0
        assert labels[0, -1] == 1
        assert labels[-1, 0] == 4
        assert labels[-1, -1] == IGNORE
        assert found.dfc2020(ROWS, COLS)[-1, 0] == 6
        posterior = found.posterior()
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert posterior[0].argmax() == 0
    with pytest.raises(LegendError, match="found class code 20, 40, 80"), coarse.open_coarse(tmp_path / "c.tif", GRID):
        pass
    for text, said in (("10: Trees\n", "found 10: Trees"), ("[1]", "found list"), ("a: {", "neither YAML nor JSON")):
        legend.write_text(text)
        with pytest.raises(LegendError, match=said), coarse.open_coarse(tmp_path / "c.tif", GRID, legend):
            pass


def test_what_is_no_coarse_map_of_the_scene_is_refused(label, tmp_path):
    """Another place, another kind of numbers, no CRS, no file, HDF without a driver, a scene without a place."""
    path = in_sinusoidal(tmp_path / "c.tif", label)
    away = write(tmp_path / "away.tif", label[None], transform=Affine(10, 0, AT.c + 1e6, 0, -10, AT.f))
    floats = write(tmp_path / "floats.tif", label[None].astype(np.float32))
    (tmp_path / "MCD12Q1.hdf").write_bytes(b"\x0e\x03\x13\x01 no more than the head of an HDF4 file")
    silent = write(tmp_path / "silent.tif", np.full((1, 260, 330), 255, np.uint8))
    for where, grid, error, said in (
        (away, GRID, GridError, "found a map of another area"),
        (floats, GRID, DataError, "found 1 bands of float32"),
        (tmp_path / "none.tif", GRID, MissingDataError, "no such file"),
        (tmp_path / "MCD12Q1.hdf", GRID, DataError, "LC_Type1 to a GeoTIFF"),
        (path, Grid(None, None, (9, 9)), GridError, "a scene without georeference"),
    ):
        with pytest.raises(error, match=said), coarse.open_coarse(where, grid):
            pass
    with pytest.raises(DataError, match="no label in the scene"), coarse.open_coarse(silent, GRID) as found:
        found.posterior()


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder shared/data/mcd12q1 is not here")
def test_a_real_product_in_degrees_is_read_on_its_cells():
    """MCD12Q1 of Bangladesh: cells of one label each, and most of the labels that the file has there."""
    grid = Grid("EPSG:32646", Affine(10, 0, 250_003, 0, -10, 2_650_007), (800, 700))
    with coarse.open_coarse(REAL / "bangladesh_2020_igbp.tif", grid) as found:
        codes = found.codes_at(slice(0, 800), slice(0, 700))
        posterior = found.posterior()
    row, col = modis_cells(grid.transform, grid.crs, grid.shape)
    cell = (row - row.min()) * 1000 + col - col.min()
    same = [len(np.unique(codes[cell == one])) for one in np.unique(cell)[::7]]
    assert np.mean(np.array(same) == 1) > 0.9  # a pixel on an outline may fall to its neighbour
    assert len(np.unique(codes)) >= 3
    assert (posterior >= 0).all()
