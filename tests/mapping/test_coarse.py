"""The coarse map of a scene: labels in the outlines of their cells, legends, and what the file does not state."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from places import AT, UTM, write
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.warp import Resampling, calculate_default_transform, reproject

from lcfuse_core.data.cells import CELL_M, SINUSOIDAL, cell_ids, modis_cells, modis_raster
from lcfuse_core.data.legends import IGNORE, SAVANNA_INDEX
from lcfuse_core.errors import DataError, GridError, LcfuseError, LegendError, MissingDataError
from lcfuse_core.mapping.coarse import cell_centres, open_coarse
from lcfuse_core.mapping.scene import Grid

GRID = Grid(UTM, AT, (260, 330))
ROWS, COLS = slice(0, 260), slice(0, 330)
REAL = Path(__file__).parents[3] / "shared" / "data" / "mcd12q1"
CELLS = Affine(463.3, 0, AT.c - 6000, 0, -463.3, AT.f + 6000)  # pixels of the size of MODIS cells around the scene
IGBP = np.array([1, 5, 8, 10, 12, 13, 15, 17], np.uint8)


@pytest.fixture
def label():
    """IGBP codes at 10 m, the same within each cell of MODIS."""
    row, col = modis_cells(AT, UTM, GRID.shape)
    return IGBP[(row * 3 + col * 5) % 8]


def in_sinusoidal(path, label, **more):
    codes, transform = modis_raster(AT, UTM, label)
    return write(path, codes[None], **{"crs": SINUSOIDAL, "transform": transform, "nodata": 255} | more)


def codes_of(path, legend=None, grid=GRID, **more):
    """The codes of all pixels of the scene, and what is reported."""
    with open_coarse(path, grid, legend, **more) as found:
        return found.codes_at(slice(0, grid.shape[0]), slice(0, grid.shape[1])), found.repairs


def refused(match, *arguments, error=LcfuseError, **more):
    with pytest.raises(error, match=match):
        codes_of(*arguments, **more)


def test_every_pixel_has_the_label_of_its_cell(label, tmp_path):
    """From the sinusoidal grid itself, to the last pixel; any part of it is the same."""
    with open_coarse(in_sinusoidal(tmp_path / "c.tif", label), GRID) as found:
        got = found.codes_at(ROWS, COLS)
        part = found.codes_at(slice(101, 222), slice(65, 300))
        labels = found.labels(ROWS, COLS)
    np.testing.assert_array_equal(got, label)
    np.testing.assert_array_equal(part, got[101:222, 65:300])
    np.testing.assert_array_equal(labels == SAVANNA_INDEX, got == 8)
    assert (labels[got == 15] == IGNORE).all()  # snow has no class of the network
    assert found.repairs == ()


def test_outlines_survive_a_raster_in_degrees(label, tmp_path):
    """A product in degrees has lost them; they are recovered. Read pixel by pixel it would be worse."""
    codes, place = modis_raster(AT, UTM, label)
    at, cols, rows = calculate_default_transform(
        SINUSOIDAL, "EPSG:4326", *codes.shape[::-1],
        *(place.c, place.f + place.e * codes.shape[0], place.c + place.a * codes.shape[1], place.f),
        resolution=0.0041667,
    )  # fmt: skip
    degrees = np.full((rows, cols), 255, np.uint8)
    reproject(codes, degrees, src_transform=place, src_crs=SINUSOIDAL, dst_transform=at, dst_crs="EPSG:4326",
              src_nodata=255, dst_nodata=255, resampling=Resampling.nearest)  # fmt: skip
    plain = json.dumps({int(code): "none" if code == 15 else "Forest" for code in IGBP})
    (tmp_path / "own.json").write_text(plain)
    for west in (0, 360):  # the same in degrees from 0 to 360
        write(tmp_path / "d.tif", degrees[None], crs="EPSG:4326", transform=Affine.translation(west, 0) @ at)
        cells, pixels = codes_of(tmp_path / "d.tif")[0], codes_of(tmp_path / "d.tif", tmp_path / "own.json")[0]
        fraction = (cells == label).mean()
        assert fraction > 0.9
        assert fraction > (pixels == label).mean() + 0.05


# The grid of MODIS on another ellipsoid -----------------------------------------------------------

EARTH_ENGINE = (
    'PROJCS["MODIS Sinusoidal",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Sinusoidal"],'
    'PARAMETER["longitude_of_center",0],PARAMETER["false_easting",0],PARAMETER["false_northing",0],UNIT["metre",1]]'
)
WRONG = {
    "Earth Engine": CRS.from_wkt(EARTH_ENGINE),
    "ArcGIS": CRS.from_string("ESRI:54008"),
    "ArcGIS, sphere": CRS.from_string("ESRI:53008"),
    "PROJ": CRS.from_proj4("+proj=sinu +datum=WGS84"),
    "no name": CRS.from_wkt(EARTH_ENGINE.replace("MODIS Sinusoidal", "unknown")),
}


@pytest.mark.parametrize("crs", WRONG)
def test_the_grid_of_modis_is_read_on_its_sphere(label, tmp_path, crs):
    """Whatever ellipsoid the file states: 8 to 19 km lie between them. It is reported."""
    path = in_sinusoidal(tmp_path / "c.tif", label, crs=WRONG[crs])
    got, notes = codes_of(path)
    assert (got == label).mean() > 0.9999
    assert notes == ("c.tif: MODIS grid, read on its sphere and not on the ellipsoid stated",)


def test_another_sinusoidal_grid_is_read_as_stated(label, tmp_path):
    """Pixels of 500 m that were warped to ESRI:54008 are right there; cells off the MODIS grid are ambiguous."""
    x, y = Transformer.from_crs(UTM, "ESRI:54008", always_xy=True).transform(AT.c, AT.f)
    at = Affine(500, 0, x - 20_000, 0, -500, y + 20_000)
    codes = np.full((80, 80), 12, np.uint8)
    codes[:41], codes[:, :20] = 1, 13  # the scene lies on rows 40 to 46
    write(tmp_path / "c.tif", codes[None], crs="ESRI:54008", transform=at)
    got, notes = codes_of(tmp_path / "c.tif")
    assert notes == ()
    assert set(np.unique(got)) == {1, 12}
    assert (got[:10] == 1).all()
    write(tmp_path / "c.tif", codes[None], crs="ESRI:54008", transform=Affine(CELL_M, 0, at.c, 0, -CELL_M, at.f))
    refused("off the MODIS grid.*gdal_edit.py -a_srs", tmp_path / "c.tif", error=GridError)


# Class 0, years and types -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "profile", "name", "expected"),
    [
        (0, {"nodata": 255}, "lake.tif", 10),
        (12, {"nodata": 254}, "lake.tif", 10),
        (12, {}, "MCD12Q1.005_2010.tif", 10),
        (12, {}, "MCD12Q1.A2012001.h18v03.051.2014.tif", 10),
        (12, {"names": ["Land_Cover_Type_1"]}, "lake.tif", 10),
        (12, {"tags": {"legend": "water = 0, 1 = evergreen"}}, "lake.tif", 10),
        (12, {"nodata": 0}, "lake.tif", 0),
        (17, {}, "lake.tif", 0),
        (17, {"nodata": 255}, "MCD12Q1.061.tif", 0),
        (12, {}, "lake.tif", None),
    ],
)
def test_class_0_of_igbp_is_water_in_collection_5(tmp_path, other, profile, name, expected):
    """By evidence in the file: its name, its layer, another nodata value; code 17 proves collection 6."""
    codes = np.zeros((1, 30, 30), np.uint8)
    codes[:, :, 16:] = other
    path = write(tmp_path / name, codes, transform=CELLS, **profile)
    if expected is None:
        refused("code 0 without evidence.*-a_nodata", path, error=LegendError)
        return
    with open_coarse(path, GRID) as found:
        assert found.dfc2020(ROWS, COLS)[0, 0] == expected
        assert bool(found.repairs) == (expected == 10)


def test_the_band_of_a_map_of_years_is_chosen(tmp_path):
    """By number or name; LC_Type1 by itself. Without a choice it is refused, with the list of bands."""
    codes = np.full((3, 40, 40), np.array([12, 1, 5])[:, None, None], np.uint8)
    for names, choices in (
        ((None, None, None), {2: 1, "3": 5}),
        (("2001", "2010", "2020"), {"2010": 1, 3: 5, 1: 12}),
        (("LC_Type2", "LC_Type1", "QC"), {None: 1}),
        (("2001_LC_Type1", "2010_LC_Type1", "QC"), {"2010_LC_Type1": 1}),
    ):
        path = write(tmp_path / "c.tif", codes, transform=CELLS, names=names)
        for band, code in choices.items():
            assert set(np.unique(codes_of(path, band=band)[0])) == {code}
        for band in ("2030", "0", "-1", "²", "1.0", "LC"):
            refused(f"found band {band} asked of 1.*gdal_translate -b", path, band=band, error=DataError)
        if None not in choices:
            refused(r"found 3 bands \(1 ?.*2.*Choose one by number or name", path, error=DataError)


@pytest.mark.parametrize(
    ("file", "band", "names"),
    [
        ("MCD12Q1.061_LC_Type5_doy2018001_aid0001.tif", None, [None]),
        ("MCD12Q1.061_QC_doy2018001_aid0001.tif", None, [None]),
        ("c.tif", None, ["Land_Cover_Type_2"]),
        ("c.tif", None, ["MOD12Q1:LC_Prop1_Assessment"]),
        ("c.tif", "LW", ["LC_Type1", "LW"]),
        ("LC_Type1.tif", "2", ["LC_Type1", "LC_Type3"]),
    ],
)
def test_a_layer_of_another_legend_is_not_read_as_igbp(tmp_path, file, band, names):
    """Its codes are valid IGBP codes. With its own legend it is read."""
    path = write(tmp_path / file, np.full((len(names), 30, 30), 5, np.uint8), transform=CELLS, names=names)
    for legend in (None, "igbp"):
        refused("found the layer .*Give the layer LC_Type1", path, legend, band=band, error=LegendError)
    (tmp_path / "own.yaml").write_text("5: Wetlands\n")
    assert set(np.unique(codes_of(path, tmp_path / "own.yaml", band=band)[0])) == {5}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_codes_of_every_type_are_accepted(label, tmp_path, dtype):
    """With a nodata value that no code has; fractions and other codes are refused."""
    codes, transform = modis_raster(AT, UTM, label)
    nodata = {"uint8": 255, "uint16": 65535}.get(dtype, -9999)
    stored = codes.astype(dtype)
    stored[codes == 255] = nodata
    place = {"crs": SINUSOIDAL, "transform": transform}
    write(tmp_path / "c.tif", stored[None], **place, nodata=nodata)
    got, _ = codes_of(tmp_path / "c.tif")
    assert (got == label).mean() > 0.9999
    if dtype != "uint8":
        write(tmp_path / "c.tif", stored[None] + np.ones((), dtype) * 300, **place)
        refused("found class code (3|-9)", tmp_path / "c.tif", error=LegendError)
    if dtype.startswith("float"):
        write(tmp_path / "c.tif", stored[None] / 2, **place, nodata=nodata / 2)
        refused("with fractions", tmp_path / "c.tif", error=DataError)


def test_hidden_pixels_of_a_map_have_no_label(label, tmp_path):
    """A mask inside the file; nodata values are tested above."""
    codes, transform = modis_raster(AT, UTM, label)
    mask = np.full(codes.shape, 255, np.uint8)
    mask[:3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "c.tif", codes[None], crs=SINUSOIDAL, transform=transform)
        with rasterio.open(path, "r+") as file:
            file.write_mask(mask)
    got, _ = codes_of(path)
    assert (got[:20] == IGNORE).all()
    assert (got[-20:] == label[-20:]).mean() > 0.999


# Legends and other refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("pixel", [10, 30, 100, 300])
def test_a_fine_map_needs_its_legend(tmp_path, pixel):
    """Codes of Esri, Dynamic World or ESA are IGBP codes of something else."""
    codes = np.random.default_rng(0).choice([1, 2, 4, 5, 7], (1, 3300 // pixel, 3300 // pixel)).astype(np.uint8)
    path = write(tmp_path / "c.tif", codes, transform=Affine(pixel, 0, AT.c, 0, -pixel, AT.f))
    refused(r"c\.tif: found pixels of .* m and no legend.*Give its legend", path, error=LegendError)
    got, _ = codes_of(path, "dfc2020")
    assert set(np.unique(got)) <= {1, 2, 4, 5, 7}
    at_10_m = codes[0].repeat(pixel // 10, 0).repeat(pixel // 10, 1)
    np.testing.assert_array_equal(got, at_10_m[:260, :330])


def test_any_legend_maps_codes_to_classes(tmp_path):
    """Names or codes; a code that it lacks is an error that lists it."""
    raster = np.kron(np.array([[10, 20], [40, 80]], np.uint8), np.ones((130, 165), np.uint8))
    write(tmp_path / "c.tif", raster[None])
    legend = tmp_path / "legend.yaml"
    legend.write_text("10: Forest\n20: 2\n40: croplands\n80: none\n")
    with open_coarse(tmp_path / "c.tif", GRID, legend) as found:
        labels = found.labels(ROWS, COLS)
        assert [labels[0, 0], labels[0, -1], labels[-1, 0], labels[-1, -1]] == [0, 1, 4, IGNORE]
        assert found.dfc2020(ROWS, COLS)[-1, 0] == 6
        posterior = found.posterior()
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert posterior[0].argmax() == 0
    refused("found class code 20, 40, 80", tmp_path / "c.tif", "igbp", error=LegendError)
    legend.write_text("10: Trees\n")
    refused("found 10: Trees", tmp_path / "c.tif", legend, error=LegendError)


def test_what_is_not_a_coarse_map_of_the_scene_is_refused(label, tmp_path):
    """Another area, no CRS, another planet, no file, HDF without a driver, a scene without georeference."""
    path = in_sinusoidal(tmp_path / "c.tif", label)
    away = write(tmp_path / "away.tif", label[None], transform=Affine(10, 0, AT.c + 1e6, 0, -10, AT.f))
    plain = write(tmp_path / "plain.tif", label[None], crs=None)
    with rasterio.open(
        tmp_path / "fine.tif", "w", driver="GTiff", width=40_000, height=40_000, count=1, dtype="uint8", crs=UTM,
        transform=Affine(0.05, 0, AT.c, 0, -0.05, AT.f), SPARSE_OK=True, tiled=True,
    ):  # fmt: skip
        pass
    mars = 'GEOGCS["Mars",DATUM["Mars",SPHEROID["Mars",3396190,169.9]],PRIMEM["0",0],UNIT["Degree",0.0174532925199433]]'
    mars = write(tmp_path / "mars.tif", label[None], crs=mars, transform=Affine(0.01, 0, 9, 0, -0.01, 57))
    (tmp_path / "MCD12Q1.hdf").write_bytes(b"\x0e\x03\x13\x01 no more than the head of an HDF4 file")
    unlabelled = in_sinusoidal(tmp_path / "unlabelled.tif", np.full_like(label, 255))
    for where, grid, error, message in (
        (away, GRID, GridError, "found a map of another area"),
        (plain, GRID, GridError, "found a transform without CRS"),
        (mars, GRID, GridError, "found a CRS that is local, of another planet"),
        (tmp_path / "none.tif", GRID, MissingDataError, "no such file"),
        (tmp_path / "fine.tif", GRID, GridError, r"found 1\.6e\+09 pixels over the scene"),
        (tmp_path / "MCD12Q1.hdf", GRID, DataError, "GDAL needs the driver HDF4.*LC_Type1"),
        (path, Grid(None, None, (9, 9)), GridError, "a scene without georeference"),
    ):
        refused(message, where, "igbp", error=error, grid=grid)
    with pytest.raises(DataError, match="no label in the scene"), open_coarse(unlabelled, GRID) as found:
        found.posterior()


# 180 degrees --------------------------------------------------------------------------------------


@pytest.mark.parametrize("legend", ["igbp", "dfc2020"])
@pytest.mark.parametrize("crs", ["EPSG:4326", "0..360", "170..190", "sinusoidal"])
@pytest.mark.parametrize("zone", ["EPSG:32760", "EPSG:32701", "EPSG:3832"])
def test_labels_on_both_sides_of_180_degrees(tmp_path, legend, crs, zone):
    """13 west of the line and 10 east of it, for pixels and for cells of MODIS."""
    x, y = Transformer.from_crs("EPSG:4326", zone, always_xy=True).transform(180, -16.8)
    grid = Grid(zone, Affine(10, 0, round(x) - 1300, 0, -10, round(y)), (256, 256))
    if crs == "sinusoidal":
        world = np.full((1, 60, 43200 * 2), 10, np.uint8)
        world[..., 43200:] = 7
        at = Affine(CELL_M, 0, -43200 * CELL_M, 0, -CELL_M, -4000 * CELL_M)
        write(tmp_path / "w.tif", world, crs=SINUSOIDAL, transform=at, compress="deflate")
    else:
        west = {"EPSG:4326": -180, "0..360": 0, "170..190": 170}[crs]
        lon = west + (np.arange(400 if west == 170 else 7200) + 0.5) * 0.05
        world = np.where((lon - 180) % 360 < 180, 10, 7).astype(np.uint8)
        at = Affine(0.05, 0, west, 0, -0.05, -16)
        write(tmp_path / "w.tif", np.tile(world, (1, 40, 1)), crs="EPSG:4326", transform=at)
    got, _ = codes_of(tmp_path / "w.tif", legend, grid)
    col, row = np.meshgrid(np.arange(256) + 0.5, np.arange(256) + 0.5)
    to_lonlat = Transformer.from_crs(zone, "EPSG:4326", always_xy=True)
    lon, _ = to_lonlat.transform(grid.transform.c + 10 * col, grid.transform.f - 10 * row)
    assert 0.2 < (lon < 0).mean() < 0.8
    np.testing.assert_array_equal(got, np.where(lon > 0, 7, 10))


def test_a_point_stands_for_each_cell_also_at_the_antimeridian():
    """Beyond 180 degrees a map in degrees has no pixels; the centre of a cell that is cut may lie there."""
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32701", always_xy=True).transform(-180, -16.8)
    _, keys = cell_ids(Affine(10, 0, x - 320, 0, -10, y + 320), "EPSG:32701", (64, 64))
    lon, lat = cell_centres(keys)
    assert np.abs(lon).max() < 180
    assert lon.min() < -179.99
    assert lon.max() > 179.99
    np.testing.assert_allclose(lat, -16.8, atol=0.01)


@pytest.mark.skipif(not REAL.is_dir(), reason="the folder shared/data/mcd12q1 is not here")
def test_a_real_product_in_degrees_is_read_on_its_cells():
    """MCD12Q1 of Bangladesh: cells of one label each, and most of the labels that the file has there."""
    grid = Grid("EPSG:32646", Affine(10, 0, 250_003, 0, -10, 2_650_007), (800, 700))
    with open_coarse(REAL / "bangladesh_2020_igbp.tif", grid) as found:
        codes = found.codes_at(slice(0, 800), slice(0, 700))
        posterior = found.posterior()
    row, col = modis_cells(grid.transform, grid.crs, grid.shape)
    cell = (row - row.min()) * 1000 + col - col.min()
    same = [len(np.unique(codes[cell == number])) for number in np.unique(cell)[::7]]
    assert np.mean(np.array(same) == 1) > 0.9  # a pixel on an outline may fall to its neighbour
    assert len(np.unique(codes)) >= 3
    assert (posterior >= 0).all()
