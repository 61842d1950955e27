"""Scenes from files of any grid: what is read, what is masked, what is refused."""

import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine
from places import AT, UTM, scene_arrays, write
from rasterio.warp import Resampling, reproject

from lcfuse_core.data.bands import S2_BANDS
from lcfuse_core.errors import DataError, GridError, MissingDataError
from lcfuse_core.mapping.scene import _sample_of_codes, open_scene

ALL = slice(0, 150), slice(0, 200)
FILE_NAMES = [f"B{band[1:]:>02}" if band != "B8A" else band for band in S2_BANDS]
FACTORS = [{"B2": 1, "B3": 1, "B4": 1, "B8": 1, "B1": 6, "B9": 6, "B10": 6}.get(band, 2) for band in S2_BANDS]


@pytest.fixture
def files(tmp_path):
    """S2 and S1 of one region, as files and arrays."""
    s2, s1 = scene_arrays()
    return write(tmp_path / "s2.tif", s2), write(tmp_path / "s1.tif", s1), s2, s1


def refused(match, *paths, **masks):
    """A scene of these files is refused with a message that matches."""
    with pytest.raises((DataError, GridError), match=match), open_scene(*paths, **masks):
        pass


def whole(*paths, **masks):
    """Everything of a scene, its grid, and the repairs that it reports."""
    with open_scene(*paths, **masks) as scene:
        rows, cols = scene.grid.shape
        return scene.read(slice(0, rows), slice(0, cols)), scene.grid, scene.repairs


def test_what_lies_on_one_grid_is_read_as_it_is(files):
    """Pixels, georeference, and any part of it."""
    s2_path, s1_path, s2, s1 = files
    with open_scene(s2_path, s1_path) as scene:
        assert (scene.grid.crs, scene.grid.transform, scene.grid.shape) == (UTM, AT, (150, 200))
        part = scene.read(slice(17, 90), slice(30, 200))
    np.testing.assert_array_equal(part.s2, s2[:, 17:90, 30:])
    np.testing.assert_array_equal(part.s1, s1[:, 17:90, 30:])
    assert part.valid.all()
    assert scene.repairs == ()


# Products -----------------------------------------------------------------------------------------


def write_product(folder, s2, suffix="tif", **profile):
    """The bands of a product in three resolutions; what a reader should make of them."""
    expected = s2.copy()
    for number, (name, factor) in enumerate(zip(FILE_NAMES, FACTORS, strict=True)):
        coarse = s2[number, ::factor, ::factor]
        expected[number] = coarse.repeat(factor, 0).repeat(factor, 1)
        path = folder / f"T32UNF_20180502T102031_{name}.{suffix}"
        write(path, coarse[None], transform=AT @ Affine.scale(factor), **profile)
    return expected


IMG, QI = "x.SAFE/GRANULE/L1C/IMG_DATA", "x.SAFE/GRANULE/L1C/QI_DATA"
MASKS = [f"{QI}/{mask}_{band}" for mask in ("MSK_DETFOO", "MSK_QUALIT") for band in FILE_NAMES]
OTHER_FILES = {
    "L1C": (IMG, "tif", [f"{IMG}/T32UNF_20180502T102031_TCI"]),
    "L1C since 04.00": (IMG, "tif", MASKS),
    "L1C in JPEG 2000": (IMG, "jp2", MASKS[:3]),
    "AWS": ("x.SAFE/2018/5/2/0", "tif", [f"x.SAFE/2018/5/2/0/preview/{band}" for band in FILE_NAMES]),
    "AWS quality": ("x.SAFE/tile", "tif", ["x.SAFE/tile/qi/MSK_QUALIT_B01", "x.SAFE/tile/.hidden_B01"]),
}
"""Folder of the bands, their format, and other rasters of the product."""

LOSSLESS = {"tif": {}, "jp2": {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}}


@pytest.mark.parametrize("product", OTHER_FILES)
def test_bands_of_a_product_are_found_among_its_other_rasters(tmp_path, product):
    """Coarser bands are repeated, the grid is that of the 10 m bands; masks and previews are not bands."""
    s2, _ = scene_arrays(180, 240)
    images, suffix, others = OTHER_FILES[product]
    expected = write_product(tmp_path / images, s2, suffix, **LOSSLESS[suffix])
    for name in others:
        write(tmp_path / f"{name}.{suffix}", s2[:1, ::6, ::6], **LOSSLESS[suffix])
    part, grid, _ = whole(tmp_path / "x.SAFE")
    assert (grid.transform, grid.shape) == (AT, (180, 240))
    np.testing.assert_array_equal(part.s2, expected)
    if product == "L1C":
        (tmp_path / images / "T32UNF_20180502T102031_B10.tif").unlink()
        refused(r"found no B10, expected B01 to B12.*L2A has no B10", tmp_path / "x.SAFE")


