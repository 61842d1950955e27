"""Scenes: every layout is found and read to the last pixel, and nothing odd goes unsaid."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import (
    COLS,
    KINDS,
    ROWS,
    SEMIREAL,
    UTM,
    dfc_array,
    file_of,
    lc_array,
    needs_semireal,
    s1_array,
    s2_array,
    write_patch,
)

from lcfuse_core.data import scenes
from lcfuse_core.errors import DataError, MissingDataError, ParameterError

LAYOUTS = {
    "sen12ms": ("sen12ms", "train", "ROIs1158_spring", "1", "ROIs1158_spring_1"),
    "validation": ("dfc2020-phase", "validation", "ROIs0000_validation", "0", "validation_0"),
    "test": ("dfc2020-phase", "test", "ROIs0000_test", "0", "test_0"),
    "bundle": ("dfc2020-bundle", "", "ROIs0000_autumn", "CapeTown", "CapeTown"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_known_by_its_names(tmp_path, layout):
    """Layout, split, season, scene, patch and the unit of splitting come from the name of the file."""
    paths = write_patch(tmp_path, layout, patch=7)
    (row,) = scenes.index(tmp_path).itertuples()
    assert (row.layout, row.split, row.season, row.scene, row.scene_id) == LAYOUTS[layout]
    assert row.patch == 7
    for kind in KINDS:
        assert getattr(row, kind) == (str(paths[kind]) if kind in paths else None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_to_the_last_pixel(tmp_path, layout):
    """Values, dtypes, band order and georeference are those of the files; no warning is let out."""
    write_patch(tmp_path, layout, patch=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch = scenes.read_patch(scenes.index(tmp_path).iloc[0])
    np.testing.assert_array_equal(patch.s1, s1_array(number=7), strict=True)
    np.testing.assert_array_equal(patch.s2, s2_array(), strict=True)
    np.testing.assert_array_equal(patch.lc, lc_array(), strict=True)
    assert patch.s1.shape == (2, ROWS, COLS)
    assert patch.repairs == ()
    if layout == "sen12ms":
        assert patch.dfc is None
    else:
        np.testing.assert_array_equal(patch.dfc, dfc_array()[0], strict=True)


def test_georeference_is_that_of_the_files_or_none(tmp_path):
    """UTM for SEN12MS; the phase archives of DFC2020 have none, and no identity stands in for it."""
    write_patch(tmp_path, "sen12ms")
    write_patch(tmp_path, "test")
    placed, unplaced = (scenes.read_patch(row) for row in reversed(list(scenes.index(tmp_path).itertuples())))
    assert (placed.crs, placed.transform[:6]) == (UTM, (10, 0, 500003.7, 0, -10, 5400007.2))
    assert (unplaced.crs, unplaced.transform) == (None, None)


def test_patch_is_named_like_its_files(tmp_path):
    """Without the kind: a message that names it can be searched for."""
    write_patch(tmp_path, "sen12ms", patch=30, scene="124")
    (row,) = scenes.index(tmp_path).itertuples()
    assert scenes.patch_name(row) == scenes.read_patch(row).name == "ROIs1158_spring_124_p30"


def test_rows_are_sorted_by_number_and_the_same_each_time(tmp_path):
    """Scene 9 before scene 10, patch 2 before patch 11; layouts do not mix."""
    for scene, patch in (("10", 1), ("9", 11), ("9", 2)):
        write_patch(tmp_path, "sen12ms", patch, scene, kinds=("s1",))
    write_patch(tmp_path, "validation", kinds=("s1",))
    table = scenes.index(tmp_path)
    assert list(zip(table["scene"], table["patch"], strict=True)) == [
        ("0", 1),
        ("9", 2),
        ("9", 11),
        ("10", 1),
    ]
    assert table.equals(scenes.index(tmp_path))


@pytest.mark.parametrize("folder", ["", "wrapped/in/folders"])
def test_folders_do_not_matter(tmp_path, folder):
    """Some archives are flat, some wrap a folder around."""
    for path in write_patch(tmp_path / "unpacked", "validation").values():
        target = tmp_path / "data" / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (row,) = scenes.index(tmp_path / "data").itertuples()
    assert None not in (row.s1, row.s2, row.lc, row.dfc)


def test_regions_of_the_sample_world_keep_phase_patches_together(tmp_path):
    """The archives do not tell regions; world.json beside them does."""
    for split, patch in (("validation", 1), ("test", 1), ("test", 2)):
        write_patch(tmp_path / "dfc2020", split, patch)
    regions = {"validation": {"1": "delta"}, "test": {"1": "steppe"}}
    (tmp_path / "world.json").write_text(json.dumps({"seed": 1, "regions": regions}))
    table = scenes.index(tmp_path / "dfc2020")
    assert table["scene_id"].tolist() == ["steppe", "test_0", "delta"]


def test_a_world_file_that_cannot_be_read_is_named(tmp_path):
    """Regions must not silently fall back to one."""
    write_patch(tmp_path, "validation")
    (tmp_path / "world.json").write_text('{"seed": 1}')
    with pytest.raises(DataError, match=r"world\.json: found no readable `regions`"):
        scenes.index(tmp_path)


def test_complete_and_incomplete_part_the_index(tmp_path):
    """Every row is in one of them, and the reason names what is missing."""
    write_patch(tmp_path, patch=1)
    write_patch(tmp_path, patch=2, kinds=("s1",))
    write_patch(tmp_path, patch=3, kinds=("s1", "s2"))
    table = scenes.index(tmp_path)
    assert scenes.complete(table)["patch"].tolist() == [1]
    assert scenes.incomplete(table).values.tolist() == [
        ["ROIs1158_spring_1_p2", "has no s2, lc"],
        ["ROIs1158_spring_1_p3", "has no lc"],
    ]
    assert scenes.complete(table, ("s1", "s2"))["patch"].tolist() == [1, 3]
    with pytest.raises(ParameterError, match="s3"):
        scenes.complete(table, ("s3",))


def test_truth_is_joined_by_season_scene_and_patch(tmp_path):
    """A patch without truth stays without; the index handed in is not changed."""
    for patch in (1, 2):
        write_patch(tmp_path / "sen12ms", patch=patch)
    paths = write_patch(tmp_path / "truth", "truth", patch=2)
    write_patch(tmp_path / "truth", "truth", patch=1, scene="99")
    table = scenes.index(tmp_path / "sen12ms")
    joined = scenes.with_truth(table, tmp_path / "truth")
    assert joined["dfc"].tolist() == [None, str(paths["dfc"])]
    assert table["dfc"].tolist() == [None, None]
    np.testing.assert_array_equal(scenes.read_patch(joined.iloc[1]).dfc, dfc_array()[0])


def test_truth_of_another_world_is_refused(tmp_path):
    """Not one patch in common: surely the wrong folder."""
    write_patch(tmp_path / "sen12ms", scene="1")
    write_patch(tmp_path / "truth", "truth", scene="2")
    with pytest.raises(MissingDataError, match=r"truth: found no dfc file of any patch in the index"):
        scenes.with_truth(scenes.index(tmp_path / "sen12ms"), tmp_path / "truth")


@pytest.fixture(scope="module")
def seven_scenes(tmp_path_factory):
    """Index of seven scenes of three patches."""
    root = tmp_path_factory.mktemp("scenes")
    for scene in range(7):
        for patch in range(3):
            write_patch(root, patch=patch, scene=str(scene), kinds=("lc",))
    return scenes.index(root)


@settings(max_examples=40)
@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_split_never_parts_a_scene(seven_scenes, fraction, seed):
    """Both sides hold scenes, none is on both, no patch is lost, and the share is about what was asked."""
    train, held = scenes.split_by_scene(seven_scenes, fraction, seed)
    assert not set(train["scene_id"]) & set(held["scene_id"])
    assert sorted([*train["lc"], *held["lc"]]) == sorted(seven_scenes["lc"])
    n_held = held["scene_id"].nunique()
    assert 1 <= n_held <= 6
    assert abs(n_held - 7 * fraction) <= 1
    assert scenes.split_by_scene(seven_scenes, fraction, seed)[1].equals(held)


def test_split_depends_on_the_seed(seven_scenes):
    """Over a few seeds every scene is held out at some time."""
    held = [scenes.split_by_scene(seven_scenes, 0.3, seed)[1] for seed in range(20)]
    assert {scene for table in held for scene in table["scene_id"]} == set(seven_scenes["scene_id"])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_that_leaves_one_side_empty_is_refused(seven_scenes, fraction):
    """Neither all nor nothing."""
    with pytest.raises(ParameterError, match=f"fraction {fraction} of 7 scene"):
        scenes.split_by_scene(seven_scenes, fraction, 0)


def test_one_scene_cannot_be_split(seven_scenes):
    """Its patches overlap: splitting them would leak."""
    with pytest.raises(ParameterError, match=r"of 1 scene\(s\), expected .* two scenes"):
        scenes.split_by_scene(seven_scenes[seven_scenes["scene"] == "3"], 0.5, 0)


def test_only_what_is_needed_is_opened(tmp_path):
    """Training on coarse labels never touches the reference, not even a damaged one."""
    paths = write_patch(tmp_path, "test")
    paths["dfc"].write_bytes(b"")
    row = scenes.index(tmp_path).iloc[0]
    patch = scenes.read_patch(row, ("s1", "s2", "lc"))
    assert patch.dfc is None
    assert patch.lc is not None
    with pytest.raises(DataError, match="_dfc_"):
        scenes.read_patch(row)


def test_reading_many_counts_what_it_skips_and_mends(tmp_path):
    """The rest is read in the order of the index; the report names patch, file and reason."""
    for patch in range(4):
        write_patch(tmp_path, patch=patch)
    file_of(tmp_path, "sen12ms", "s2", 1).write_bytes(b"II*\0")
    offset = np.maximum(s2_array(), 9) + np.uint16(1000)
    write_patch(tmp_path, patch=2, kinds=("s2",), s2=offset)
    patches, report = scenes.read_many(scenes.index(tmp_path))
    assert [patch.name[-2:] for patch in patches] == ["p0", "p2", "p3"]
    assert (report.n_read, len(report.skipped), len(report.repaired)) == (3, 1, 1)
    assert str(report).splitlines()[0] == "3 patches read (1 of them repaired), 1 skipped"
    assert "repaired ROIs1158_spring_1_p2: s2: offset of +1000" in str(report)
    name, reason = report.skipped[0]
    assert name == "ROIs1158_spring_1_p1"
    assert "ROIs1158_spring_s2_1_p1.tif: found a damaged file of 4 bytes" in reason


def test_when_nothing_can_be_read_the_first_reason_is_given(tmp_path):
    """An empty list would fail much later, and say less."""
    write_patch(tmp_path, kinds=("s1",))
    with pytest.raises(DataError, match=r"no readable patch among 1.*only .*_s1_1_p1\.tif, expected s2"):
        scenes.read_many(scenes.index(tmp_path))


@needs_semireal
def test_real_files_are_indexed_and_read_as_they_are():
    """Three places of 224 px in the layout of the bundle, float64 S1 and int16 S2, one with the offset."""
    table = scenes.index(SEMIREAL)
    assert table["scene_id"].tolist() == ["BrazilCoast", "Denmark", "Tanzania"]
    assert set(table["layout"]) == {"dfc2020-bundle"}
    assert scenes.incomplete(table, KINDS).empty
    patches, report = scenes.read_many(table)
    assert (report.n_read, report.skipped) == (3, [])
    for patch in patches:
        assert (patch.s1.dtype, patch.s1.shape) == (np.float32, (2, 224, 224))
        assert (patch.s2.dtype, patch.s2.shape) == (np.uint16, (13, 224, 224))
        assert (patch.lc.dtype, patch.lc.shape) == (np.uint8, (4, 224, 224))
        assert patch.crs.is_projected
        assert patch.transform.a == -patch.transform.e == 10
        assert (patch.lc[1:] == 255).all()


@needs_semireal
def test_the_offset_of_a_real_file_is_found_removed_and_reported():
    """BrazilCoast alone; its B10 had 1004..1020, its darkest value of B11 was 1022."""
    patches, report = scenes.read_many(scenes.index(SEMIREAL))
    assert report.repaired == [("ROIs0000_autumn_BrazilCoast_p0", "s2: offset of +1000 taken off all bands")]
    brazil, denmark, tanzania = (patch.s2 for patch in patches)
    assert (brazil[10].min(), brazil[10].max(), brazil[11].min()) == (4, 20, 22)
    assert (denmark[10].min(), tanzania[10].min()) == (8, 54)
    assert (denmark[0].max(), denmark[0].min()) == (1909, 1515)


@needs_semireal
def test_reference_of_real_files_has_the_documented_pixel_counts():
    """As listed beside the data."""
    patches, _ = scenes.read_many(scenes.index(SEMIREAL))
    counts = [dict(zip(*np.unique(patch.dfc, return_counts=True), strict=True)) for patch in patches]
    assert counts == [
        {1: 18690, 4: 2179, 9: 3316, 10: 25991},
        {1: 1209, 4: 3788, 6: 44382, 7: 797},
        {4: 28533, 6: 21643},
    ]
