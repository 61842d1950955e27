"""Patches: every layout is found and read to the last pixel, and what is left out is listed with its reason."""

import json
import os
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miniatures import (
    KINDS,
    PLACE,
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

from lcfuse_core.data import patches
from lcfuse_core.download import official
from lcfuse_core.errors import DataError, MissingDataError, ParameterError

SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")
LAYOUTS = {
    "sen12ms": ("sen12ms", "train", "ROIs1158_spring", "1", "ROIs1158_spring_1"),
    "validation": ("dfc2020-phase", "validation", "ROIs0000_validation", "0", "validation_0"),
    "test": ("dfc2020-phase", "test", "ROIs0000_test", "0", "test_0"),
    "bundle": ("dfc2020-bundle", "", "ROIs0000_autumn", "CapeTown", "CapeTown"),
}


def touch(root, season="ROIs1158_spring", scene="1", patch=1, kinds=("s1", "s2", "lc")):
    """Empty files: only names are looked at."""
    for kind in kinds:
        path = root / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{patch}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_known_by_its_names_and_read_to_the_last_pixel(tmp_path, layout):
    """Wherever the files lie. The phase archives have no georeference, and no identity stands in for it."""
    paths = write_patch(tmp_path / "wrapped/in/folders", layout, patch=7)
    (row,) = patches.index(tmp_path).itertuples()
    assert (row.layout, row.split, row.season, row.scene, row.scene_id) == LAYOUTS[layout]
    assert patches.patch_name(row) == f"{row.season}_{row.scene}_p7"
    assert [getattr(row, kind) for kind in KINDS] == [str(paths[kind]) if kind in paths else None for kind in KINDS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch = patches.read_patch(row)
    expected = {"s1": s1_array(number=7), "s2": s2_array(), "lc": lc_array(), "dfc": dfc_array()[0]}
    for kind in paths:
        np.testing.assert_array_equal(getattr(patch, kind), expected[kind], strict=True)
    assert (patch.dfc is None, patch.repairs) == (layout == "sen12ms", ())
    assert (patch.crs, patch.transform) == ((None, None) if "phase" in row.layout else (UTM, PLACE))


def test_rows_are_sorted_by_number(tmp_path):
    """Scene 9 before scene 10, patch 2 before patch 11; layouts do not mix; a flat folder is as good."""
    for scene, patch in (("10", 1), ("9", 11), ("9", 2)):
        touch(tmp_path, scene=scene, patch=patch)
    (tmp_path / "ROIs0000_validation_s1_0_p1.tif").touch()
    table = patches.index(tmp_path)
    assert table[["scene", "patch"]].values.tolist() == [["0", 1], ["9", 2], ["9", 11], ["10", 1]]


def test_regions_of_the_sample_world_keep_phase_patches_together(tmp_path):
    """The archives do not tell regions; world.json beside them does."""
    for split, patch in (("validation", 1), ("test", 1), ("test", 2)):
        write_patch(tmp_path / "dfc2020", split, patch)
    regions = {"validation": {"1": "delta"}, "test": {"1": "steppe"}}
    (tmp_path / "world.json").write_text(json.dumps({"seed": 1, "regions": regions}))
    table = patches.index(tmp_path / "dfc2020")
    assert table["scene_id"].tolist() == ["steppe", "test_0", "delta"]
    (tmp_path / "world.json").write_text('{"seed": 1}')  # regions must not silently fall back to one
    with pytest.raises(DataError, match=r"world\.json: found no readable `regions`"):
        patches.index(tmp_path / "dfc2020")


def test_complete_and_incomplete_part_the_index(tmp_path):
    """Every row is in one of them, and the reason names what is missing."""
    touch(tmp_path, patch=1)
    touch(tmp_path, patch=2, kinds=("s1",))
    touch(tmp_path, patch=3, kinds=("s1", "s2"))
    table = patches.index(tmp_path)
    assert patches.complete(table)["patch"].tolist() == [1]
    assert patches.incomplete(table).values.tolist() == [
        ["ROIs1158_spring_1_p2", "has no s2, lc"],
        ["ROIs1158_spring_1_p3", "has no lc"],
    ]
    assert patches.complete(table, ("s1", "s2"))["patch"].tolist() == [1, 3]
    with pytest.raises(ParameterError, match="s3"):
        patches.complete(table, ("s3",))


def test_truth_is_joined_by_season_scene_and_patch(tmp_path):
    """A patch without truth stays without; the index handed in is not changed."""
    for patch in (1, 2):
        write_patch(tmp_path / "sen12ms", patch=patch)
    paths = write_patch(tmp_path / "truth", "truth", patch=2)
    write_patch(tmp_path / "truth", "truth", patch=1, scene="99")
    table = patches.index(tmp_path / "sen12ms")
    joined = patches.with_truth(table, tmp_path / "truth")
    assert joined["dfc"].tolist() == [None, str(paths["dfc"])]
    assert table["dfc"].tolist() == [None, None]
    np.testing.assert_array_equal(patches.read_patch(joined.iloc[1]).dfc, dfc_array()[0])
    with pytest.raises(MissingDataError, match=r"truth: found no dfc file of any patch in the index"):
        patches.with_truth(table[table["patch"] == 1], tmp_path / "truth")


@pytest.fixture(scope="module")
def seven_scenes(tmp_path_factory):
    """Index of seven scenes of three patches."""
    root = tmp_path_factory.mktemp("scenes")
    for scene in range(7):
        for patch in range(3):
            touch(root, scene=str(scene), patch=patch)
    return patches.index(root)


@settings(max_examples=40)
@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_split_never_parts_a_scene(seven_scenes, fraction, seed):
    """Both sides hold scenes, none is on both, no patch is lost, and the share is about what was asked."""
    train, held = patches.split_by_scene(seven_scenes, fraction, seed)
    assert not set(train["scene_id"]) & set(held["scene_id"])
    assert sorted([*train["lc"], *held["lc"]]) == sorted(seven_scenes["lc"])
    n_held = held["scene_id"].nunique()
    assert 1 <= n_held <= 6
    assert abs(n_held - 7 * fraction) <= 1
    assert patches.split_by_scene(seven_scenes, fraction, seed)[1].equals(held)


def test_a_split_depends_on_the_seed_and_leaves_no_side_empty(seven_scenes):
    """Over a few seeds every scene is held out at some time."""
    held = [patches.split_by_scene(seven_scenes, 0.3, seed)[1] for seed in range(20)]
    assert {scene for table in held for scene in table["scene_id"]} == set(seven_scenes["scene_id"])
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(ParameterError, match=f"fraction {fraction} of 7 scene"):
            patches.split_by_scene(seven_scenes, fraction, 0)
    with pytest.raises(ParameterError, match=r"of 1 scene\(s\), expected .* two scenes"):
        patches.split_by_scene(seven_scenes[seven_scenes["scene"] == "3"], 0.5, 0)


def test_only_what_is_needed_is_opened(tmp_path):
    """Training on coarse labels never touches the reference, not even a damaged one."""
    paths = write_patch(tmp_path, "test")
    paths["dfc"].write_bytes(b"")
    row = patches.index(tmp_path).iloc[0]
    patch = patches.read_patch(row, ("s1", "s2", "lc"))
    assert patch.dfc is None
    assert patch.lc is not None
    with pytest.raises(DataError, match="_dfc_"):
        patches.read_patch(row)


def test_reading_many_counts_what_it_skips_and_mends(tmp_path):
    """The rest is read in the order of the index; the report names patch, file and reason."""
    for patch in range(4):
        write_patch(tmp_path, patch=patch)
    file_of(tmp_path, "sen12ms", "s2", 1).write_bytes(b"II*\0")
    offset = np.maximum(s2_array(), 9) + np.uint16(1000)
    write_patch(tmp_path, patch=2, kinds=("s2",), s2=offset)
    read, report = patches.read_many(patches.index(tmp_path))
    assert [patch.name[-2:] for patch in read] == ["p0", "p2", "p3"]
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
        patches.read_many(patches.index(tmp_path))


@needs_semireal
def test_real_files_are_indexed_and_read_as_they_are():
    """
    Three places of 224 px in the layout of the bundle, float64 S1 and int16 S2, one with the offset.

    The pixel counts are those listed beside the data.
    """
    table = patches.index(SEMIREAL)
    assert table["scene_id"].tolist() == ["BrazilCoast", "Denmark", "Tanzania"]
    assert set(table["layout"]) == {"dfc2020-bundle"}
    assert patches.incomplete(table, KINDS).empty
    read, report = patches.read_many(table)
    for patch in read:
        assert (patch.s1.dtype, patch.s1.shape) == (np.float32, (2, 224, 224))
        assert (patch.s2.dtype, patch.s2.shape) == (np.uint16, (13, 224, 224))
        assert (patch.lc.dtype, patch.lc.shape) == (np.uint8, (4, 224, 224))
        assert patch.crs.is_projected
        assert patch.transform.a == -patch.transform.e == 10
        assert (patch.lc[1:] == 255).all()
    [(name, repair)], brazil = report.repaired, read[0].s2
    assert (report.n_read, name[-14:], "offset of +1000" in repair) == (3, "BrazilCoast_p0", True)
    assert (brazil[10].min(), brazil[10].max(), brazil[11].min()) == (4, 20, 22)
    counts = [dict(zip(*np.unique(patch.dfc, return_counts=True), strict=True)) for patch in read]
    assert counts == [
        {1: 18690, 4: 2179, 9: 3316, 10: 25991},
        {1: 1209, 4: 3788, 6: 44382, 7: 797},
        {4: 28533, 6: 21643},
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_inspection_reads_every_patch_and_names_the_damaged(tmp_path, workers):
    """In one process or two: the same report, in the order of the index."""
    for patch in range(1, 131):
        touch(tmp_path, patch=patch)
    write_patch(tmp_path, patch=70)
    report = patches.inspect(patches.index(tmp_path), workers=workers)
    assert report.n_read == 1
    assert [name for name, _ in report.skipped] == [f"ROIs1158_spring_1_p{k}" for k in range(1, 131) if k != 70]


def test_published_numbers_agree_with_each_other():
    """26 hold-out scenes hold what the test list holds; both lists hold all but the damaged patch."""
    facts = official.sen12ms()
    assert (facts.n_triplets, facts.n_scenes, len(facts.hold_out)) == (180_662, 252, 26)
    assert sum(facts.hold_out.values()) == facts.lists["test"][1] == 18_106
    assert facts.lists["train"][1] == 162_555
    assert sum(n for _, n in facts.lists.values()) + len(facts.defects) == facts.n_triplets
    assert facts.hold_out["ROIs1868_summer_104"] == min(facts.hold_out.values()) == 205
    assert {name.rsplit("_", 1)[0] for name in facts.hold_out} == set(SEASONS)


def small_facts(monkeypatch, train=5, test=3):
    """A published set of 9 patches: scenes spring 1 and 2 and the damaged one to train, winter 32 held out."""
    facts = official.Official(
        9, 4, {"train": ("train_list.txt", train), "test": ("test_list.txt", test)}, {"ROIs2017_winter_32": 3},
        {"ROIs1868_summer_146_p202": "NaN in S1"},
    )  # fmt: skip
    for module in (official, patches):
        monkeypatch.setattr(module, "sen12ms", lambda: facts)
    return facts


TRAIN = [f"ROIs1158_spring_s2_{scene}_p{patch}.tif" for scene, patch in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2))]
TEST = [f"ROIs2017_winter_s2_32_p{patch}.tif" for patch in (1, 2, 3)]


def write_lists(folder, train=TRAIN, test=TEST):
    """The official lists, shortened."""
    for name, lines in (("train", train), ("test", test)):
        (folder / f"{name}_list.txt").write_text("\n".join(lines) + "\n")


def test_lists_are_read_in_every_spelling(tmp_path, monkeypatch):
    """With or without kind and suffix; without lists there is nothing to read."""
    small_facts(monkeypatch)
    assert official.read_official_lists(tmp_path) is None
    write_lists(tmp_path)
    lists = official.read_official_lists(tmp_path)
    assert lists["list"].tolist() == ["train"] * 5 + ["test"] * 3
    assert lists["name"].tolist()[0] == "ROIs1158_spring_1_p1"
    write_lists(tmp_path, [line.replace("_s2", "").removesuffix(".tif") for line in TRAIN])
    pd.testing.assert_frame_equal(official.read_official_lists(tmp_path), lists)


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        (TRAIN[:-1], TEST, "4 patch names in 4 lines, expected 5 names"),
        ([*TRAIN[:-1], TRAIN[0]], TEST, "4 patch names in 5 lines"),
        ([*TRAIN[:-1], "<!DOCTYPE html>"], TEST, "4 patch names in 6 lines"),
        ([*TRAIN[:-1], "ROIs2017_winter_s2_32_p4.tif"], TEST, "ROIs2017_winter_32 in the wrong list"),
        (TRAIN, [*TEST[:-1], "ROIs1158_spring_s2_2_p3.tif"], "ROIs1158_spring_2 in the wrong list"),
    ],
)
def test_a_list_that_is_not_the_official_one_is_refused(tmp_path, monkeypatch, train, test, found):
    """Too short, a line twice, a web page, a scene in the wrong list: a split with it would leak."""
    small_facts(monkeypatch)
    write_lists(tmp_path, train, test)
    with pytest.raises(DataError) as caught:
        official.read_official_lists(tmp_path)
    assert found in str(caught.value)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"_list\.txt: found"):
        official.read_official_lists(tmp_path)


