"""Packs: every patch comes back to the bit, every damage is found, and crops are those of the scene."""

import errno
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miniatures import COLS, ROWS, SEMIREAL, UTM, file_of, lc_array, needs_semireal, write_patch, write_tif

from lcfuse_core.data import packing, patches, tiles
from lcfuse_core.data.cells import GRID_COLS, modis_cells
from lcfuse_core.data.files import part_transform
from lcfuse_core.data.legends import IGBP, LCCS_HYDROLOGY, LCCS_LAND_COVER, LCCS_LAND_USE
from lcfuse_core.data.packed import PackedScene, PackedScenes, read_record
from lcfuse_core.data.source import PatchStack, channel_statistics, class_counts, turn
from lcfuse_core.errors import DataError, DiskError, GridError, MissingDataError, ParameterError
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import TrainPlan

SIDE, STEP = 32, 16
CORNER = Affine(10, 0, 500003.7, 0, -10, 5400007.2)
WHOLE = [(row, col) for row in (0, 16, 32, 48) for col in (0, 16, 32)]
"""Corners of patches of 32 x 32 with half overlap that cover 80 x 64 pixels."""


def scene_arrays(rows=80, cols=64, seed=0):
    """Every pixel its own: random S1, S2 and class codes, and a reference, as one scene."""
    rng = np.random.default_rng(seed)
    legends = (IGBP, LCCS_LAND_COVER, LCCS_LAND_USE, LCCS_HYDROLOGY)
    s2 = rng.integers(300, 9000, (13, rows, cols)).astype(np.uint16)
    s2[10] //= 100
    return {
        "s1": rng.uniform(-30, -1, (2, rows, cols)).astype(np.float32),
        "s2": s2,
        "lc": np.stack([rng.choice(np.array(legend.codes, np.uint8), (rows, cols)) for legend in legends]),
        "dfc": rng.integers(0, 11, (1, rows, cols)).astype(np.uint8),
    }


def write_scene(root, corners=WHOLE, scene="7", side=SIDE, kinds=("s1", "s2", "lc"), place=CORNER, **arrays):
    """Patches at these corners, each with its own transform, as SEN12MS cuts them."""
    arrays = scene_arrays() | arrays
    for number, (row, col) in enumerate(corners, start=30):
        corner = part_transform(place, row, col)
        for kind in kinds:
            piece = arrays[kind][:, row : row + side, col : col + side]
            write_tif(file_of(root, "sen12ms", kind, number, scene), piece, UTM, corner)
    return patches.complete(patches.index(root), kinds)


def pack_one(root, table):
    """The one scene of a table, packed under *root*."""
    report = packing.pack(table, root)
    assert report.refused == []
    (path,) = Path(root).glob("*.json")
    return PackedScene(path)


def assert_same(first, second):
    """Two patches hold the same bits in the same place."""
    for kind in ("s1", "s2", "lc", "dfc"):
        one, other = getattr(first, kind), getattr(second, kind)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
    assert (first.name, first.crs, first.transform) == (second.name, second.crs, second.transform)
    assert first.repairs == second.repairs


# Nothing is lost ---------------------------------------------------------------------------------


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.sampled_from(WHOLE), min_size=1), st.integers(0, 9), st.booleans())
def test_every_patch_comes_back_bit_for_bit(tmp_path_factory, corners, seed, fine):
    """With gaps of any shape: pixels of all layers, name, CRS and transform are those that were read."""
    root = tmp_path_factory.mktemp("scene")
    kinds = ("s1", "s2", "lc", "dfc") if fine else ("s1", "s2", "lc")
    table = write_scene(root / "data", sorted(corners), kinds=kinds, **scene_arrays(seed=seed))
    packed = pack_one(root / "packs", table)
    assert len(packed.names) == len(table)
    for row in table.itertuples():
        original = patches.read_patch(row)
        assert_same(packed.patch(original.name), original)
    assert packed.verify() == []


def test_negative_zero_and_repairs_survive(tmp_path):
    """Bits, not values, are kept; what was mended on reading is told again."""
    arrays = scene_arrays()
    arrays["s1"][0, 3, 4], arrays["s1"][0, 3, 5] = -0.0, 0.0
    arrays["s2"] = arrays["s2"] + np.uint16(1000)
    table = write_scene(tmp_path / "data", **arrays)
    packed = pack_one(tmp_path / "packs", table)
    original = patches.read_patch(table.iloc[0])
    assert "1000" in original.repairs[0]
    assert_same(packed.patch(original.name), original)
    assert np.signbit(packed.read(0, 0, 16, 16).s1[0, 3, 4:6]).tolist() == [True, False]


