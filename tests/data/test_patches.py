"""The kept index is never stale, and what SEN12MS should hold is held against what is there."""

import errno
import os
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import file_of, write_patch

from lcfuse_core._runtime import SHIPPED
from lcfuse_core.data import files, official, patches, scenes
from lcfuse_core.errors import DataError, MissingDataError

SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")


def touch(root, season="ROIs1158_spring", scene="1", patch=1, kinds=("s1", "s2", "lc")):
    """Empty files: only names are looked at."""
    for kind in kinds:
        path = Path(root) / season / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{patch}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return path


def age(root, seconds=60):
    """Make all folders look as if nothing had happened in them for that long."""
    then = time.time_ns() - seconds * 10**9
    for folder, _, _ in os.walk(root):
        os.utime(folder, ns=(then, then))


def assert_right(root, cache):
    """The kept index says what a fresh one says: rows, order, types, and what was odd."""
    kept, fresh = patches.index(root, cache), scenes.index(root)
    pd.testing.assert_frame_equal(kept, fresh)
    assert kept.attrs == fresh.attrs
    assert [type(value) for value in kept.iloc[0]] == [type(value) for value in fresh.iloc[0]]


@pytest.fixture
def counted(monkeypatch):
    """How often the folder has been listed."""
    calls, listing = [], scenes.index
    monkeypatch.setattr(scenes, "index", lambda *given, **named: calls.append(given) or listing(*given, **named))
    return calls


def test_a_kept_index_is_the_same_as_a_fresh_one(tmp_path, counted):
    """All three layouts, missing files, odd names and second copies; and the folder is listed once."""
    root, cache = tmp_path / "data", tmp_path / "cache"
    for layout in ("sen12ms", "validation", "test", "bundle"):
        write_patch(root, layout, 7, kinds=("s1", "s2"))
    touch(root, patch=9, kinds=("lc",))
    touch(root / "again", patch=9, kinds=("lc",))
    (root / "mosaic.tif").touch()
    age(root)
    first = patches.index(root, cache)
    second = patches.index(root, cache)
    assert len(counted) == 1
    pd.testing.assert_frame_equal(first, second)
    assert first.attrs == second.attrs
    assert len(first.attrs["odd"]) == 2
    assert_right(root, cache)


def changes(root):
    """Everything that changes what an index says, by name."""
    path = touch(root, patch=2)
    return {
        "a patch more": lambda: touch(root, patch=3),
        "a file gone": path.unlink,
        "a file renamed": lambda: path.rename(path.with_name("mosaic.tif")),
        "a new scene": lambda: touch(root, scene="2"),
        "a new folder deep down": lambda: touch(root / "ROIs1158_spring" / "more", scene="3"),
        "a scene gone": lambda: shutil.rmtree(path.parent),
        "a folder renamed": lambda: path.parent.rename(path.parent.with_name("labels")),
        "regions told": lambda: (root / "world.json").write_text('{"regions": {"validation": {"1": "delta"}}}'),
        "regions told beside": lambda: (root.parent / "world.json").write_text('{"regions": {}}'),
    }


@pytest.mark.parametrize("change", ["a patch more", "a file gone", "a file renamed", "a new scene",
                                    "a new folder deep down", "a scene gone", "a folder renamed", "regions told",
                                    "regions told beside"])  # fmt: skip
def test_every_change_of_the_folder_is_noticed(tmp_path, change):
    """Also when it happens at once, and when clocks are coarse."""
    root, cache = tmp_path / "data", tmp_path / "cache"
    touch(root)
    write_patch(root, "validation", 1)
    happens = changes(root)[change]
    age(root)
    patches.index(root, cache)
    assert patches.kept_at(root, cache).exists()
    happens()
    assert_right(root, cache)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("+-~ "), st.integers(1, 3), st.integers(1, 3)), max_size=8))
def test_no_sequence_of_changes_makes_it_stale(tmp_path_factory, steps):
    """Files come and go, time passes or does not: each time the index is right."""
    root = tmp_path_factory.mktemp("data")
    cache = tmp_path_factory.mktemp("cache")
    touch(root, scene="9")
    for what, scene, patch in steps:
        if what == "+":
            touch(root, scene=str(scene), patch=patch)
        elif what == "-":
            for kind in ("s1", "lc"):
                file_of(root, "sen12ms", kind, patch, str(scene)).unlink(missing_ok=True)
        elif what == "~":
            age(root, seconds=60 + scene)
        assert_right(root, cache)


