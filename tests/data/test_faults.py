"""
Bad input: one clear error that names the file and the remedy, or a skip that is counted and reported.

Each fault is made in a miniature of the real files and met where a user meets it: at `scenes`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil
from affine import Affine
from miniatures import (
    dfc_array,
    file_of,
    lc_array,
    s1_array,
    s2_array,
    write_patch,
    write_tif,
)

from lcfuse_core.data import patches
from lcfuse_core.errors import DataError, GridError, LegendError, MissingDataError


def changed(array, value, band=0, row=5, col=7):
    """A copy of *array* with one pixel changed."""
    array = array.copy()
    array[band, row, col] = value
    return array


def larger(array):
    """One more column."""
    return np.concatenate([array, array[:, :, -1:]], axis=2)


# Name of the fault: (kind of file, its array, error, what is found, what is told to do)
ARRAY_FAULTS = {
    "missing band": ("s2", s2_array()[:12], DataError, "12 bands, expected 13", "again"),
    "missing polarisation": ("s1", s1_array()[:1], DataError, "1 bands, expected 2", "again"),
    "extra band": ("s2", np.concatenate([s2_array(), s2_array()[:1]]), DataError, "14 bands", "again"),
    "one MODIS layer only": ("lc", lc_array()[:1], DataError, "1 bands, expected 4", "again"),
    "patch too small": ("s2", s2_array()[:, :8, :8], DataError, "8 x 8 pixels", "published file"),
    "layer of another size": ("lc", larger(lc_array()), GridError, r"\(32, 49\) pixels", "one grid"),
    "S2 as float 0-1": ("s2", (s2_array() / 1e4).astype("float32"), DataError, "float32.*x 10000", "Convert"),
    "S2 as bytes": ("s2", (s2_array() // 256).astype("uint8"), DataError, "dtype uint8", "Convert"),
    "S2 of another scale": ("s2", s2_array() // 256, DataError, "0 to 123.*not all below", "Convert"),
    "S1 as integers": ("s1", s1_array().astype("int16"), DataError, "int16, expected float32", "Convert"),
    "labels as integers": ("lc", lc_array().astype("int16"), DataError, "int16, expected uint8", "Convert"),
    "NaN in S1": (
        "s1",
        changed(s1_array(), np.nan),
        DataError,
        "1 values that are NaN",
        "Leave the patch out",
    ),
    "infinity in S1": (
        "s1",
        changed(s1_array(), -np.inf, 1),
        DataError,
        "NaN or infinite",
        "Leave the patch",
    ),
    "S1 in linear power": ("s1", 10 ** (s1_array() / 10), DataError, "VV from", "10 log10"),
    "S1 far from any dB": ("s1", changed(s1_array(), -9999, 1), DataError, "VH from -9999", "linear"),
    "polarisations swapped": ("s1", s1_array()[::-1], DataError, "VH 40.0 dB above VV", "order VV, VH"),
    "bands of S2 swapped": (
        "s2",
        s2_array()[[10, *range(1, 10), 0, 11, 12]],
        DataError,
        "band 11 brighter than band 1",
        "file order",
    ),
    "no-data all over": ("s2", s2_array() * 0, DataError, "from 0 to 0", "leave it out"),
    "negative reflectance": ("s2", changed(s2_array("int16"), -1, 4), DataError, "from -1 to", "Leave|leave"),
    "fill value in S2": ("s2", changed(s2_array(), 65535, 12), DataError, "to 65535", "leave it out"),
    "unknown IGBP code": ("lc", changed(lc_array(), 18), LegendError, r"band 1 \(IGBP\): .* 18", "recode"),
    "unknown LCCS code": ("lc", changed(lc_array(), 33, 1), LegendError, r"band 2 \(LCCS.* 33", "recode"),
    "unknown DFC2020 code": ("dfc", changed(dfc_array(), 11), LegendError, r"DFC2020\): .* 11", "recode"),
}


@pytest.mark.parametrize("fault", ARRAY_FAULTS)
def test_wrong_content_is_refused_by_the_name_of_its_file(tmp_path, fault):
    """What was found, what was expected, what to do; and it is skipped, counted and named among others."""
    kind, array, error, found, remedy = ARRAY_FAULTS[fault]
    write_patch(tmp_path, "bundle", patch=1)
    write_patch(tmp_path, "bundle", patch=2, **{kind: array})
    table = patches.index(tmp_path)
    file = rf"ROIs0000_autumn_{kind}_CapeTown_p2\.tif"
    with pytest.raises(error, match=rf"{file}.*{found}") as caught:
        patches.read_patch(table.iloc[1])
    assert any(word in caught.value.do for word in remedy.split("|"))
    read, report = patches.read_many(table)
    assert [patch.name for patch in read] == ["ROIs0000_autumn_CapeTown_p1"]
    assert report.skipped == [("ROIs0000_autumn_CapeTown_p2", str(caught.value))]


@pytest.mark.parametrize(
    ("fault", "place"),
    {
        "another zone": {"crs": "EPSG:32633"},
        "another projection": {"crs": "EPSG:3857"},
        "a pixel aside": {"transform": Affine(10, 0, 500013.7, 0, -10, 5400007.2)},
        "another pixel size": {"transform": Affine(20, 0, 500003.7, 0, -20, 5400007.2)},
        "upside down": {"transform": Affine(10, 0, 500003.7, 0, 10, 5400007.2)},
    }.items(),
)
def test_a_layer_that_lies_elsewhere_is_refused(tmp_path, fault, place):
    """Layers of one size need not lie on one grid."""
    write_patch(tmp_path)
    write_tif(file_of(tmp_path, "sen12ms", "lc"), lc_array(), **place)
    with pytest.raises(GridError, match=r"_lc_1_p1\.tif: found .*EPSG.* as the layers before it\. Bring"):
        patches.read_patch(patches.index(tmp_path).iloc[0])


def test_a_layer_that_lies_centimetres_away_is_taken(tmp_path):
    """Rounded origins are no fault."""
    write_patch(tmp_path)
    near = Affine(10, 0, 500003.71, 0, -10, 5400007.2)
    write_tif(file_of(tmp_path, "sen12ms", "lc"), lc_array(), transform=near)
    assert patches.read_patch(patches.index(tmp_path).iloc[0]).transform.c == 500003.7


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
    expected = rf"{path.name}: found a damaged file of {len(content):,} bytes .* expected a whole GeoTIFF.*again"
    with pytest.raises(DataError, match=expected):
        patches.read_patch(patches.index(tmp_path).iloc[0])


def test_another_format_named_tif_is_refused(tmp_path):
    """Only TIFF is opened: a format that can point at other files is not."""
    paths = write_patch(tmp_path)
    rasterio.shutil.copy(paths["lc"], tmp_path / "lc.vrt", driver="VRT")
    paths["s2"].write_bytes((tmp_path / "lc.vrt").read_bytes())
    with pytest.raises(DataError, match=r"_s2_1_p1\.tif: found a damaged file"):
        patches.read_patch(patches.index(tmp_path).iloc[0])


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
    """A map can be drawn without them, a network cannot be trained."""
    write_patch(tmp_path, kinds=("s1", "s2"))
    row = patches.index(tmp_path).iloc[0]
    assert patches.read_patch(row).lc is None
    with pytest.raises(MissingDataError, match=r"ROIs1158_spring_1_p1: .*expected lc beside it.*patches\.complete"):
        patches.read_patch(row, ("s1", "s2", "lc"))


def test_a_file_that_vanished_since_the_index_is_named(tmp_path):
    """A disk taken away, a folder tidied."""
    paths = write_patch(tmp_path)
    table = patches.index(tmp_path)
    paths["lc"].unlink()
    with pytest.raises(MissingDataError, match=r"_lc_1_p1\.tif: found no such file, expected a lc file"):
        patches.read_patch(table.iloc[0])


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
    cloudy = np.maximum(s2_array(), 1000)
    write_patch(tmp_path, s2=changed(cloudy, 999, 10))
    patch = patches.read_patch(patches.index(tmp_path).iloc[0])
    assert patch.repairs == ()
    np.testing.assert_array_equal(patch.s2, changed(cloudy, 999, 10))


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


@pytest.mark.parametrize("make", ["nothing", "file"])
def test_a_root_that_is_no_folder_is_named(tmp_path, make):
    """Neither a typing error nor a file is an empty data set."""
    root = tmp_path / "data"
    if make == "file":
        root.write_text("")
    with pytest.raises(MissingDataError, match=r"data: found no such folder.* Check the path"):
        patches.index(root)


def test_a_folder_without_patches_says_what_to_do(tmp_path):
    """Archives that were never unpacked, for instance."""
    (tmp_path / "ROIs1158_spring_s2.tar.gz").write_bytes(b"")
    with pytest.raises(MissingDataError, match=r"no file named like a patch.*unpack the archives"):
        patches.index(tmp_path)


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