@needs_semireal
def test_real_places_come_back_bit_for_bit(tmp_path):
    """One patch a scene, 224 pixels, float64 radar and int16 reflectance: equal to what is read."""
    table = patches.index(SEMIREAL)
    assert packing.pack(table, tmp_path).refused == []
    for row in table.itertuples():
        original = patches.read_patch(row)
        assert_same(PackedScene(tmp_path / f"{row.scene_id}.json").patch(original.name), original)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_window_is_that_part_of_the_scene(tmp_path, data):
    """Pixels, transform and coarse cells, whatever tiles the window meets."""
    arrays = scene_arrays()
    path = tmp_path / "packs" / "ROIs1158_spring_7.json"
    if not path.exists():
        pack_one(path.parent, write_scene(tmp_path / "data"))
    packed = PackedScene(path)
    row, col = data.draw(st.integers(0, 79)), data.draw(st.integers(0, 63))
    rows, cols = data.draw(st.integers(1, 80 - row)), data.draw(st.integers(1, 64 - col))
    window = packed.read(row, col, rows, cols)
    for kind in ("s1", "s2", "lc"):
        np.testing.assert_array_equal(getattr(window, kind), arrays[kind][:, row : row + rows, col : col + cols])
    assert window.transform == part_transform(CORNER, row, col)
    cells = modis_cells(window.transform, window.crs, (rows, cols))
    keys = packed.cell_keys(packed.cells(row, col, rows, cols))
    np.testing.assert_array_equal(keys, cells[0].astype(np.int64) * GRID_COLS + cells[1])


def test_a_scene_has_each_pixel_once(tmp_path):
    """However many patches hold it."""
    arrays = scene_arrays(144, 144)
    corners = [(row, col) for row in range(0, 113, 16) for col in range(0, 113, 16)]
    table = write_scene(tmp_path / "data", corners, **arrays)
    packed = pack_one(tmp_path / "packs", table)
    stored = sum(packed.tiles.has(kind).sum() * 16 * 16 * kinds.bands for kind, kinds in tiles.KINDS.items()
                 if kind in ("s1", "s2"))  # fmt: skip
    assert stored == 15 * 144 * 144
    assert packed.covered.all()
    assert len(table) == 64


# What cannot be packed is refused -----------------------------------------------------------------


def test_patches_that_contradict_each_other_are_refused_by_name(tmp_path):
    """One bit in one pixel, invisible in the file itself."""
    table = write_scene(tmp_path / "data")
    path = Path(table["s2"].iloc[4])
    content = bytearray(path.read_bytes())
    content[-2 * 13 * SIDE * 16] ^= 1
    path.write_bytes(content)
    patches.read_patch(table.iloc[4])  # nothing to be seen
    with pytest.raises(DataError, match=r"p3\d and ROIs1158_spring_7_p3\d: found 1 different s2 values"):
        packing.pack_scene(table, tmp_path / "packs")
    report = packing.pack(table, tmp_path / "packs")
    assert report.refused[0][0] == "ROIs1158_spring_7"
    assert "1 refused" in str(report)
    assert "different s2 values" in str(report)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_damaged_patch_is_left_out_and_reported(tmp_path):
    """Its neighbours hold most of its pixels; what nobody holds is a gap."""
    table = write_scene(tmp_path / "data")
    Path(table["s1"].iloc[0]).write_bytes(b"no image")
    Path(table["lc"].iloc[11]).write_bytes(b"no image")
    report = packing.pack(table, tmp_path / "packs")
    assert [name[-3:] for name, _ in report.skipped] == ["p30", "p41"]
    packed = PackedScene(tmp_path / "packs" / "ROIs1158_spring_7.json")
    assert len(packed.names) == report.n_read == 10
    assert np.argwhere(~packed.covered).tolist() == [[0, 0], [4, 3]]
    with pytest.raises(ParameterError, match="cover"):
        packed.read(0, 0, 20, 20)
    with pytest.raises(ParameterError, match="no such patch"):
        packed.patch("ROIs1158_spring_7_p30")