def test_known_defects_are_left_out_and_named(tmp_path):
    """Beside what is incomplete; nothing disappears without a word."""
    touch(tmp_path, "ROIs1868_summer", "146", 201)
    touch(tmp_path, "ROIs1868_summer", "146", 202)
    touch(tmp_path, "ROIs1868_summer", "146", 203, kinds=("s1", "s2"))
    table, left_out = patches.usable(patches.index(tmp_path))
    assert table["patch"].tolist() == [201]
    assert left_out.values.tolist() == [
        ["ROIs1868_summer_146_p203", "has no lc"],
        ["ROIs1868_summer_146_p202", "published damaged: NaN in S1"],
    ]
    assert len(patches.usable(patches.index(tmp_path), ("s1", "s2"))[0]) == 2


def write_some(root):
    """Of the nine: spring 1 whole, of spring 2 one file of one patch, the damaged one, of winter 32 two patches."""
    for patch in (1, 2, 3):
        touch(root, patch=patch)
    touch(root, scene="2", patch=1, kinds=("s1",))
    touch(root, "ROIs1868_summer", "146", 202)
    for patch in (1, 2):
        touch(root, "ROIs2017_winter", "32", patch)
    return patches.index(root)


def test_status_counts_what_is_there_of_each_scene(tmp_path, monkeypatch):
    """Without lists only the hold-out scenes are known; what is not known is not claimed."""
    small_facts(monkeypatch)
    table = patches.scene_status(write_some(tmp_path), wanted=["ROIs1158_spring_10"])
    columns = ["expected", "complete", "incomplete", "defective", "missing", "state"]
    assert table["held_out"].tolist() == [False, False, False, False, True]
    assert table[columns].astype(object).where(table[columns].notna(), None).reset_index().values.tolist() == [
        ["ROIs1158_spring_1", None, 3, 0, 0, None, "unknown"],
        ["ROIs1158_spring_2", None, 0, 1, 0, None, "incomplete"],
        ["ROIs1158_spring_10", None, 0, 0, 0, None, "missing"],
        ["ROIs1868_summer_146", None, 0, 0, 1, None, "unknown"],
        ["ROIs2017_winter_32", 3, 2, 0, 0, 1, "incomplete"],
    ]
    assert table["damaged"].isna().all()