def test_a_folder_that_has_just_changed_is_listed_each_time(tmp_path, counted):
    """A file system may count time in steps of two seconds: what happens within one cannot be told apart."""
    touch(tmp_path / "data")
    for _ in range(3):
        patches.index(tmp_path / "data", tmp_path / "cache")
    assert len(counted) == 3
    age(tmp_path / "data", seconds=3)
    for _ in range(3):
        patches.index(tmp_path / "data", tmp_path / "cache")
    assert len(counted) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "not parquet", "another format", "without its record"])
def test_an_index_that_cannot_be_read_is_made_anew(tmp_path, monkeypatch, damage):
    """Half a file after a crash, or one of another version."""
    root, cache = tmp_path / "data", tmp_path / "cache"
    touch(root)
    age(root)
    patches.index(root, cache)
    path = patches.kept_at(root, cache)
    if damage == "another format":
        monkeypatch.setattr(patches, "FORMAT", patches.FORMAT + 1)
    elif damage == "without its record":
        patches.pq.write_table(patches.pq.read_table(path).replace_schema_metadata({}), path)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-20], "empty": b"", "not parquet": b"PAR1" * 99}[damage])
    assert_right(root, cache)


def test_each_root_has_its_own_index_by_whatever_path(tmp_path, monkeypatch, counted):
    """The same folder by a relative path: the same index, with paths as they were asked for."""
    for name in ("a", "b"):
        touch(tmp_path / name, scene=name.replace("a", "1").replace("b", "2"))
        age(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "a/", "./b", "a"):
        table = patches.index(name, tmp_path / "cache")
        assert Path(table["s1"][0]).resolve().is_relative_to(tmp_path / name)
        assert Path(table["s1"][0]).exists()
    assert len(counted) == 2
    assert patches.index(tmp_path / "a", tmp_path / "cache")["s1"][0].startswith(str(tmp_path))