def test_a_patch_off_the_grid_is_left_out_and_reported(tmp_path):
    """Another zone, half a pixel aside, between the places of the others: it cannot be put beside the others."""
    table = write_scene(tmp_path / "data")
    arrays = scene_arrays()
    for number, crs, shift in ((0, "EPSG:32633", 0), (7, UTM, 0.5), (9, UTM, 3)):
        row, col = WHOLE[number]
        for kind in ("s1", "s2", "lc"):
            corner = part_transform(CORNER, row, col + shift)
            write_tif(Path(table[kind].iloc[number]), arrays[kind][:, row : row + SIDE, col : col + SIDE], crs, corner)
    report = packing.pack(table, tmp_path / "packs")
    assert [name[-3:] for name, _ in report.skipped] == ["p30", "p37", "p39"]
    assert all("the grid of its scene" in why for _, why in report.skipped[:2])
    assert "steps of 16 pixels as in its scene" in report.skipped[2][1]
    assert report.n_read == 9


def test_scenes_without_georeference_cannot_be_packed(tmp_path):
    """The phase archives of DFC2020 do not tell where their patches lie."""
    write_patch(tmp_path / "data", "validation")
    with pytest.raises(GridError, match=r"no georeference.*Train from the patch files"):
        packing.pack_scene(patches.index(tmp_path / "data"), tmp_path / "packs")


def test_patches_without_a_common_step_are_refused(tmp_path):
    """Tiles of one pixel would be no tiles."""
    table = write_scene(tmp_path / "data", [(0, 0), (5, 3)])
    with pytest.raises(GridError, match="share a step of 1 pixels"):
        packing.pack_scene(table, tmp_path / "packs")


def test_a_scene_of_damaged_patches_alone_is_refused(tmp_path):
    """And the first reason is told."""
    table = write_scene(tmp_path / "data", WHOLE[:2])
    for path in table["s2"]:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable patch among 2.*damaged file of 0 bytes"):
        packing.pack_scene(table, tmp_path / "packs")
    for path in table["s1"]:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError, match="no readable patch among 2"):
        packing.pack_scene(table, tmp_path / "packs")


# Interruptions, disks -----------------------------------------------------------------------------


def test_an_interrupted_pack_goes_on_where_it_was(tmp_path, monkeypatch):
    """Finished scenes are kept untouched; nothing half-made is left, or taken for finished."""
    for scene in ("1", "2", "3"):
        table = write_scene(tmp_path / "data", scene=scene)
    once, add = [], tiles.TileWriter.add

    def pull_the_plug(writer, kind, row, col, values):
        if "spring_2" in str(writer.path) and row == 2:
            raise KeyboardInterrupt
        add(writer, kind, row, col, values)

    monkeypatch.setattr(tiles.TileWriter, "add", pull_the_plug)
    out = tmp_path / "packs"
    with pytest.raises(KeyboardInterrupt):
        packing.pack(table, out)
    assert sorted(path.name for path in out.iterdir()) == ["ROIs1158_spring_1.json", "ROIs1158_spring_1.tiles"]
    once = [path.stat().st_mtime_ns for path in sorted(out.iterdir())]
    monkeypatch.setattr(tiles.TileWriter, "add", add)
    report = packing.pack(table, out)
    assert (report.kept, report.packed) == (["ROIs1158_spring_1"], ["ROIs1158_spring_2", "ROIs1158_spring_3"])
    assert [path.stat().st_mtime_ns for path in sorted(out.iterdir())[:2]] == once
    assert packing.pack(table, out).packed == []


def test_a_scene_is_packed_again_when_its_files_or_its_pack_have_changed(tmp_path):
    """A patch fetched again, one more patch, a record that is damaged, pixels that are gone."""
    table, out = write_scene(tmp_path / "data", WHOLE[:3]), tmp_path / "packs"
    record, pixels = out / "ROIs1158_spring_7.json", out / "ROIs1158_spring_7.tiles"

    def is_made_anew():
        return packing.pack(patches.index(tmp_path / "data"), out).packed == ["ROIs1158_spring_7"]

    assert is_made_anew()
    assert not is_made_anew()
    path = Path(table["lc"].iloc[0])
    path.write_bytes(path.read_bytes())
    assert is_made_anew()
    write_scene(tmp_path / "data", WHOLE[:4])
    assert is_made_anew()
    record.write_text("{}")
    assert is_made_anew()
    pixels.unlink()
    assert is_made_anew()
    assert not is_made_anew()