def test_a_product_of_another_level_is_named(tmp_path):
    """L2A repeats bands at three resolutions, under names of its own."""
    s2, _ = scene_arrays(60, 60)
    for folder in ("R10m", "R20m"):
        write(tmp_path / "S2A_MSIL2A_2022.SAFE/GRANULE/L2A/IMG_DATA" / folder / "T28_B02_10m.tif", s2[:1])
    refused(r"found a Sentinel-2 L2A product.*Take the L1C product", tmp_path / "S2A_MSIL2A_2022.SAFE")
    (tmp_path / "S1A.SAFE").mkdir()
    with pytest.raises(MissingDataError, match=r"S1A\.SAFE: found a folder"):
        whole(write(tmp_path / "s2.tif", s2), tmp_path / "S1A.SAFE")
    refused(
        "found 12 files|found no B10", [write(tmp_path / f"{name}.tif", s2[:1]) for name in FILE_NAMES if name != "B10"]
    )


def test_radar_files_are_taken_by_their_names(files, tmp_path):
    """In either order, ENVI as SNAP writes it; other polarisations are refused."""
    s2_path, _, _, s1 = files
    for name, band in zip(("Sigma0_VV_db", "Sigma0_VH_db", "Sigma0_HH_db"), (*s1, s1[0]), strict=True):
        write(tmp_path / f"{name}.img", band[None], driver="ENVI")
    paths = [tmp_path / "Sigma0_VH_db.img", tmp_path / "Sigma0_VV_db.img"]
    for order in (paths, paths[::-1]):
        np.testing.assert_array_equal(whole(s2_path, order)[0].s1, s1)
    refused("named VH and HH, expected VV and VH", s2_path, [paths[0], tmp_path / "Sigma0_HH_db.img"])


# What the files state -----------------------------------------------------------------------------


@pytest.mark.parametrize("nodata", [np.nan, -9999, -99, -50, 20, 0])
def test_nodata_of_radar_is_no_backscatter(files, nodata):
    """Whatever the value, on the grid of the scene or warped to it."""
    s2_path, s1_path, _, s1 = files
    s1[:, :, :100] = nodata
    write(s1_path, s1, nodata=nodata)
    assert whole(s2_path, s1_path)[0].valid.mean() == pytest.approx(0.5)
    write(s1_path, s1[:, ::2, ::2], nodata=nodata, transform=AT @ Affine.scale(2))
    part, _, notes = whole(s2_path, s1_path)
    assert part.valid.mean() == pytest.approx(0.5, abs=0.01)
    assert part.s1[:, part.valid].min() > -40
    assert notes == ("s1: pixels of 20 x 20 m, resampled to 10 m",)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_scaled_radar_is_converted_on_any_grid(files, dtype):
    """Scale and offset tags, with nodata."""
    s2_path, s1_path, _, s1 = files
    stored = np.round((s1 + 50) * 100).astype(dtype)
    stored[:, :20] = -9999
    for step in (1, 2):
        write(s1_path, stored[:, ::step, ::step], nodata=-9999, transform=AT @ Affine.scale(step))
        with rasterio.open(s1_path, "r+") as file:
            file.scales, file.offsets = (0.01, 0.01), (-50, -50)
        part = whole(s2_path, s1_path)[0]
        assert not part.valid[:20].any()
        if step == 1:
            np.testing.assert_allclose(part.s1[:, 20:], s1[:, 20:], atol=0.006)
        else:
            assert part.s1[0, part.valid].mean() == pytest.approx(s1[0, 20:].mean(), abs=0.1)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("sensor", ["s2", "s1"])
