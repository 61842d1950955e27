"""Scenes from files of any grid: what is read, what is masked, what is refused."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from places import AT, UTM, scene_arrays, write
from rasterio.warp import Resampling, reproject

from lcfuse_core.data.files import S2_BANDS
from lcfuse_core.errors import DataError, GridError, MissingDataError
from lcfuse_core.mapping.scene import open_scene

ALL = slice(0, 150), slice(0, 200)


@pytest.fixture
def files(tmp_path):
    """S2 and S1 of one place, as files and arrays."""
    s2, s1 = scene_arrays()
    return write(tmp_path / "s2.tif", s2), write(tmp_path / "s1.tif", s1), s2, s1


def test_what_lies_on_one_grid_is_read_as_it_is(files):
    """Pixels, georeference, and any part of it."""
    s2_path, s1_path, s2, s1 = files
    with open_scene(s2_path, s1_path) as scene:
        assert (scene.grid.crs, scene.grid.transform, scene.grid.shape) == (UTM, AT, (150, 200))
        seen = scene.read(slice(17, 90), slice(30, 200))
    np.testing.assert_array_equal(seen.s2, s2[:, 17:90, 30:])
    np.testing.assert_array_equal(seen.s1, s1[:, 17:90, 30:])
    assert seen.valid.all()
    assert scene.repairs == ()


def test_single_bands_of_three_resolutions_are_one_scene(tmp_path):
    """As in a .SAFE folder: found by name, coarser ones repeated; the grid is that of the 10 m bands."""
    s2, _ = scene_arrays(180, 240)
    expected = s2.copy()
    for number, band in enumerate(S2_BANDS):
        factor = {"B2": 1, "B3": 1, "B4": 1, "B8": 1, "B1": 6, "B9": 6, "B10": 6}.get(band, 2)
        coarse = s2[number, ::factor, ::factor]
        expected[number] = coarse.repeat(factor, 0).repeat(factor, 1)
        name = f"T32UNF_20180502T102031_{'B8A' if band == 'B8A' else f'B{int(band[1:]):02d}'}.tif"
        at = Affine(10 * factor, 0, AT.c, 0, -10 * factor, AT.f)
        write(tmp_path / "x.SAFE" / "GRANULE" / "L1C" / "IMG_DATA" / name, coarse[None], transform=at)
    write(tmp_path / "x.SAFE" / "GRANULE" / "L1C" / "IMG_DATA" / "T32UNF_20180502T102031_TCI.tif", s2[1:4])
    with open_scene(tmp_path / "x.SAFE") as scene:
        assert (scene.grid.transform, scene.grid.shape) == (AT, (180, 240))
        assert not scene.has_s1
        seen = scene.read(slice(31, 180), slice(0, 97))
    np.testing.assert_array_equal(seen.s2, expected[:, 31:180, :97])
    (tmp_path / "x.SAFE/GRANULE/L1C/IMG_DATA/T32UNF_20180502T102031_B10.tif").unlink()
    said = r"found no B10, expected B01 to B12.*L2A has no B10"
    with pytest.raises(DataError, match=said), open_scene(tmp_path / "x.SAFE"):
        pass


def test_the_offset_of_newer_products_is_found_and_taken_off(files):
    """Found in B10 of the whole; zeros stay no data and do not hide it."""
    s2_path, _, s2, _ = files
    newer = s2 + np.uint16(1000)
    newer[:, :40] = 0
    write(s2_path, newer)
    with open_scene(s2_path) as scene:
        assert scene.repairs == ("s2: offset of +1000 taken off all bands",)
        seen = scene.read(*ALL)
    assert not seen.valid[:40].any()
    np.testing.assert_array_equal(seen.s2[:, 40:], s2[:, 40:])
    assert (seen.s2[:, :40] == 0).all()


def test_no_data_clouds_and_what_one_sensor_missed_are_not_seen(files, tmp_path):
    """Zeros and fill values of S2, NaN and zeros of S1, a mask, a scene classification of 20 m."""
    s2_path, s1_path, s2, s1 = files
    s2[:, 0], s2[5, 1], s2[11, 2] = 0, 65535, 0  # the last: calm water may be 0 at 1.6 micrometres
    s1[0, 3], s1[:, 4] = np.nan, 0
    write(s2_path, s2)
    write(s1_path, s1)
    clouds, scl = np.zeros((1, 150, 200), np.uint8), np.full((1, 75, 100), 4, np.uint8)
    clouds[0, 5], scl[0, 10], scl[0, 11], scl[0, 12] = 1, 9, 5, 3
    write(tmp_path / "clouds.tif", clouds)
    write(tmp_path / "scl.tif", scl, transform=Affine(20, 0, AT.c, 0, -20, AT.f))
    with open_scene(s2_path, s1_path, clouds=tmp_path / "clouds.tif", scl=tmp_path / "scl.tif") as scene:
        seen = scene.read(*ALL)
    hidden = [0, 1, 3, 4, 5, 20, 21, 24, 25]
    np.testing.assert_array_equal(np.flatnonzero(~seen.valid.any(axis=1)), hidden)
    np.testing.assert_array_equal(np.flatnonzero(~seen.valid.all(axis=1)), hidden)
    assert (seen.s2[:, hidden] == 0).all()
    assert (seen.s1[:, hidden] == 0).all()


def test_radar_of_another_projection_comes_to_its_place(files, tmp_path):
    """S1 in degrees, over a part: a smooth field comes back within 0.1 dB, the rest is not seen."""
    s2_path, _, _, _ = files
    row, col = np.mgrid[:150, :200]
    smooth = np.stack([-10 - row / 30, -18 + col / 40]).astype(np.float32)
    there = rasterio.Affine(0.00008, 0, 9.82, 0, -0.00008, 57.235)
    warped = np.full((2, 400, 500), np.nan, np.float32)
    reproject(
        smooth, warped, src_transform=AT, src_crs=UTM, dst_transform=there, dst_crs="EPSG:4326",
        src_nodata=np.nan, dst_nodata=np.nan, resampling=Resampling.bilinear,
    )  # fmt: skip
    known = np.isfinite(warped[0])
    assert known.any()
    write(tmp_path / "s1.tif", warped, crs="EPSG:4326", transform=there, nodata=np.nan)
    with open_scene(s2_path, tmp_path / "s1.tif") as scene:
        seen = scene.read(*ALL)
    inner = seen.valid.copy()
    inner[:3] = inner[-3:] = inner[:, :3] = inner[:, -3:] = False
    assert 0.2 < inner.mean() <= 1
    np.testing.assert_allclose(seen.s1[:, inner], smooth[:, inner], atol=0.1)


def test_sentinel_2_in_degrees_gets_a_grid_of_its_utm_zone(tmp_path):
    """10 m pixels on round coordinates; what the warp leaves open is not seen."""
    s2, _ = scene_arrays()
    write(tmp_path / "s2.tif", s2, crs="EPSG:4326", transform=Affine(0.0001, 0, -9.3, 0, -0.0001, -33.5))
    with open_scene(tmp_path / "s2.tif") as scene:
        grid = scene.grid
        seen = scene.read(slice(0, grid.shape[0]), slice(0, grid.shape[1]))
    assert grid.crs == "EPSG:32729"
    assert (grid.transform.a, grid.transform.e) == (10, -10)
    assert grid.transform.c % 10 == grid.transform.f % 10 == 0
    assert 0.8 < seen.valid.mean() <= 1
    assert set(np.unique(seen.s2[3][seen.valid])) <= set(np.unique(s2[3]))


def bend(s2, s1, how):
    """The same arrays, spoilt in one way; the file that is to blame; what is said."""
    t = Affine(10, 0, 999892.697, 0, -10, 6344077.614)
    north = {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 5, 0, -1e-4, 89)}
    return {
        "12 bands": (s2[:12], s1, {}, {}, "s2.tif: found 12 bands.*L2A"),
        "floats": (s2 / np.float32(1e4), s1, {}, {}, "s2.tif: found dtype float32, expected uint16 or int16"),
        "dark": (s2 // 40, s1, {}, {}, "s2.tif: found values from .*not all below 256"),
        "order": (s2[[10, *range(10), 0, 12]], s1, {}, {}, "band 11 brighter than band 1"),
        "one band of radar": (s2, s1[:1], {}, {}, "s1.tif: found 1 bands, expected 2: VV and VH in dB"),
        "power": (s2, 10 ** (s1 / 10), {}, {}, r"s1.tif: found VV from 0\.0.*10 log10"),
        "swapped": (s2, s1[::-1], {}, {}, r"s1.tif: found VH \d\.\d dB above VV"),
        "nothing": (s2 * 0, s1, {}, {}, "found no pixel with data"),
        "elsewhere": (s2, s1, {}, {"transform": t}, "s1.tif: found EPSG:32632 within 999893.*away from the scene"),
        "no place": (s2, s1, {}, {"crs": None, "transform": None}, "s1.tif: found no georeference"),
        "tiny": (s2[:, :20], s1[:, :20], {}, {}, r"s2.tif: found \(20, 200\) pixels"),
        "pole": (s2, s1, north, {}, "s2.tif: found a centre at 5"),
    }[how]  # fmt: skip


HOW = ("12 bands", "floats", "dark", "order", "one band of radar", "power", "swapped", "nothing", "elsewhere",
       "no place", "tiny", "pole")  # fmt: skip


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("how", HOW)
def test_a_scene_that_is_none_is_refused_by_name(how, files):
    """One clear error that names the file, before anything is mapped."""
    s2_path, s1_path, s2, s1 = files
    s2, s1, place2, place1, said = bend(s2, s1, how)
    write(s2_path, s2, **place2)
    write(s1_path, s1, **place1)
    with pytest.raises((DataError, GridError), match=said), open_scene(s2_path, s1_path):
        pass


def test_damaged_and_missing_files_are_named(files, tmp_path):
    """Cut in the middle, cut in the head, no raster, not there."""
    s2_path, s1_path, _, _ = files
    half = tmp_path / "half.tif"
    half.write_bytes(s2_path.read_bytes()[: s2_path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"half\.tif: found a file that cannot be read"), open_scene(half):
        pass
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(DataError, match=r"text\.tif"), open_scene(s2_path, tmp_path / "text.tif"):
        pass
    with pytest.raises(MissingDataError, match="no such file"), open_scene(tmp_path / "none.tif"):
        pass
    with pytest.raises(DataError, match="expected one band of codes"), open_scene(s2_path, clouds=s1_path):
        pass


@pytest.mark.filterwarnings("error")
def test_without_any_georeference_a_scene_is_pixels(tmp_path):
    """As the patches of DFC2020: nothing is invented, nothing warns."""
    s2, s1 = scene_arrays(64, 64)
    for name, array in (("s2.tif", s2), ("s1.tif", s1)):
        with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
            write(tmp_path / name, array, crs=None, transform=None)
    with open_scene(tmp_path / "s2.tif", tmp_path / "s1.tif") as scene:
        assert (scene.grid.crs, scene.grid.transform) == (None, None)
        np.testing.assert_array_equal(scene.read(slice(0, 64), slice(0, 64)).s2, s2)