@pytest.mark.parametrize("when", ["before", "while writing", "at the end"])
def test_a_full_disk_is_told_and_costs_nothing_that_was_finished(tmp_path, monkeypatch, when):
    """The message says what is needed; the scene before stays whole."""
    table, out = write_scene(tmp_path / "data", scene="1"), tmp_path / "packs"
    packing.pack(table, out)
    table = write_scene(tmp_path / "data", scene="2")
    if when == "before":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:

        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        if when == "at the end":
            monkeypatch.setattr(tiles.os, "fsync", fail)
        else:
            real = open

            def small_disk(path, mode="r", **more):
                file = real(path, mode, **more)
                return Full(file) if str(path).endswith("tiles") else file

            monkeypatch.setattr(tiles, "open", small_disk, raising=False)
    with pytest.raises(DiskError, match=r"(1,000 bytes free|disk is full).*Free some space"):
        packing.pack(table, out)
    assert sorted(path.name for path in out.iterdir()) == ["ROIs1158_spring_1.json", "ROIs1158_spring_1.tiles"]
    assert PackedScene(out / "ROIs1158_spring_1.json").verify() == []


class Full:
    """A file on a disk that holds 100,000 bytes."""

    def __init__(self, file):
        self.file, self.left = file, 100_000

    def write(self, data):
        """As much as there is room for."""
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """A file stands in its place."""
    table = write_scene(tmp_path / "data", WHOLE[:1])
    (tmp_path / "packs").write_text("")
    with pytest.raises(DiskError, match="packs: found File exists"):
        packing.pack(table, tmp_path / "packs")


# Damage -------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, place, bit):
    """By `verify`, and by whoever reads that tile; only the padding between chunks is nobody's."""
    out = tmp_path / "packs"
    whole = out / "ROIs1158_spring_7.tiles"
    if not whole.exists():
        pack_one(out, write_scene(tmp_path / "data", WHOLE[:2]))
    copies = tmp_path / "copies"
    copies.mkdir(exist_ok=True)
    shutil.copy(whole.with_suffix(".json"), copies)
    content = bytearray(whole.read_bytes())
    where = int(place * len(content))
    content[where] ^= 1 << bit
    (copies / whole.name).write_bytes(content)
    chunks = [
        (kind, *chunk) for kind, places in read_record(whole.with_suffix(".json"))["chunks"].items() for chunk in places
    ]
    hit = [(kind, row, col) for kind, row, col, start, length, _ in chunks if start <= where < start + length]
    packed = PackedScene(copies / "ROIs1158_spring_7.json")
    found = packed.verify()
    assert len(found) == len(hit) <= 1
    for kind, row, col in hit:
        assert f"the {kind} tile in row {row}, column {col}" in found[0]
        assert "ROIs1158_spring_7.tiles" in found[0]
        with pytest.raises(DataError, match=r"wrong checksum.*pack the scene again"):
            PackedScene(packed.path).tiles.window(kind, row * 16, col * 16, 16, 16)


def test_damage_met_in_training_stops_it(tmp_path):
    """Nobody learns from a tile whose bits have changed."""
    packed = pack_one(tmp_path, write_scene(tmp_path / "data"))
    start = packed.tiles._places["s2"][2][2].start
    content = bytearray(packed.path.with_suffix(".tiles").read_bytes())
    content[start + 100] ^= 4
    packed.path.with_suffix(".tiles").write_bytes(content)
    with pytest.raises(DataError, match="s2 tile in row 2, column 2"):
        PackedScenes(tmp_path).crops(50, 32, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("damage", ["cut", "longer", "gone"])
def test_pixels_of_another_size_are_refused(tmp_path, damage):
    """Half a copy, or another scene's file."""
    packed = pack_one(tmp_path, write_scene(tmp_path / "data", WHOLE[:1]))
    path = packed.path.with_suffix(".tiles")
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-1] if damage == "cut" else content + b"0")
    error = MissingDataError if damage == "gone" else DataError
    with pytest.raises(error, match=r"ROIs1158_spring_7\.tiles: found .*pack the scene again"):
        PackedScene(packed.path)


@pytest.mark.parametrize("fault", ["no JSON", "a number changed", "a part missing", "of another format"])
def test_a_damaged_record_is_refused(tmp_path, fault):
    """A wrong number in it would be a wrong place on Earth."""
    path = pack_one(tmp_path, write_scene(tmp_path / "data", WHOLE[:1])).path
    text = path.read_text()
    record = json.loads(text)["record"]
    texts = {
        "no JSON": text[:50],
        "a number changed": text.replace("500003.7", "500004.7"),
        "a part missing": json.dumps({"record": record}),
        "of another format": packing.seal(record | {"format": 99}),
    }
    path.write_text(texts[fault])
    with pytest.raises(DataError, match=r"ROIs1158_spring_7\.json: found (a damaged record|format 99)"):
        PackedScene(path)