def test_the_default_place_is_in_the_data_folder(tmp_path, monkeypatch):
    """Which LCFUSE_DATA names."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "here"))
    assert patches.kept_at("x").parent == tmp_path / "here" / "indexes"
    monkeypatch.delenv("LCFUSE_DATA")
    assert patches.kept_at("x").parent == Path("_data/indexes")


def test_an_index_that_cannot_be_kept_is_told_and_works(tmp_path, monkeypatch):
    """A full disk costs time, not the result."""
    touch(tmp_path / "data")
    age(tmp_path / "data")

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(patches.pq, "write_table", fail)
    with pytest.warns(UserWarning, match=r"is not kept in .*No space left"):
        table = patches.index(tmp_path / "data", tmp_path / "cache")
    assert len(table) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_folder_is_an_error_even_when_its_index_was_kept(tmp_path):
    """A disk that was taken away."""
    touch(tmp_path / "data")
    age(tmp_path / "data")
    patches.index(tmp_path / "data", tmp_path / "cache")
    (tmp_path / "data").rename(tmp_path / "away")
    with pytest.raises(MissingDataError, match="no such folder"):
        patches.index(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("workers", [1, 2])
def test_inspection_reads_every_patch_and_names_the_damaged(tmp_path, workers):
    """In one process or two: the same report, in the order of the index."""
    for patch in range(1, 131):
        touch(tmp_path, patch=patch)
    write_patch(tmp_path, patch=70)
    report = patches.inspect(scenes.index(tmp_path), workers=workers)
    assert report.n_read == 1
    assert [name for name, _ in report.skipped] == [f"ROIs1158_spring_1_p{k}" for k in range(1, 131) if k != 70]


# What SEN12MS should hold -------------------------------------------------------------------------


def test_published_numbers_agree_with_each_other():
    """26 hold-out scenes hold what the test list holds; both lists hold all but the damaged patch."""
    facts = official.sen12ms()
    assert (facts.n_triplets, facts.n_scenes, len(facts.hold_out)) == (180_662, 252, 26)
    assert sum(facts.hold_out.values()) == facts.lists["test"][1] == 18_106
    assert facts.lists["train"][1] == 162_555
    assert sum(n for _, n in facts.lists.values()) + len(facts.defects) == facts.n_triplets
    assert facts.hold_out["ROIs1868_summer_104"] == min(facts.hold_out.values()) == 205
    assert {name.rsplit("_", 1)[0] for name in facts.hold_out} == set(SEASONS)


def test_defects_are_those_that_reading_knows():
    """`layers` names the file, the list the patch."""
    known = {name.replace("_s1_", "_").removesuffix(".tif") for name in files.KNOWN_BAD}
    assert known == set(official.sen12ms().defects)


def small_facts(monkeypatch, train=5, test=3):
    """A published set of 9 patches: scenes spring 1 and 2 and the damaged one to train, winter 32 held out."""
    facts = official.Official(
        9, 4, {"train": ("train_list.txt", train), "test": ("test_list.txt", test)}, {"ROIs2017_winter_32": 3},
        {"ROIs1868_summer_146_p202": "NaN in S1"},
    )  # fmt: skip
    monkeypatch.setattr(official, "sen12ms", lambda: facts)
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
    assert official.read_lists(tmp_path) is None
    write_lists(tmp_path)
    lists = official.read_lists(tmp_path)
    assert lists["list"].tolist() == ["train"] * 5 + ["test"] * 3
    assert lists["name"].tolist()[0] == "ROIs1158_spring_1_p1"
    write_lists(tmp_path, [line.replace("_s2", "").removesuffix(".tif") for line in TRAIN])
    pd.testing.assert_frame_equal(official.read_lists(tmp_path), lists)


@pytest.mark.parametrize(
    ("train", "test", "found"),
    [
        (TRAIN[:-1], TEST, "4 names, expected 5 names"),
        ([*TRAIN[:-1], TRAIN[0]], TEST, "4 names, expected 5 names"),
        ([*TRAIN[:-1], "<!DOCTYPE html>"], TEST, "train_list.txt, line 5: found '<!DOCTYPE html>'"),
        ([*TRAIN[:-1], "ROIs2017_winter_s2_32_p4.tif"], TEST, "ROIs2017_winter_32 in the wrong list"),
        (TRAIN, [*TEST[:-1], "ROIs1158_spring_s2_2_p3.tif"], "ROIs1158_spring_2 in the wrong list"),
    ],
)
def test_a_list_that_is_not_the_official_one_is_refused(tmp_path, monkeypatch, train, test, found):
    """Too short, a line twice, a web page, a scene in the wrong list: a split with it would leak."""
    small_facts(monkeypatch)
    write_lists(tmp_path, train, test)
    with pytest.raises(DataError) as caught:
        official.read_lists(tmp_path)
    assert found in str(caught.value)


def test_one_list_without_the_other_is_refused(tmp_path, monkeypatch):
    """Half a split is none."""
    small_facts(monkeypatch)
    write_lists(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"only train_list\.txt"):
        official.read_lists(tmp_path)


def test_known_defects_are_left_out_and_named(tmp_path):
    """Beside what is incomplete; nothing disappears without a word."""
    touch(tmp_path, "ROIs1868_summer", "146", 201)
    touch(tmp_path, "ROIs1868_summer", "146", 202)
    touch(tmp_path, "ROIs1868_summer", "146", 203, kinds=("s1", "s2"))
    table, left_out = official.usable(scenes.index(tmp_path))
    assert table["patch"].tolist() == [201]
    assert left_out.values.tolist() == [
        ["ROIs1868_summer_146_p203", "has no lc"],
        ["ROIs1868_summer_146_p202", "published damaged: NaN in S1"],
    ]
    assert len(official.usable(scenes.index(tmp_path), ("s1", "s2"))[0]) == 2


def test_the_official_split_is_by_scene(tmp_path):
    """Winter 32 is held out, spring 32 is not."""
    for season in ("ROIs1158_spring", "ROIs2017_winter"):
        touch(tmp_path, season, "32")
    train, held = official.split(scenes.index(tmp_path))
    assert train["scene_id"].tolist() == ["ROIs1158_spring_32"]
    assert held["scene_id"].tolist() == ["ROIs2017_winter_32"]


def write_some(root):
    """Of the nine: spring 1 whole, of spring 2 one file of one patch, the damaged one, of winter 32 two patches."""
    for patch in (1, 2, 3):
        touch(root, patch=patch)
    touch(root, scene="2", patch=1, kinds=("s1",))
    touch(root, "ROIs1868_summer", "146", 202)
    for patch in (1, 2):
        touch(root, "ROIs2017_winter", "32", patch)
    return scenes.index(root)


def test_status_counts_what_is_there_of_each_scene(tmp_path, monkeypatch):
    """Without lists only the hold-out scenes are known; what is not known is not claimed."""
    small_facts(monkeypatch)
    table = official.status(write_some(tmp_path), wanted=["ROIs1158_spring_10"])
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
    lists = official.read_lists(tmp_path)
    table = official.status(write_some(tmp_path / "data"), lists=lists)
    assert table["state"].to_dict() == {
        "ROIs1158_spring_1": "complete",
        "ROIs1158_spring_2": "incomplete",
        "ROIs1868_summer_146": "unknown",
        "ROIs2017_winter_32": "incomplete",
    }
    assert table.loc["ROIs1158_spring_2", ["expected", "incomplete", "missing"]].tolist() == [2, 1, 1]
    only_one = official.status(scenes.index(tmp_path / "data" / "ROIs2017_winter"), lists=lists)
    assert only_one["state"].tolist() == ["missing", "missing", "incomplete"]
    assert only_one["missing"].tolist() == [3, 2, 1]
    assert official.differences(scenes.index(tmp_path / "data"), lists) == [
        "2 patches of the lists not here: ROIs1158_spring_2_p2, ROIs2017_winter_32_p3",
        "ROIs1868_summer_146_p202 here in no list: published damaged (NaN in S1)",
    ]
    touch(tmp_path / "data", "ROIs2017_winter", "32", 3)
    touch(tmp_path / "data", scene="2", patch=2)
    whole = scenes.index(tmp_path / "data")
    assert official.differences(whole, lists) == [
        "ROIs1868_summer_146_p202 here in no list: published damaged (NaN in S1)"
    ]
    for patch in range(4, 9):
        touch(tmp_path / "data", patch=patch)
    strange = official.differences(scenes.index(tmp_path / "data"), lists)[0]
    assert strange == (
        "5 patches here in no list: ROIs1158_spring_1_p4, ROIs1158_spring_1_p5, ROIs1158_spring_1_p6, ..."
    )


def test_status_names_damage_that_reading_found(tmp_path):
    """With the report of an inspection; the defect that is published is not counted as damage."""
    write_patch(tmp_path, patch=1)
    write_patch(tmp_path, patch=2)["lc"].write_bytes(b"no image")
    touch(tmp_path, "ROIs1868_summer", "146", 202)
    table = scenes.index(tmp_path)
    found = official.status(table, report=patches.inspect(table))
    assert found["damaged"].tolist() == [1, 0]
    assert found["complete"].tolist() == [1, 0]
    assert found["state"].tolist() == ["damaged", "unknown"]


def test_shipped_facts_name_the_lists_with_the_checksums_of_the_manifest():
    """As torchgeo lists them; the test list's was computed again."""
    text = (SHIPPED / "sen12ms.yaml").read_text()
    lists = yaml.safe_load(text)["lists"]
    assert lists["train"]["md5"] == "0a68d4e1eb24f128fccdb930000b2546"
    assert lists["test"]["md5"] == "c7faad064001e646445c4c634169484d"


@pytest.mark.slow
def test_the_whole_of_sen12ms_is_indexed_in_little_memory(tmp_path):
    """A few of its names here, all of them in `benchmarks/indexing.py`: listed, kept, checked and split."""
    import indexing

    n = int(os.environ.get("LCFUSE_TRIPLETS", "10000"))
    figures = indexing.measure(tmp_path, n, ["index, first time", "index, status and split"])["steps"]
    assert len(figures) == 2
    assert all(step["MB"] < 500 for step in figures.values()), figures
