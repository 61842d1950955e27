"""Packed scenes: every patch is returned bit for bit, every damage is found, and nothing is read by accident."""

import json
import re
import shutil
from pathlib import Path

import faults
import numpy as np
import pandas as pd
import pytest
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import (
    COLS,
    CORNER,
    ROWS,
    SIDE,
    UTM,
    WHOLE,
    pack_one,
    scene_arrays,
    write_patch,
    write_scene,
    write_tif,
)

from lcfuse_core import _runtime
from lcfuse_core.data import packed, packing, patches
from lcfuse_core.data.cells import modis_cells
from lcfuse_core.data.packed import PackedScene
from lcfuse_core.errors import DataError, DiskError, MissingDataError, ParameterError

NAME = "ROIs1158_spring_7"


def assert_same(first, second):
    """Two patches hold the same bits in the same place."""
    for kind in ("s1", "s2", "lc", "dfc"):
        one, other = getattr(first, kind), getattr(second, kind)
        assert (one is None) == (other is None)
        if one is not None:
            assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())
    assert (first.name, first.crs, first.transform) == (second.name, second.crs, second.transform)
    assert first.repairs == second.repairs


def assert_all_same(folder, table):
    """The patches in a folder of packed scenes are those of the files, in the same order."""
    packs = patches.index(folder)
    columns = ["layout", "split", "season", "scene", "patch", "scene_id"]
    pd.testing.assert_frame_equal(packs[columns], table[columns])
    for one, other in zip(packs.itertuples(), table.itertuples(), strict=True):
        assert_same(patches.read_patch(one), patches.read_patch(other))