# Training -----------------------------------------------------------------------------------------


def test_crops_are_turned_squares_of_the_scene(tmp_path):
    """Each is found again in the scene, all its layers in the same place and turned in the same way."""
    arrays = scene_arrays()
    packed = pack_one(tmp_path, write_scene(tmp_path / "data"))
    scene = PackedScenes(tmp_path)
    s2, s1, labels, cells = scene.crops(40, 20, torch.Generator().manual_seed(1))
    assert [t.dtype for t in (s2, s1, labels, cells)] == [torch.uint16, torch.float32, torch.uint8, torch.int32]
    assert [tuple(t.shape) for t in (s2, s1, labels, cells)] == [(40, 13, 20, 20), (40, 2, 20, 20), *[(40, 20, 20)] * 2]
    classes = PatchStack([patches.Patch("all", arrays["s1"], arrays["s2"], arrays["lc"])]).labels[0]
    seen = set()
    for k in range(40):
        [(row, col, symmetry)] = places_of(s1[k], arrays["s1"])
        seen.add(symmetry)
        part = np.s_[..., row : row + 20, col : col + 20]
        assert torch.equal(turn(torch.from_numpy(arrays["s2"].astype(np.int32))[part], symmetry), s2[k].int())
        assert torch.equal(turn(classes[part], symmetry), labels[k])
        assert torch.equal(turn(torch.from_numpy(packed.cells(row, col, 20, 20)), symmetry), cells[k])
    assert seen == set(range(8))


def places_of(crop, scene):
    """Row, column and symmetry of a crop in a scene whose values are all different."""
    found = []
    for symmetry in range(8):
        first = turn(torch.arange(crop[0].numel()).reshape(crop[0].shape), symmetry).ravel().argmin()
        value = crop[0].ravel()[first].item()
        (row, col), *_ = np.argwhere(scene[0] == np.float32(value)).tolist() or [(None, None)]
        if row is None or row + crop.shape[1] > scene.shape[1] or col + crop.shape[2] > scene.shape[2]:
            continue
        square = torch.from_numpy(scene[:, row : row + crop.shape[1], col : col + crop.shape[2]])
        if torch.equal(turn(square, symmetry), crop):
            found.append((row, col, symmetry))
    return found


