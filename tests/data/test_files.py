"""
Files of patches, and the one door for rasters: one clear error that names the file and the remedy, or a counted repair.

Each fault is made in a miniature of the real files and met where a user meets it: at `patches`.
"""

import ast
import os
import socket
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from miniatures import PLACE, UTM, dfc_array, file_of, lc_array, s1_array, s2_array, write_patch, write_tif
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

import lcfuse_core
from lcfuse_core.data import files, patches, rasters
from lcfuse_core.data.bands import S2_BANDS
from lcfuse_core.errors import DataError, GridError, LegendError, MissingDataError


def changed(array, value, band=0, row=5, col=7):
    """A copy of *array* with one pixel changed."""
    array = array.copy()
    array[band, row, col] = value
    return array


S1, S2, LC, DFC = s1_array(), s2_array(), lc_array(), dfc_array()

# Name of the fault: (kind of file, its array, error, what is found, what is told to do)
ARRAY_FAULTS = {
    "missing band": ("s2", S2[:12], DataError, "12 bands, expected 13", "L1C"),
    "extra band": ("s2", np.concatenate([S2, S2[:1]]), DataError, "14 bands", "again"),
    "one MODIS layer only": ("lc", LC[:1], DataError, "1 bands, expected 4", "again"),
    "patch too small": ("s2", S2[:, :8, :8], DataError, "8 x 8 pixels", "published file"),
    "layer of another size": ("lc", np.repeat(LC, 2, axis=2), GridError, r"\(32, 96\) pixels", "one grid"),
    "S2 as float 0-1": ("s2", (S2 / 1e4).astype("float32"), DataError, "float32.*x 10000", "Convert"),
    "S1 as integers": ("s1", S1.astype("int16"), DataError, "int16, expected float32", "calibrated"),
    "labels as integers": ("lc", LC.astype("int16"), DataError, "int16, expected uint8", "Convert"),
    "NaN in S1": ("s1", changed(S1, np.nan), DataError, "1 values that are NaN", "Leave the patch out"),
    "infinity in S1": ("s1", changed(S1, -np.inf, 1), DataError, "NaN or infinite", "Leave the patch"),
    "unit of S1": ("s1", 10 ** (S1 / 10), DataError, "VV from", "10 log10"),
    "unit of S2": ("s2", S2 // 256, DataError, "0 to 87.*not all below", "Convert"),
    "unknown IGBP code": ("lc", changed(LC, 18), LegendError, r"band 1 \(IGBP\): .* 18", "recode"),
    "unknown LCCS code": ("lc", changed(LC, 33, 1), LegendError, r"band 2 \(LCCS.* 33", "recode"),
    "unknown DFC2020 code": ("dfc", changed(DFC, 11), LegendError, r"DFC2020\): .* 11", "recode"),
}


@pytest.mark.parametrize("fault", ARRAY_FAULTS)
def test_wrong_content_is_refused_by_the_name_of_its_file(tmp_path, fault):
    """What was found, what was expected, what to do."""
    kind, array, error, found, remedy = ARRAY_FAULTS[fault]
    write_patch(tmp_path, "bundle", patch=2, **{kind: array})
    with pytest.raises(error, match=rf"ROIs0000_autumn_{kind}_CapeTown_p2\.tif.*{found}") as caught:
        patches.read_patch(patches.index(tmp_path).iloc[0])
    assert remedy in caught.value.do


@pytest.mark.parametrize(
    "place",
    [
        {"crs": "EPSG:25832"},
        {"transform": Affine(10, 0, 500013.7, 0, -10, 5400007.2)},
        {"transform": Affine(12, 0, 500003.7, 0, -12, 5400007.2)},
        {"transform": Affine(10, 0, 500003.7, 0, 10, 5400007.2)},
    ],
)
def test_a_layer_that_lies_elsewhere_is_refused(tmp_path, place):
    """Another datum, origin, pixel size and orientation; a centimetre is accepted."""
    write_patch(tmp_path)
    table = patches.index(tmp_path)
    write_tif(file_of(tmp_path, "sen12ms", "lc"), LC, transform=Affine(10, 0, 500003.71, 0, -10, 5400007.2))
    assert patches.read_patch(table.iloc[0]).transform.c == 500003.7
    write_tif(file_of(tmp_path, "sen12ms", "lc"), LC, **place)
    with pytest.raises(GridError, match=r"_lc_1_p1\.tif: found .*EPSG.* as the layers before it\. Bring"):
        patches.read_patch(table.iloc[0])


CONTENTS = {
    "empty file": lambda whole: b"",
    "cut in the header": lambda whole: whole[:5],
    "cut in the tags": lambda whole: whole[:150],
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "last byte missing": lambda whole: whole[:-1],
    "a web page": lambda whole: b"<!DOCTYPE html><title>404 Not Found</title>",
    "a pointer to large storage": lambda whole: b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
    "zeros": lambda whole: bytes(len(whole)),
}


@pytest.mark.parametrize("fault", CONTENTS)
def test_a_damaged_file_is_refused_with_its_size(tmp_path, fault):
    """Half a download, an error page saved as data: never a patch with silent zeros in it."""
    path = write_patch(tmp_path)["s2"]
    content = CONTENTS[fault](path.read_bytes())
    path.write_bytes(content)
    expected = rf"{path.name}: found a damaged file of {len(content):,} bytes .* expected a .*raster.*again"
    with pytest.raises(DataError, match=expected):
        patches.read_patch(patches.index(tmp_path).iloc[0])


# What a file states about its pixels ------------------------------------------------------------------------------


def write(path, array, *, edit=None, **properties):
    """A GeoTIFF with further properties, set by *edit* on the open file."""
    write_tif(path, array, **properties)
    if edit:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            edit(file)
    return path


def masked(file):
    mask = np.full(file.shape, 255, np.uint8)
    mask[3] = 0
    file.write_mask(mask)


def scaled(scale, offset):
    def edit(file):
        file.scales, file.offsets = (scale,) * file.count, (offset,) * file.count

    return edit


def named(*names):
    return lambda file: setattr(file, "descriptions", names)


@pytest.mark.parametrize(("kind", "array"), [("s1", S1), ("s2", S2), ("lc", LC), ("dfc", DFC)])
@pytest.mark.parametrize("how", ["nodata", "mask"])
def test_pixels_that_the_file_declares_unknown_are_not_data(tmp_path, kind, array, how):
    """A sensor with such pixels is refused, labels become 0; elsewhere nothing changes."""
    value = {"s1": -50.005, "s2": 30000, "lc": 9, "dfc": 9}[kind]
    array = array.copy()
    array[:, 3] = value
    path = write(tmp_path / "a.tif", array, **({"nodata": value} if how == "nodata" else {"edit": masked}))
    if kind in ("s1", "s2"):
        with pytest.raises(DataError, match=r"a\.tif: found 48 pixels without data"):
            files.read_layer(path, kind)
    else:
        hidden = array == value if how == "nodata" else np.zeros_like(array, bool)
        hidden[:, 3] = True
        np.testing.assert_array_equal(files.read_layer(path, kind).data, np.where(hidden, 0, array))
        out = np.full((len(array), 3, 4), 77, np.uint8)
        files.read_window(path, kind, 2, 1, out)
        np.testing.assert_array_equal(out, np.where(hidden, 0, array)[:, 2:5, 1:5])


SORTED = sorted(range(13), key=lambda i: f"B{S2_BANDS[i][1:]:>02}" if S2_BANDS[i] != "B8A" else "B8A")
STAC = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 cirrus swir16 swir22"


@pytest.mark.parametrize(
    ("kind", "order", "names"),
    [
        ("s2", SORTED, [S2_BANDS[i] for i in SORTED]),
        ("s2", range(12, -1, -1), [f"S2A_{S2_BANDS[i]}_TOA" for i in range(12, -1, -1)]),
        ("s2", [*range(1, 13), 0], [*STAC.split()[1:], STAC.split()[0]]),
        ("s2", [*range(13), 0, 0], [*S2_BANDS, "QA20", "QA60"]),
        ("s1", [1, 0], ["Sigma0_VH_db", "Sigma0_VV_db"]),
        ("lc", [3, 2, 1, 0], ["LC_Prop3", "LC_Prop2", "LC_Prop1", "LC_Type1"]),
    ],
)
def test_bands_are_put_in_order_by_their_names(tmp_path, kind, order, names):
    """Sorted names, reverse order, STAC names, additional quality bands, polarisations, MODIS layers."""
    array = {"s1": S1, "s2": S2, "lc": LC}[kind]
    path = write(tmp_path / "a.tif", array[list(order)], edit=named(*names))
    np.testing.assert_array_equal(files.read_layer(path, kind).data, array)
    out = np.empty((2, 3, 4), array.dtype)
    files.read_window(path, kind, 2, 1, out)
    np.testing.assert_array_equal(out, array[:2, 2:5, 1:5])


@pytest.mark.parametrize(
    "layout",
    [
        {"interleave": "pixel"},
        {"interleave": "band"},
        {"interleave": "pixel", "compress": "deflate"},
        {"interleave": "pixel", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"ENDIANNESS": "BIG", "BIGTIFF": "YES"},
    ],
    ids=["pixel", "band", "deflate", "tiled", "big"],
)
@pytest.mark.parametrize(
    ("kind", "array"),
    [("s1", S1), ("s1", S1.astype("float64")), ("s2", S2), ("s2", S2.astype("int16")), ("lc", LC), ("dfc", DFC)],
    ids=["s1", "s1 float64", "s2", "s2 int16", "lc", "dfc"],
)
@pytest.mark.parametrize("is_local", [True, False], ids=["mapped", "not mapped"])
def test_a_window_is_that_part_of_the_layer_in_every_layout(tmp_path, monkeypatch, kind, array, layout, is_local):
    """Written into a part of an array that is flipped and transposed, and only there; with and without georeference."""
    monkeypatch.setattr(rasters, "_is_local", lambda _: is_local)
    path = write(tmp_path / "a.tif", array, **layout)
    layer = files.read_layer(path, kind)
    whole = np.full((len(array), 9, 12), 77, layer.data.dtype)
    view = whole[:, 2:7, 3:10].swapaxes(1, 2)[:, ::-1, ::-1]
    assert files.read_window(path, kind, 11, 5, view) == (None, None)
    np.testing.assert_array_equal(view, layer.data[:, 11:18, 5:10])
    view[:] = 77
    assert (whole == 77).all()
    assert files.read_window(path, kind, 11, 5, view, georeferenced=True) == (layer.crs, layer.transform)


def test_files_of_network_drives_are_not_mapped(monkeypatch):
    """Nor those of a device that is not known, or of another system than Linux."""
    mounts = (
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n30 27 0:51 / /content/drive rw - fuse.drive drive rw\n"
        "31 27 0:52 / /scratch rw shared:3 - lustre 10.0.0.1:/x rw\n32 27 0:53 / /tmp rw shared:4 - tmpfs tmpfs rw\n"
    )
    devices = [(254, 0), *((0, n) for n in range(51, 55))]
    for read, expected in ((lambda _: mounts, [(254, 0), (0, 53)]), (Path("/none").read_text, [])):
        monkeypatch.setattr(Path, "read_text", read)
        assert [device for device in devices if rasters._is_local.__wrapped__(os.makedev(*device))] == expected


@pytest.mark.parametrize("kind", ["s1", "s2", "lc", "dfc"])
def test_a_file_cut_short_after_it_was_checked_gives_an_error_that_names_it(tmp_path, kind):
    """It is read through a memory map, where a page that is missing would end the process."""
    path = write(tmp_path / "a.tif", {"s1": S1, "s2": S2, "lc": LC, "dfc": DFC}[kind], interleave="pixel")
    layer = files.read_layer(path, kind).data
    os.truncate(path, path.stat().st_size - layer.nbytes // 2)
    with pytest.raises(DataError, match=r"a\.tif: found a damaged file of [\d,]+ bytes.*again"):
        files.read_window(path, kind, 0, 0, np.empty_like(layer))


@pytest.mark.parametrize(("kind", "array", "names"), [("s1", S1, ("VV", "VH")), ("s2", S2, S2_BANDS)])
def test_alpha_band_beside_the_bands_is_refused_and_not_ignored(kind, array, names, tmp_path):
    """It marks pixels without data."""
    path = write(tmp_path / "a.tif", np.concatenate([array, array[:1]]))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.gray] * len(array) + [ColorInterp.alpha]
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
    with pytest.raises(DataError, match=rf"found an alpha band \({len(array) + 1}\).*gdal_translate -mask"):
        files.read_layer(path, kind)


@pytest.mark.parametrize(
    ("kind", "array", "properties", "found"),
    [
        ("s1", S1, {"edit": named("HH", "HV")}, "named HH, HV"),
        ("s1", S1, {"edit": named("VV", "VV")}, "named VV, VV"),
        ("s2", S2, {"edit": named(*S2_BANDS[:10], "B11", "B11", "B12")}, "B11, B11, B12"),
        ("s2", S2[:12], {"edit": named(*S2_BANDS[:10], "B11", "B12")}, "12 bands named.*no B10"),
        ("s2", S2, {"edit": scaled(1e-3, 0)}, r"scale 0\.001 and offset 0"),
        ("s2", S2, {"edit": scaled(1e-4, -0.2)}, r"offset -0\.2"),
        ("lc", LC, {"edit": scaled(2, 0)}, "scale 2"),
        ("s1", S1, {"crs": None}, "a transform without CRS"),
        ("s1", S1, {"transform": None}, "a CRS without transform"),
        ("s1", S1, {"transform": Affine(0, 0, 5e5, 0, -10, 5e6)}, "the transform|1 ground control"),
        ("s1", S1, {"transform": Affine(np.nan, 0, 5e5, 0, -10, 5e6)}, "the transform|1 ground control"),
        ("s1", S1, {"transform": Affine(10, 0, np.inf, 0, -10, 5e6)}, "the transform|1 ground control"),
        ("s1", S1, {"transform": Affine(100, 0, 5e5, 0, -10, 5e6)}, "pixels of 100 x 10 m on the ground"),
        ("s1", S1, {"crs": "EPSG:4326", "transform": Affine(0.005, 0, 9, 0, -0.005, 45)}, r"pixels of 39\d x 556 m"),
        ("s2", S2, {"crs": "EPSG:3857", "transform": Affine(10, 0, 1e6, 0, -10, 8399737)}, r"pixels of 5\S* x 5\S* m"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_statements_that_contradict_the_kind_are_refused(tmp_path, kind, array, properties, found):
    """Other polarisations, missing and double names, scales of another unit, half and impossible georeference."""
    path = write(tmp_path / "a.tif", array, **properties)
    with pytest.raises((DataError, GridError), match=rf"a\.tif: found .*({found})"):
        files.read_layer(path, kind)


@pytest.mark.parametrize(("scale", "offset"), [(0.01, 0), (0.1, -50), (1, 5)])
def test_scale_and_offset_of_radar_are_applied(tmp_path, scale, offset):
    """Integers with a scale are common for dB."""
    stored = np.round((S1 - offset) / scale)
    path = write(tmp_path / "a.tif", stored.astype("int16" if scale < 1 else "float32"), edit=scaled(scale, offset))
    np.testing.assert_allclose(files.read_layer(path, "s1").data, S1, atol=scale / 2 + 1e-4)


def test_scale_of_reflectance_and_its_offset_are_those_of_the_products(tmp_path):
    """0.0001 and -0.1: the offset of newer products, which is in B10 and taken off."""
    plain = S2 % 9000
    path = write(tmp_path / "a.tif", plain + np.uint16(1000), edit=scaled(1e-4, -0.1))
    np.testing.assert_array_equal(files.read_layer(path, "s2").data, plain)


@pytest.mark.filterwarnings("error")
def test_files_without_georeference_are_opened_in_threads_without_a_warning(tmp_path, monkeypatch):
    """Threads share the filters of warnings: what two change at a time, the one that ends last leaves changed."""
    path, pauses = write_tif(tmp_path / "s1.tif", S1, None, Affine.identity()), iter([0.05, 0.2])
    open_file, before = rasterio.open, list(warnings.filters)

    def slowly(*arguments, **options):
        time.sleep(next(pauses))
        return open_file(*arguments, **options)

    monkeypatch.setattr(rasters.rasterio, "open", slowly)
    with ThreadPoolExecutor(2) as pool:
        for file in pool.map(rasters.open_raster, [path, path]):
            file.close()
    assert list(warnings.filters) == before


@pytest.mark.filterwarnings("ignore")
def test_control_points_are_no_georeference(tmp_path):
    """An image that only has them must be warped; the advice names what Sentinel-1 GRD needs."""
    points = [GroundControlPoint(row, col, 9 + col / 1e4, 45 - row / 1e4) for row in (0, 32) for col in (0, 48)]
    path = write(tmp_path / "a.tif", S1, crs=None, transform=None)
    with rasterio.open(path, "r+") as file:
        file.gcps = points, CRS.from_epsg(4326)
    with pytest.raises(GridError, match=r"a\.tif: found 4 ground control points.*GRD: calibrate, terrain-correct"):
        files.read_layer(path, "s1")


# The door for rasters ---------------------------------------------------------------------------------------------


def test_no_code_opens_a_raster_by_another_door():
    """
    Files are read by `open_raster` alone, addresses of a catalogue by `stac.remote`, and overviews of a map that was
    just written by `make`; all state the driver.
    """
    root = Path(lcfuse_core.__file__).parent
    calls = [
        (path.relative_to(root).as_posix(), node)
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("rasterio.open", "vrt.open", "gdal.Open"))
    ]
    reading = [(name, call) for name, call in calls if len(call.args) < 2 or ast.unparse(call.args[1]) != "'w'"]
    assert [name for name, _ in reading] == ["data/rasters.py", "mapping/make.py", "mapping/stac.py"]
    assert all("driver" in [keyword.arg for keyword in call.keywords] for _, call in reading)


VRT = """<VRTDataset rasterXSize="48" rasterYSize="32"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="0">{0}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""
FOREIGN = {
    "VRT of a file": VRT,
    "VRT of an address": VRT.replace("{0}", "/vsicurl/{1}/a.tif"),
    "WMS": "<GDAL_WMS><Service name='TMS'><ServerUrl>{1}/${{z}}</ServerUrl></Service></GDAL_WMS>",
    "WCS": "<?xml version='1.0'?><WCS_GDAL><ServiceURL>{1}</ServiceURL></WCS_GDAL>",
    "WMTS": "\n <GDAL_WMTS><GetCapabilitiesUrl>{1}</GetCapabilitiesUrl></GDAL_WMTS>",
    "STACIT": '{{"type": "FeatureCollection", "stac_version": "1.0.0", "features": [{{"href": "{1}"}}]}}',
    "HDF4": "\x0e\x03\x13\x01",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_formats_that_refer_to_other_files_are_refused(tmp_path, name):
    """Whatever the name of the file says; nothing is fetched: the socket gets no connection."""
    secret = write_tif(tmp_path / "secret.tif", DFC)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        for suffix in ("tif", "vrt", "jp2", "img"):
            path = tmp_path / f"a.{suffix}"
            path.write_text(FOREIGN[name].format(secret, url), "latin-1")
            with pytest.raises(DataError, match=rf"a\.{suffix}: found .*expected a GeoTIFF, JPEG 2000 or ENVI raster"):
                rasters.open_raster(path)
        for address in (f"/vsicurl/{url}/a.tif", f"{url}/a.tif", f"WMS:{url}", f"GTIFF_DIR:1:{secret}"):
            with pytest.raises(MissingDataError, match="no such file"):
                rasters.open_raster(address)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_advice_names_the_format(tmp_path):
    """HDF4 needs a driver, netCDF a conversion; neither is damaged. A folder holds files."""
    for head, found, do in (
        (b"\x0e\x03\x13\x01", "an HDF4 file", "GDAL needs the driver HDF4.*MCD12Q1:LC_Type1"),
        (b"\x89HDF\r\n", "an HDF5 or netCDF file", "gdal_translate -b"),
        (b"CDF\x01", "a netCDF file", "gdal_translate -b"),
    ):
        (tmp_path / "a.hdf").write_bytes(head + bytes(99))
        with pytest.raises(DataError, match=rf"a\.hdf: found {found}.*{do}"):
            rasters.open_raster(tmp_path / "a.hdf")
    with pytest.raises(MissingDataError, match=r"found a folder, expected a raster file\. Give its raster files"):
        rasters.open_raster(tmp_path)


def test_rasters_of_envi_are_read_with_their_header(tmp_path):
    """As SNAP writes them; one that is shorter than its header declares is damaged."""
    size = {"count": 2, "height": 32, "width": 48, "dtype": "float32"}
    for name in ("a.img", "b.data"):
        with rasterio.open(tmp_path / name, "w", driver="ENVI", crs=UTM, transform=PLACE, **size) as file:
            file.write(S1)
        layer = files.read_layer(tmp_path / name, "s1")
        np.testing.assert_array_equal(layer.data, S1)
        assert layer.transform.almost_equals(PLACE)
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-1])
    with pytest.raises(DataError, match="12,287 of 12,288 bytes that its header declares"):
        files.read_layer(tmp_path / "a.img", "s1")


def test_a_name_that_is_not_utf8_is_refused_when_it_is_opened(tmp_path):
    """Below a given folder there may be names in Latin-1, as old archives have them."""
    path = tmp_path / os.fsdecode(b"ROIs1158_spring_s1_1_p\xe4.tif")
    path.write_bytes(b"II*\0")
    with pytest.raises(DataError, match="found a name that is not UTF-8") as refused:
        rasters.open_raster(path)
    str(refused.value).encode()  # can be printed


def test_side_car_files_change_nothing(tmp_path):
    """Mask, world file and metadata beside a GeoTIFF."""
    path = write_tif(tmp_path / "a.tif", S1, crs=None, transform=None)
    write_tif(tmp_path / "a.tif.msk", np.zeros((1, 32, 48), np.uint8))
    (tmp_path / "a.tfw").write_text("10\n0\n0\n-10\n5\n5\n")
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:32632</SRS><GeoTransform>1,2,0,3,0,4</GeoTransform></PAMDataset>"
    )
    layer = files.read_layer(path, "s1")
    assert (layer.crs, layer.transform) == (None, None)
    np.testing.assert_array_equal(layer.data, S1)


def test_a_block_that_would_take_the_memory_is_refused(tmp_path):
    """A small file may declare large tiles; GDAL would allocate one before it looks at its content."""
    path = tmp_path / "a.tif"
    large = {"width": 65536, "height": 65536, "tiled": True, "blockxsize": 65536, "blockysize": 65536}
    with rasterio.open(path, "w", driver="GTiff", count=1, dtype="uint8", compress="deflate", SPARSE_OK=True, **large):
        pass
    assert path.stat().st_size < 2_000_000
    with pytest.raises(DataError, match=r"found blocks of 65536 x 65536 pixels .* TILED=YES"):
        rasters.open_raster(path)


@pytest.mark.parametrize(
    "crs",
    [
        'LOCAL_CS["site",UNIT["metre",1],AXIS["X",EAST],AXIS["Y",NORTH]]',
        'GEOGCS["Mars 2000",DATUM["D_Mars_2000",SPHEROID["Mars_2000_IAU_IAG",3396190,169.89]],'
        'PRIMEM["Reference_Meridian",0],UNIT["Degree",0.0174532925199433]]',
    ],
    ids=["building site", "Mars"],
)
def test_a_crs_that_is_not_on_earth_is_refused(crs):
    with pytest.raises(GridError, match=r"a\.tif: found a CRS that is local, of another planet or unknown"):
        rasters.ground_size("a.tif", CRS.from_wkt(crs), PLACE, (9, 9))


# Patches and folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "missing"), [(("s1",), "s2"), (("s2",), "s1"), (("s1", "lc"), "s2"), (("lc",), "s1 and s2")]
)
def test_one_sensor_without_the_other_is_refused(tmp_path, there, missing):
    """The message names the patch, the files that are there and the one to fetch; the index lists it."""
    write_patch(tmp_path, kinds=there)
    table = patches.index(tmp_path)
    with pytest.raises(MissingDataError, match=rf"only .*_{there[0]}_1_p1\.tif.*expected {missing}.*Fetch"):
        patches.read_patch(table.iloc[0])
    reason = patches.incomplete(table, ("s1", "s2"))["reason"].tolist()
    assert reason == [f"has no {missing.replace(' and ', ', ')}"]
    assert patches.complete(table, ("s1", "s2")).empty


def test_missing_labels_are_refused_only_where_they_are_needed(tmp_path):
    """A map can be drawn without them, a network cannot be trained. A file that vanished since the index is named."""
    paths = write_patch(tmp_path, kinds=("s1", "s2"))
    row = patches.index(tmp_path).iloc[0]
    assert patches.read_patch(row).lc is None
    with pytest.raises(MissingDataError, match=r"ROIs1158_spring_1_p1: .*expected lc beside it.*patches\.complete"):
        patches.read_patch(row, ("s1", "s2", "lc"))
    paths["s2"].unlink()
    with pytest.raises(MissingDataError, match=r"_s2_1_p1\.tif: found no such file, expected a raster file"):
        patches.read_patch(row)


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
def test_the_offset_is_taken_off_and_reported(tmp_path, dtype):
    """All bands lose 1000, what would fall below zero becomes zero; without it nothing is touched."""
    plain = s2_array() % 9000
    with_offset = (plain + 1000).astype(dtype)
    with_offset[11, 3, 4] = 990  # noise can lie below the offset in a dark band
    write_patch(tmp_path, patch=1, s2=with_offset)
    write_patch(tmp_path, patch=2, s2=plain.astype(dtype))
    (mended, untouched), report = patches.read_many(patches.index(tmp_path))
    np.testing.assert_array_equal(mended.s2, changed(plain, 0, 11, 3, 4), strict=True)
    np.testing.assert_array_equal(untouched.s2, plain, strict=True)
    assert report.repaired == [("ROIs1158_spring_1_p1", "s2: offset of +1000 taken off all bands")]


def test_one_dark_pixel_in_b10_speaks_against_the_offset(tmp_path):
    """A cloudy patch of an old product is bright in B10 too, but not everywhere."""
    cloudy = changed(np.maximum(S2, 1000), 999, 10)
    layer = files.read_layer(write_tif(tmp_path / "a.tif", cloudy), "s2")
    np.testing.assert_array_equal(layer.data, cloudy)
    assert layer.repairs == ()


def test_stray_files_are_left_aside_and_listed(tmp_path):
    """Images of another name are reported; litter and papers are not."""
    write_patch(tmp_path)
    write_tif(tmp_path / "mosaic.tif", lc_array())
    write_tif(tmp_path / "ROIs1158_spring_dem_1_p1.tif", lc_array())
    write_tif(tmp_path / "__MACOSX" / "ROIs1158_spring_s1_1_p9.tif", s1_array())
    (tmp_path / "ROIs1158_spring" / "s1_1" / "._ROIs1158_spring_s1_1_p1.tif").write_bytes(b"\0\5\26\7")
    for litter in (".DS_Store", "readme.txt", "train_list.txt"):
        (tmp_path / litter).write_text("not an image")
    table = patches.index(tmp_path)
    assert len(table) == 1
    odd = patches.incomplete(table)
    assert [Path(file).name for file in odd["what"]] == ["ROIs1158_spring_dem_1_p1.tif", "mosaic.tif"]
    assert set(odd["reason"]) == {"not used: not named like a patch"}


def test_a_patch_that_is_there_twice_is_used_once_and_listed(tmp_path):
    """An archive unpacked in two places: which copy was used is said."""
    first, second = (write_patch(tmp_path / place)["s2"] for place in ("a", "b"))
    write_patch(tmp_path / "c", kinds=("dfc",))
    (row,) = patches.index(tmp_path).itertuples()
    assert row.s2 == str(first)
    odd = patches.incomplete(patches.index(tmp_path))
    assert len(odd) == 3
    assert odd.values.tolist()[2] == [str(second), f"not used: second copy of {first}"]


def test_a_root_without_patches_is_named(tmp_path):
    """Neither a typing error nor a file nor a folder of archives is an empty data set."""
    archive = tmp_path / "ROIs1158_spring_s2.tar.gz"
    archive.write_bytes(b"")
    for root, found in (
        (tmp_path / "data", "data: found no such folder.* Check the path"),
        (archive, "gz: found no such folder.* Check the path"),
        (tmp_path, "no file named like a patch.*unpack the archives"),
    ):
        with pytest.raises(MissingDataError, match=found):
            patches.index(root)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """Its patches would be missing without a word. (Made to fail by hand: permissions do not stop root.)"""
    write_patch(tmp_path)
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "s2_1":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MissingDataError, match=r"s2_1: found a folder that cannot be listed \(Permission denied\)"):
        patches.index(tmp_path)