def test_status_against_the_lists_knows_every_scene(tmp_path, monkeypatch):
    """Also those of which nothing is there; and the differences are told in words."""
    small_facts(monkeypatch)
    write_lists(tmp_path)
    lists = official.read_official_lists(tmp_path)
    table = patches.scene_status(write_some(tmp_path / "data"), lists=lists)
    assert table["state"].to_dict() == {
        "ROIs1158_spring_1": "complete",
        "ROIs1158_spring_2": "incomplete",
        "ROIs1868_summer_146": "unknown",
        "ROIs2017_winter_32": "incomplete",
    }
    assert table.loc["ROIs1158_spring_2", ["expected", "incomplete", "missing"]].tolist() == [2, 1, 1]
    only_one = patches.scene_status(patches.index(tmp_path / "data" / "ROIs2017_winter"), lists=lists)
    assert only_one["state"].tolist() == ["missing", "missing", "incomplete"]
    assert only_one["missing"].tolist() == [3, 2, 1]
    assert patches.official_differences(patches.index(tmp_path / "data"), lists) == [
        "2 patches of the lists not here: ROIs1158_spring_2_p2, ROIs2017_winter_32_p3",
        "ROIs1868_summer_146_p202 here in no list: published damaged (NaN in S1)",
    ]
    touch(tmp_path / "data", "ROIs2017_winter", "32", 3)
    touch(tmp_path / "data", scene="2", patch=2)
    whole = patches.index(tmp_path / "data")
    assert patches.official_differences(whole, lists) == [
        "ROIs1868_summer_146_p202 here in no list: published damaged (NaN in S1)"
    ]
    for patch in range(4, 9):
        touch(tmp_path / "data", patch=patch)
    strange = patches.official_differences(patches.index(tmp_path / "data"), lists)[0]
    assert strange == (
        "5 patches here in no list: ROIs1158_spring_1_p4, ROIs1158_spring_1_p5, ROIs1158_spring_1_p6, ..."
    )


def test_status_names_damage_that_reading_found(tmp_path):
    """With the report of an inspection; the defect that is published is not counted as damage."""
    write_patch(tmp_path, patch=1)
    write_patch(tmp_path, patch=2)["lc"].write_bytes(b"no image")
    touch(tmp_path, "ROIs1868_summer", "146", 202)
    table = patches.index(tmp_path)
    found = patches.scene_status(table, report=patches.inspect(table))
    assert found["damaged"].tolist() == [1, 0]
    assert found["complete"].tolist() == [1, 0]
    assert found["state"].tolist() == ["damaged", "unknown"]


@pytest.mark.slow
def test_the_whole_of_sen12ms_is_indexed_in_little_memory(tmp_path):
    """A few of its names here, all of them in `benchmarks/indexing.py`: listed and checked."""
    import indexing

    n = int(os.environ.get("LCFUSE_TRIPLETS", "10000"))
    figures = indexing.measure(tmp_path, n, ["index", "index and status"])["steps"]
    assert len(figures) == 2
    assert all(step["MB"] < 500 for step in figures.values()), figures