def files_in(folder):
    """Names of the files of packed scenes in a folder, half-written ones included."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".packing")


# Nothing is lost ---------------------------------------------------------------------------------


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(WHOLE), min_size=1), st.integers(0, 9), st.booleans())
def test_every_patch_is_returned_bit_for_bit(tmp_path_factory, corners, seed, fine):
    """With gaps of any shape: pixels of all layers, name, CRS and transform are those that were read."""
    root = tmp_path_factory.mktemp("scene")
    kinds = ("s1", "s2", "lc", "dfc") if fine else ("s1", "s2", "lc")
    table = write_scene(root / "data", sorted(corners), kinds=kinds, **scene_arrays(seed=seed))
    scene = pack_one(root / "packs", table)
    assert len(scene.names) == len(table)
    assert_all_same(root / "packs", table)
    assert scene.verify() == []


def test_negative_zero_and_repairs_are_kept(tmp_path):
    arrays = scene_arrays()
    arrays["s1"][0, 3, 4], arrays["s1"][0, 3, 5] = -0.0, 0.0
    arrays["s2"] = arrays["s2"] + np.uint16(1000)
    table = write_scene(tmp_path / "data", **arrays)
    scene = pack_one(tmp_path / "packs", table)
    assert "1000" in patches.read_patch(table.iloc[0]).repairs[0]
    assert_all_same(tmp_path / "packs", table)
    assert np.signbit(scene.layer(scene.names[0], "s1").data[0, 3, 4:6]).tolist() == [True, False]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_window_is_that_part_of_the_scene(tmp_path, data):
    """Pixels and coarse cells, whatever tiles the window meets."""
    arrays, path = scene_arrays(), tmp_path / "packs" / f"{NAME}.json"
    if not path.exists():
        pack_one(path.parent, write_scene(tmp_path / "data"))
    scene = PackedScene(path)
    row, col = data.draw(st.integers(0, 79)), data.draw(st.integers(0, 63))
    rows, cols = data.draw(st.integers(1, 80 - row)), data.draw(st.integers(1, 64 - col))
    window = {name: np.empty((tiles.shape[1], rows, cols), tiles.dtype) for name, tiles in scene.layers.items()}
    scene.fill(window, row, col, rows, cols)
    arrays |= {"igbp": arrays["lc"][:1], "lccs": arrays["lc"][1:]}
    for name in ("s1", "s2", "igbp", "lccs"):
        np.testing.assert_array_equal(window[name], arrays[name][:, row : row + rows, col : col + cols])
    first = json.loads(path.read_text())["scene"]["cells"]
    cell_rows, cell_cols = modis_cells(CORNER @ Affine.translation(col, row), scene.crs, (rows, cols))
    expected = (cell_rows - first["row"]) * first["n_cols"] + cell_cols - first["col"]
    np.testing.assert_array_equal(window["cells"][0], expected)


def test_a_scene_stores_each_pixel_once_in_a_plain_npy_file(tmp_path):
    """However many patches hold it. The side of a tile is what patches share; large ones are halved."""
    scene = pack_one(tmp_path / "packs", write_scene(tmp_path / "data"))
    assert np.load(scene.path.with_suffix(".npy"))["s2"].shape == (5 * 4, 13, 16, 16)
    assert len(scene.names) == 12
    write_patch(tmp_path / "wide")
    scene = pack_one(tmp_path / "packs2", patches.index(tmp_path / "wide"))
    assert (scene.tile, scene.shape) == (16, (ROWS, COLS))
    table = write_scene(tmp_path / "large", [(0, 0)], side=320, **scene_arrays(320, 320))
    assert pack_one(tmp_path / "packs3", table).tile == 160


# What cannot be packed is refused -----------------------------------------------------------------


def refusal(table, out):
    """Why the only scene of a table is not packed."""
    [(_, why)] = packing.pack(table, out).refused
    assert files_in(out) == []
    return why


def test_patches_that_differ_where_they_overlap_are_refused_by_name(tmp_path):
    """One bit in one pixel, which the file alone does not show."""
    table = write_scene(tmp_path / "data")
    path = Path(table["s2"].iloc[4])
    content = bytearray(path.read_bytes())
    content[-2 * 13 * SIDE * 16] ^= 1
    path.write_bytes(content)
    patches.read_patch(table.iloc[4])
    why = refusal(table, tmp_path / "packs")
    assert why.startswith(f"{NAME}_p3")
    assert f" and {NAME}_p3" in why
    assert "found 1 different s2 values" in why


def test_a_damaged_patch_is_left_out_and_reported(tmp_path):
    """The tiles that no other patch covers are missing, and nothing reads them by accident."""
    table = write_scene(tmp_path / "data")
    Path(table["s1"].iloc[0]).write_bytes(b"no image")
    Path(table["lc"].iloc[11]).write_bytes(b"no image")
    report = packing.pack(table, tmp_path / "packs")
    assert [name[-3:] for name, _ in report.skipped] == ["p30", "p41"]
    scene = PackedScene(tmp_path / "packs" / f"{NAME}.json")
    assert len(scene.names) == report.n_read == 10
    for row, col in ((0, 0), (64, 48), (10, 3), (80, 0), (0, 64)):  # the last two lie outside
        with pytest.raises(ParameterError, match="that patches cover"):
            scene.fill({"s1": np.empty((2, 16, 16))}, row, col, 16, 16)
    scene.fill({"s1": np.empty((2, 64, 48))}, 0, 16, 64, 48)
    with pytest.raises(ParameterError, match="no such patch"):
        scene.window_of(f"{NAME}_p30")


@pytest.mark.parametrize(
    ("crs", "shift", "why"),
    [("EPSG:32633", 0, "p37.*the grid of its scene"), (UTM, 0.5, "the grid of its scene"), (UTM, 3, "share a step")],
)
def test_a_patch_off_the_grid_of_its_scene_is_named(tmp_path, crs, shift, why):
    """Another zone, half a pixel aside, between the places of the others: it cannot be joined with the others."""
    table, (row, col) = write_scene(tmp_path / "data"), WHOLE[7]
    corner = CORNER @ Affine.translation(col + shift, row)
    for kind in ("s1", "s2", "lc"):
        array = scene_arrays()[kind][:, row : row + SIDE, col : col + SIDE]
        write_tif(Path(table[kind].iloc[7]), array, crs, corner)
    assert re.search(why, refusal(table, tmp_path / "packs"))


def test_scenes_that_cannot_be_joined_are_refused(tmp_path):
    """Without georeference (phase archives of DFC2020), without a common step, or of damaged files alone."""
    write_patch(tmp_path / "phase", "validation")
    why = refusal(patches.index(tmp_path / "phase"), tmp_path / "packs")
    assert "no georeference" in why
    assert "train from patch files" in why
    odd = write_scene(tmp_path / "odd", [(0, 0), (5, 3)])
    assert "share a step of less than 16 pixels" in refusal(odd, tmp_path / "packs")
    table = write_scene(tmp_path / "data", WHOLE[:2])
    for path in table["s2"]:
        Path(path).write_bytes(b"")
    assert "no readable patch among 2, the first because of" in refusal(table, tmp_path / "packs")
    for path in table["s1"]:
        Path(path).write_bytes(b"")
    assert "no readable patch among 2" in refusal(table, tmp_path / "packs")


# Interruptions, disks -----------------------------------------------------------------------------


def test_an_interrupted_pack_continues_where_it_was(tmp_path, monkeypatch):
    """Finished scenes are kept untouched; what a killed process left half-written is removed, and is not a scene."""
    for scene in ("1", "2", "3"):
        table = write_scene(tmp_path / "data", scene=scene)
    merged, out = packing._merged, tmp_path / "packs"

    def interrupt(in_reach, i, *more):
        if i == 32 and "spring_2" in in_reach[0][2].name:
            raise KeyboardInterrupt
        return merged(in_reach, i, *more)

    monkeypatch.setattr(packing, "_merged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        packing.pack(table, out)
    monkeypatch.undo()
    first = ["ROIs1158_spring_1.json", "ROIs1158_spring_1.npy"]
    assert files_in(out) == first
    times = [(out / name).stat().st_mtime_ns for name in first]
    (out / ".ROIs1158_spring_2.npy.0123abcd.part").write_bytes(b"of a process that was killed")
    (out / "ROIs1158_spring_2.npy").write_bytes(b"of one killed before it wrote the description")
    assert [path.stem for path in packed.packed_paths(out)] == ["ROIs1158_spring_1"]
    report = packing.pack(table, out)
    assert (report.kept, report.packed) == (["ROIs1158_spring_1"], ["ROIs1158_spring_2", "ROIs1158_spring_3"])
    assert [(out / name).stat().st_mtime_ns for name in first] == times
    assert len(files_in(out)) == 6
    assert packing.pack(table, out).packed == []


def test_a_scene_is_packed_again_when_its_files_or_its_pack_have_changed(tmp_path):
    """A patch fetched again, one more patch, a damaged description, missing pixels."""
    table, out = write_scene(tmp_path / "data", WHOLE[:3]), tmp_path / "packs"

    def is_made_anew():
        return packing.pack(patches.index(tmp_path / "data"), out).packed == [NAME]

    assert is_made_anew()
    assert not is_made_anew()
    path = Path(table["lc"].iloc[0])
    path.write_bytes(path.read_bytes())
    assert is_made_anew()
    write_scene(tmp_path / "data", WHOLE[:4])
    assert is_made_anew()
    (out / f"{NAME}.json").write_text("{}")
    assert is_made_anew()
    (out / f"{NAME}.npy").unlink()
    assert is_made_anew()
    assert not is_made_anew()


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    """A file has its name, the disk is full, or another process packs into it."""
    table = write_scene(tmp_path / "data", WHOLE[:1])
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file: found (File exists|Not a directory)"):
        packing.pack(table, tmp_path / "file")
    with faults.failing_call("fsync", 1), pytest.raises(DiskError, match=r"packs: .*disk is full.*Free some space"):
        packing.pack(table, tmp_path / "packs")
    with _runtime.lock(tmp_path / "packs" / ".packing"), pytest.raises(DiskError, match="another process"):
        packing.pack(table, tmp_path / "packs")


# Damage -------------------------------------------------------------------------------------------


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, place, bit):
    """By `verify` with its tile, or when the file is opened."""
    out = tmp_path / "packs"
    if not out.exists():
        pack_one(out, write_scene(tmp_path / "data", WHOLE[:2]))
        shutil.copytree(out, tmp_path / "copies")
    content = bytearray((out / f"{NAME}.npy").read_bytes())
    where = int(place * len(content))
    content[where] ^= 1 << bit
    (tmp_path / "copies" / f"{NAME}.npy").write_bytes(content)
    try:
        found = PackedScene(tmp_path / "copies" / f"{NAME}.json").verify()
    except DataError as error:
        found = [str(error)]
    if not found:
        assert where < 512  # a blank of the header
        return
    [found] = found
    assert f"{NAME}.npy: found" in found
    assert "pack the scene again" in found


@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "pickled"])
def test_pixels_of_another_size_or_kind_are_refused(tmp_path, damage):
    path = pack_one(tmp_path, write_scene(tmp_path / "data", WHOLE[:1])).path.with_suffix(".npy")
    content = path.read_bytes()
    path.unlink()
    if damage == "pickled":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else content + b"0")
    error = MissingDataError if damage == "gone" else DataError
    with pytest.raises(error, match=rf"{NAME}\.npy: found .*pack the scene again"):
        PackedScene(path.with_suffix(".json"))


@pytest.mark.parametrize("fault", ["no JSON", "a number changed", "a part missing", "of another format"])
def test_a_damaged_description_is_refused(tmp_path, fault):
    """A wrong number in it would be a wrong place on Earth."""
    path = pack_one(tmp_path, write_scene(tmp_path / "data", WHOLE[:1])).path
    text = path.read_text()
    texts = {
        "no JSON": text[:50],
        "a number changed": text.replace("500003.7", "500004.7"),
        "a part missing": json.dumps({"format": packed.FORMAT}),
        "of another format": text.replace(packed.FORMAT, "lcfuse packed scene, 99"),
    }
    path.write_text(texts[fault])
    with pytest.raises(DataError, match=rf"{NAME}\.json: found (a damaged description|format 'lcfuse .*99')"):
        patches.index(tmp_path)