def test_the_same_generator_draws_the_same_crops(tmp_path):
    """And another one others."""
    pack_one(tmp_path, write_scene(tmp_path / "data"))
    scene = PackedScenes(tmp_path)
    first, again, other = (scene.crops(6, 24, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(one.view(torch.uint8), two.view(torch.uint8)) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


def test_every_covered_place_is_equally_likely_and_no_other_is_drawn(tmp_path):
    """Over two scenes, one with a gap: counted against a plain list of all places."""
    write_scene(tmp_path / "data", [c for c in WHOLE if c not in ((0, 0), (16, 16))], scene="1")
    table = write_scene(tmp_path / "data", WHOLE[:1], scene="2", place=part_transform(CORNER, 0, 500))
    packing.pack(table, tmp_path / "packs")
    packed = PackedScenes(tmp_path / "packs")
    size = 31
    expected = {
        (number, row, col)
        for number, scene in enumerate(packed.scenes)
        for row in range(scene.shape[0] - size + 1)
        for col in range(scene.shape[1] - size + 1)
        if np.kron(scene.covered, np.ones((16, 16), bool))[row : row + size, col : col + size].all()
    }
    assert {number for number, _, _ in expected} == {0, 1}
    drawn = packed._draw(40 * len(expected), size, torch.Generator().manual_seed(0))
    counts = pd.Series(drawn).value_counts()
    assert set(counts.index) == expected
    # Pearson's statistic: about the degrees of freedom when all are equally likely.
    assert ((counts - 40) ** 2 / 40).sum() < len(expected) + 5 * (2 * len(expected)) ** 0.5


def test_a_square_that_fits_nowhere_is_refused(tmp_path):
    """Larger than the scene, or than any part of it that is covered; never an endless search."""
    pack_one(tmp_path, write_scene(tmp_path / "data", [(0, 0), (48, 32)]))
    scene = PackedScenes(tmp_path)
    assert scene.scenes[0].n_places(32) > 0
    for size in (33, 64, 81, 0, -1):
        with pytest.raises(ParameterError, match="crop size"):
            scene.crops(1, size, torch.Generator())


def test_held_out_scenes_are_not_even_opened(tmp_path):
    """The list of scenes decides; a scene that is not there is named."""
    for scene in ("1", "2", "3"):
        table = write_scene(tmp_path / "data", WHOLE[:2], scene=scene)
    packing.pack(table, tmp_path)
    (tmp_path / "ROIs1158_spring_2.tiles").unlink()  # would be an error if anyone looked
    chosen = PackedScenes(tmp_path, only=["ROIs1158_spring_3", "ROIs1158_spring_1"])
    assert [scene.scene_id for scene in chosen.scenes] == ["ROIs1158_spring_1", "ROIs1158_spring_3"]
    assert len(chosen) == 4
    assert len(PackedScenes([tmp_path / "ROIs1158_spring_1.json"])) == 2
    with pytest.raises(MissingDataError, match="no packed ROIs1158_spring_9"):
        PackedScenes(tmp_path, only=["ROIs1158_spring_9"])
    with pytest.raises(MissingDataError, match="no packed scene"):
        PackedScenes(tmp_path / "data")
    with pytest.raises(MissingDataError, match=r"x\.json: found no such file"):
        PackedScenes([tmp_path / "x.json"])


def test_labels_that_were_not_packed_are_refused(tmp_path):
    """Fine labels need the reference; where it was packed they are its classes."""
    pack_one(tmp_path / "a", write_scene(tmp_path / "data", WHOLE[:2]))
    with pytest.raises(MissingDataError, match="dfc, for fine labels"):
        PackedScenes(tmp_path / "a", labels="fine")
    with pytest.raises(ParameterError, match="labels"):
        PackedScenes(tmp_path / "a", labels="coarse")
    table = write_scene(tmp_path / "data2", kinds=("s1", "s2", "lc", "dfc"))
    packing.pack(table, tmp_path / "b")
    patch = PackedScenes(tmp_path / "b", labels="fine").scenes[0].read(0, 0, 80, 64)
    expected = class_counts(PatchStack([patch], "fine").labels)
    assert torch.equal(PackedScenes(tmp_path / "b", labels="fine").class_counts(), expected)


def test_statistics_count_every_pixel_once(tmp_path):
    """Equal to those of the whole scene; patches would count their overlap four times."""
    packed = pack_one(tmp_path, write_scene(tmp_path / "data"))
    whole = PatchStack([packed.read(0, 0, 80, 64)])
    scene = PackedScenes(tmp_path)
    np.testing.assert_allclose(scene.statistics().mean, channel_statistics(whole).mean)
    np.testing.assert_allclose(scene.statistics().std, channel_statistics(whole).std)
    assert torch.equal(scene.class_counts(), class_counts(whole.labels))


@pytest.mark.parametrize("loss", ["cross_entropy", "cell_mean"])
def test_training_takes_packed_scenes_as_it_takes_a_stack(tmp_path, loss):
    """The same loop, plan and losses, those over coarse cells too; and the same plan gives the same weights."""
    pack_one(tmp_path, write_scene(tmp_path / "data"))
    plan = TrainPlan(steps=3, crop=32, batch=2, report_every=3, loss=loss)
    first, again = (loop.train(PackedScenes(tmp_path), plan, progress=False) for _ in range(2))
    assert np.isfinite(first.history[-1]["loss"])
    weights = zip(first.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_packed_scenes_travel_to_the_workers_of_a_loader(tmp_path):
    """By their path: a pickle holds no pixels, and the copy draws the same crops."""
    pack_one(tmp_path, write_scene(tmp_path / "data"))
    scene = PackedScenes(tmp_path)
    sent = pickle.dumps(scene)
    assert len(sent) < 5000
    back = pickle.loads(sent)  # noqa: S301 - our own bytes
    first, second = (one.crops(3, 20, torch.Generator().manual_seed(0)) for one in (scene, back))
    assert torch.equal(first[1], second[1])


def test_the_side_of_a_tile_is_what_the_patches_share(tmp_path):
    """16 for patches of 32 x 48 at steps of 16; large ones are halved until they are small enough."""
    write_patch(tmp_path / "data", lc=lc_array())
    packed = pack_one(tmp_path / "packs", patches.index(tmp_path / "data"))
    assert (packed.tile, packed.shape) == (16, (ROWS, COLS))
    table = write_scene(tmp_path / "large", [(0, 0)], side=320, **scene_arrays(320, 320))
    assert pack_one(tmp_path / "packs2", table).tile == 160