def test_a_mask_inside_a_file_hides_its_pixels(files, sensor, step):
    """On the grid of the scene and warped to it."""
    paths, s2, s1 = dict(zip(("s2", "s1"), files, strict=False)), *files[2:]
    array = {"s2": s2, "s1": s1}[sensor][:, ::step, ::step]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write(paths[sensor], array, transform=AT @ Affine.scale(step))
        with rasterio.open(paths[sensor], "r+") as file:
            mask = np.full(array.shape[1:], 255, np.uint8)
            mask[: 60 // step] = 0
            file.write_mask(mask)
    part = whole(paths["s2"], paths["s1"])[0]
    assert not part.valid[:59].any()
    assert part.valid.mean() == pytest.approx(0.6, abs=0.02)


def test_names_of_bands_determine_their_order(files):
    """Sorted by name, as `sorted(glob)` gives them; the scene is the same."""
    s2_path, _, s2, _ = files
    order = sorted(range(13), key=lambda number: FILE_NAMES[number])
    write(s2_path, s2[order], names=[FILE_NAMES[number] for number in order])
    np.testing.assert_array_equal(whole(s2_path)[0].s2, s2)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("nodata", [None, 0, 255])
def test_masks_hide_what_is_not_zero(files, tmp_path, step, nodata):
    """A nodata tag of 0 is common in masks of clouds, and means clear."""
    s2_path, _, _, _ = files
    clouds = np.zeros((1, 150, 200), np.uint8)
    clouds[:, :60] = 1
    write(tmp_path / "m.tif", clouds[:, ::step, ::step], transform=AT @ Affine.scale(step), nodata=nodata)
    valid = whole(s2_path, clouds=tmp_path / "m.tif")[0].valid
    np.testing.assert_array_equal(valid[:, :198].all(axis=1), np.arange(150) >= 60)


@pytest.mark.parametrize("code", [-1, 12, 64, 255, 21824, 22280])
def test_codes_that_are_not_of_the_scene_classification_hide_the_ground(files, tmp_path, code):
    """Also its nodata value, whichever it is, and the quality bits of Landsat or HLS given as one."""
    s2_path, _, _, _ = files
    codes = np.full((1, 150, 200), 4, np.int16)
    codes[:, :60] = code
    valid = whole(s2_path, scl=write(tmp_path / "m.tif", codes))[0].valid
    np.testing.assert_array_equal(valid.all(axis=1), np.arange(150) >= 60)
    refused("masks m.tif", s2_path, scl=write(tmp_path / "m.tif", np.full_like(codes, code)))


def test_radar_of_another_unit_everywhere_is_named(files, tmp_path):
    """All values outside the range of dB would else be no data, and the message about the other file."""
    s2_path, s1_path, *_ = files
    with rasterio.open(s1_path) as file:
        radar = file.read()
    refused("x12.tif: found V. from .*expected dB", s2_path, write(tmp_path / "x12.tif", 12 * radar))


def test_a_scene_with_few_pixels_with_data_is_read(tmp_path):
    """Also if no window of the sample meets it."""
    s2, _ = scene_arrays(1000, 1000)
    s2[:, :300], s2[:, 340:], s2[:, :, :300], s2[:, :, 340:] = 0, 0, 0, 0
    part, _, _ = whole(write(tmp_path / "s2.tif", s2))
    assert part.valid.sum() == 40 * 40
    np.testing.assert_array_equal(part.s2, s2)


@pytest.mark.parametrize("shape", [(1, 1), (100, 300), (256, 257), (700, 900)])
def test_the_sample_of_a_mask_has_its_corners_and_its_middle(tmp_path, shape):
    """At most nine windows are read, however large the mask is."""
    codes = np.zeros((1, *shape), np.uint8)
    codes[0, 0, 0], codes[0, 0, -1], codes[0, shape[0] // 2, shape[1] // 2], codes[0, -1, -1] = 1, 2, 3, 4
    with rasterio.open(write(tmp_path / "m.tif", codes)) as file:
        assert set(_sample_of_codes(file)) == set(np.unique(codes))


@pytest.mark.parametrize("kind", ["clouds", "scl"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_probabilities_are_no_mask(files, tmp_path, kind, dtype):
    """As of s2cloudless and `MSK_CLDPRB_20m.jp2`: nearly no pixel is 0."""
    percent = np.random.default_rng(0).integers(0, 101, (1, 150, 200)).astype(dtype)
    refused(f"m.tif: found bands: 1, {dtype}, 101.*threshold", files[0], **{kind: write(tmp_path / "m.tif", percent)})


def test_no_data_clouds_and_what_one_sensor_missed_are_hidden(files, tmp_path):
    """Zeros and fill values of S2, NaN and zeros of S1, a mask, a scene classification of 20 m."""
    s2_path, s1_path, s2, s1 = files
    s2[:, 0], s2[5, 1], s2[11, 2] = 0, 65535, 0  # the last: calm water may be 0 at 1.6 micrometres
    s1[0, 3], s1[:, 4] = np.nan, 0
    write(s2_path, s2)
    write(s1_path, s1)
    clouds, scl = np.zeros((1, 150, 200), np.uint8), np.full((1, 75, 100), 4, np.uint8)
    clouds[0, 5], scl[0, 10], scl[0, 11], scl[0, 12] = 1, 9, 5, 3
    write(tmp_path / "clouds.tif", clouds)
    write(tmp_path / "scl.tif", scl, transform=AT @ Affine.scale(2))
    part = whole(s2_path, s1_path, clouds=tmp_path / "clouds.tif", scl=tmp_path / "scl.tif")[0]
    hidden = [0, 1, 3, 4, 5, 20, 21, 24, 25]
    np.testing.assert_array_equal(np.flatnonzero(~part.valid.any(axis=1)), hidden)
    np.testing.assert_array_equal(np.flatnonzero(~part.valid.all(axis=1)), hidden)
    assert (part.s2[:, hidden] == 0).all()
    assert (part.s1[:, hidden] == 0).all()
    write(tmp_path / "clouds.tif", clouds + np.uint8(1))
    refused("no pixel with data.*and the masks clouds.tif", s2_path, clouds=tmp_path / "clouds.tif")


def test_the_offset_of_newer_products_is_found_and_taken_off(files):
    """Found in B10 of the whole; zeros stay no data and do not hide it. In half of a mosaic it is refused."""
    s2_path, _, s2, _ = files
    newer = s2 + np.uint16(1000)
    newer[:, :40] = 0
    write(s2_path, newer)
    part, _, repairs = whole(s2_path)
    assert repairs == ("s2: offset of +1000 taken off all bands",)
    assert not part.valid[:40].any()
    np.testing.assert_array_equal(part.s2[:, 40:], s2[:, 40:])
    assert (part.s2[:, :40] == 0).all()
    newer[:, 40:] = s2[:, 40:]
    newer[:, :40] = s2[:, :40] + np.uint16(1000)
    write(s2_path, newer)
    refused(r"s2\.tif: found an offset of \+1000 in a part", s2_path)


# Grids --------------------------------------------------------------------------------------------


def test_radar_of_another_projection_is_warped_to_the_scene(files, tmp_path):
    """S1 in degrees, over a part: a smooth field comes back within 0.1 dB, the rest is not valid."""
    s2_path, _, _, _ = files
    row, col = np.mgrid[:150, :200]
    smooth = np.stack([-10 - row / 30, -18 + col / 40]).astype(np.float32)
    there = rasterio.Affine(0.00008, 0, 9.82, 0, -0.00008, 57.235)
    warped = np.full((2, 400, 500), np.nan, np.float32)
    reproject(
        smooth, warped, src_transform=AT, src_crs=UTM, dst_transform=there, dst_crs="EPSG:4326",
        src_nodata=np.nan, dst_nodata=np.nan, resampling=Resampling.bilinear,
    )  # fmt: skip
    write(tmp_path / "s1.tif", warped, crs="EPSG:4326", transform=there, nodata=np.nan)
    part = whole(s2_path, tmp_path / "s1.tif")[0]
    inner = part.valid.copy()
    inner[:3] = inner[-3:] = inner[:, :3] = inner[:, -3:] = False
    assert 0.2 < inner.mean() <= 1
    np.testing.assert_allclose(part.s1[:, inner], smooth[:, inner], atol=0.1)


@pytest.mark.parametrize(
    ("crs", "transform", "target", "size_m"),
    [
        ("EPSG:4326", Affine(1e-4, 0, -9.3, 0, -1e-4, -33.5), "EPSG:32729", 10),
        ("EPSG:4326", Affine(1e-4, 0, 245, 0, -1e-4, 40), "EPSG:32611", 10),  # degrees from 0 to 360
        ("EPSG:4326", Affine(1e-4, 0, 179.99, 0, -1e-4, -16.8), "EPSG:32701", 10),  # over 180 degrees
        ("EPSG:3857", Affine(10, 0, 1113194, 0, -10, 8399737), "EPSG:32632", 5),
        ("EPSG:3857", Affine(20, 0, 1113194, 0, -20, 8399737), "EPSG:32632", 10),
        ("EPSG:3395", Affine(10, 0, 1113194, 0, -10, 5621521), "EPSG:32632", 7),
        (UTM, Affine(-10, 0, 601280, 0, -10, 6300000), UTM, 10),  # columns from east to west
        (UTM, Affine(10, 0, 601280, 0, 10, 6300000), UTM, 10),  # rows from south to north
        (UTM, Affine(20, 0, 601280, 0, -20, 6300000), UTM, 20),
    ],
)
def test_other_grids_get_ten_metres_on_the_ground(tmp_path, crs, transform, target, size_m):
    """Round coordinates in the UTM zone; the valid area is that of the image, whatever its projection."""
    s2, _ = scene_arrays()
    write(tmp_path / "s2.tif", s2, crs=crs, transform=transform)
    part, grid, notes = whole(tmp_path / "s2.tif")
    assert grid.crs == target
    assert (grid.transform.a, grid.transform.e) == (10, -10)
    assert grid.transform.c % 10 == grid.transform.f % 10 == 0
    true_m2 = 150 * 200 * {"EPSG:4326": 11.1**2 * np.cos(np.radians(transform.f))}.get(crs, size_m**2)
    assert part.valid.sum() * 100 == pytest.approx(true_m2, rel=0.05)
    assert set(np.unique(part.s2[3][part.valid])) <= set(np.unique(s2[3]))
    assert bool(notes) == (size_m != 10)


def test_a_polar_grid_of_ten_metres_is_kept(tmp_path):
    """There is no UTM near the poles."""
    s2, _ = scene_arrays()
    write(tmp_path / "s2.tif", s2, crs="EPSG:3413", transform=Affine(10, 0, 1000, 0, -10, -1000))
    part, grid, _ = whole(tmp_path / "s2.tif")
    assert grid.crs == "EPSG:3413"
    np.testing.assert_array_equal(part.s2, s2)


def test_sensors_over_180_degrees_meet(tmp_path):
    """S2 in UTM, S1 and a mask in degrees, once as 179..181 and once as 180..181: values of the right place."""
    s2, s1 = scene_arrays()
    utm = Affine(10, 0, 819_000, 0, -10, 8_140_000)  # 179.99 to 180.01 degrees east
    write(tmp_path / "s2.tif", s2, crs="EPSG:32760", transform=utm)
    degrees, place = np.full((2, 600, 900), np.nan, np.float32), Affine(5e-5, 0, 179.98, 0, -5e-5, -16.79)
    reproject(s1, degrees, src_transform=utm, src_crs="EPSG:32760", dst_transform=place, dst_crs="EPSG:4326",
              src_nodata=np.nan, dst_nodata=np.nan)  # fmt: skip
    assert np.isfinite(degrees).mean() > 0.1
    for west in (0, -360):
        at = Affine(5e-5, 0, 179.98 + west, 0, -5e-5, -16.79)
        write(tmp_path / "s1.tif", degrees, crs="EPSG:4326", transform=at, nodata=np.nan)
        write(tmp_path / "m.tif", np.zeros((1, 600, 900), np.uint8), crs="EPSG:4326", transform=at)
        part = whole(tmp_path / "s2.tif", tmp_path / "s1.tif", clouds=tmp_path / "m.tif")[0]
        assert part.valid.mean() > 0.9
        assert np.abs(part.s1 - s1)[:, part.valid].mean() < 1


def spoilt(s2, s1):
    """The same arrays, spoilt in one way; the properties of both files; the message."""
    t = Affine(10, 0, 999892.697, 0, -10, 6344077.614)
    north = {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 5, 0, -1e-4, 89)}
    local = {"crs": 'LOCAL_CS["site",UNIT["metre",1]]'}
    return {
        "12 bands": (s2[:12], s1, {}, {}, "s2.tif: found 12 bands.*L2A"),
        "floats": (s2 / np.float32(1e4), s1, {}, {}, "s2.tif: found dtype float32, expected uint16 or int16"),
        "unit": (s2 // 40, s1, {}, {}, "s2.tif: found values from .*not all below 256"),
        "order": (s2[[10, *range(10), 0, 12]], s1, {}, {}, "band 11 brighter than band 1"),
        "one band of radar": (s2, s1[:1], {}, {}, "s1.tif: found 1 bands, expected 2: VV and VH in dB"),
        "power": (s2, 10 ** (s1 / 10), {}, {}, r"s1.tif: found VV from 0\.0.*10 log10"),
        "swapped": (s2, s1[::-1], {}, {}, r"s1.tif: found VH \d\.\d dB above VV"),
        "digital numbers": (s2, (s1 + 90).astype("uint16"), {}, {}, "s1.tif: found dtype uint16.*calibrated"),
        "nothing": (s2 * 0, s1, {}, {}, "found no pixel with data"),
        "elsewhere": (s2, s1, {}, {"transform": t}, "s1.tif: found EPSG:32632 within 999893.*away from the scene"),
        "no georeference": (s2, s1, {}, {"crs": None, "transform": None}, "s1.tif: found no georeference"),
        "no CRS": (s2, s1, {"crs": None}, {}, "s2.tif: found a transform without CRS"),
        "tiny": (s2[:, :20], s1[:, :20], {}, {}, r"s2.tif: found \(20, 200\) pixels of 10 m"),
        "500 m": (s2, s1, {"transform": Affine(500, 0, 5e5, 0, -500, 6e6)}, {}, "s2.tif: found pixels of 500.2 x 500"),
        "1 km of radar": (s2, s1, {}, {"transform": Affine(1e3, 0, 4e5, 0, -1e3, 64e5)}, "s1.tif: found pixels of 1"),
        "degrees of radar": (s2, s1, {}, {"crs": "EPSG:4326", "transform": Affine(0.01, 0, 9, 0, -0.01, 58)}, "s1.tif"),
        "pole": (s2, s1, north, {}, "s2.tif: found a centre at 5"),
        "local CRS": (s2, s1, local, {}, "s2.tif: found a CRS that is local"),
        "local CRS of radar": (s2, s1, {}, local, "s1.tif: found a CRS that is local"),
        "transform": (s2, s1, {"transform": Affine(10, 0, np.nan, 0, -10, 6e6)}, {}, "s2.tif: found the transform"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("how", spoilt(*scene_arrays()))
def test_a_scene_that_cannot_be_used_is_refused_by_name(how, files):
    """One clear error that names the file, before anything is mapped."""
    s2_path, s1_path, s2, s1 = files
    s2, s1, place2, place1, message = spoilt(s2, s1)[how]
    write(s2_path, s2, **place2)
    write(s1_path, s1, **place1)
    refused(message, s2_path, s1_path)


def test_damaged_and_missing_files_are_named(files, tmp_path):
    """Cut in the middle, cut in the head, no raster, not there."""
    s2_path, s1_path, _, _ = files
    half = tmp_path / "half.tif"
    half.write_bytes(s2_path.read_bytes()[: s2_path.stat().st_size // 2])
    refused(r"half\.tif: found a damaged file", half)
    (tmp_path / "text.tif").write_text("hello")
    refused(r"text\.tif: found a damaged file", s2_path, tmp_path / "text.tif")
    refused("expected 1 band, up to 32 whole numbers", s2_path, clouds=s1_path)
    with pytest.raises(MissingDataError, match="no such file"), open_scene(tmp_path / "none.tif"):
        pass


@pytest.mark.filterwarnings("error")
def test_without_any_georeference_a_scene_is_pixels(tmp_path):
    """As the patches of DFC2020: nothing is invented, nothing warns, and the missing georeference is reported."""
    s2, s1 = scene_arrays(64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, array in (("s2.tif", s2), ("s1.tif", s1)):
            write(tmp_path / name, array, crs=None, transform=None)
    part, grid, notes = whole(tmp_path / "s2.tif", tmp_path / "s1.tif")
    assert (grid.crs, grid.transform) == (None, None)
    assert notes == ("s2: no georeference, the map has none",)
    np.testing.assert_array_equal(part.s2, s2)


def test_an_empty_image_of_a_tile_takes_little_memory(tmp_path):
    """A sparse file of 15 kB declares 10,980 pixels per side; it is read in parts until data are found."""
    import tracemalloc

    path = tmp_path / "s2.tif"
    size = {"count": 13, "height": 3000, "width": 3000, "dtype": "uint16", "SPARSE_OK": True, "tiled": True}
    with rasterio.open(path, "w", driver="GTiff", crs=UTM, transform=AT, compress="deflate", **size):
        pass
    tracemalloc.start()
    refused("no pixel with data", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6  # all of it: 234 MB, and as much again for the joined parts
