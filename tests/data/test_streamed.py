"""The same patches give the same crops, statistics, counts and windows in memory, in packed scenes and in files."""

import bisect
import os
import shutil
import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from miniatures import WHOLE, scene_arrays, write_patch, write_scene

from lcfuse_core.data import packing, patches, streamed
from lcfuse_core.data.source import LABEL_KINDS, PatchSource, PatchStack
from lcfuse_core.data.streamed import PatchFiles, open_source
from lcfuse_core.errors import DataError, DiskError, GridError, MissingDataError, ParameterError
from lcfuse_core.methods.adapt import PseudoLabels

KINDS = ("s1", "s2", "lc", "dfc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two scenes as files (one with the offset of newer products), packed, and patches without georeference."""
    root = tmp_path_factory.mktemp("streamed")
    arrays = scene_arrays(seed=1)
    write_scene(root / "files", [*WHOLE[:3], WHOLE[7]], scene="1", kinds=KINDS, **arrays)
    arrays["s2"] = arrays["s2"] + np.uint16(1000)
    table = write_scene(root / "files", WHOLE[2:5], scene="10", kinds=KINDS, **arrays)
    assert packing.pack(table, root / "packed").refused == []
    for number in range(3):
        write_patch(root / "phase", "validation", patch=number)
    return root


@pytest.fixture(autouse=True)
def _data_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path_factory.mktemp("data")))


@cache
def memory_and(folders, kind, labels):
    """The patches in memory, and left on disk."""
    table = patches.index(folders / ("phase" if kind == "phase" else "files"))
    read, _ = patches.read_many(table, LABEL_KINDS[labels])
    return PatchStack(read, labels), open_source(folders / kind, labels, memory_gb=0)


def numbered(cells):
    """Cells numbered from 0 in the order of their numbers: what a loss depends on."""
    return torch.stack([torch.unique(square, return_inverse=True)[1] for square in cells])


def assert_equal(ours, theirs, batched=True):
    for name, one, other in zip(ours._fields, ours, theirs, strict=True):
        if name == "cells":
            one, other = (numbered(cells if batched else cells[None]) for cells in (one, other))
        assert one.dtype == other.dtype
        assert torch.equal(one, other), name


@pytest.mark.parametrize("labels", ["modis", "modis+savanna", "fine"])
@pytest.mark.parametrize("kind", ["files", "packed", "phase"])
def test_a_source_on_disk_equals_the_stack(folders, kind, labels):
    """Names, windows, statistics and counts, bit for bit, of all patches and of a part."""
    stack, source = memory_and(folders, kind, labels)
    read = open_source(folders / kind, labels)
    assert (type(read), type(source)) == (PatchStack, PatchFiles)
    for ours, theirs in ((read, stack), (source, stack), (source.part([2, 0]), stack.part([2, 0]))):
        assert (ours.names, ours.shape, len(ours)) == (theirs.names, theirs.shape, len(theirs))
        for n_classes in (8, 9):
            expected = theirs.class_counts(n_classes)
            assert torch.equal(ours.class_counts(n_classes), expected)
            assert torch.equal(PatchSource.class_counts(ours, n_classes), expected)  # from the windows
        assert ours.statistics() == theirs.statistics() == PatchSource.statistics(ours)
        for one, other in zip(ours.windows(), theirs.windows(), strict=True):
            assert_equal(one, other, batched=False)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 32), st.integers(0, 2**40), st.sampled_from(["files", "packed", "phase"]), st.booleans())
@example(2, 0, "files", False)  # as many pixels a side as bands: GDAL mistook the layout of a transposed crop
@example(13, 0, "files", False)
def test_the_same_generator_gives_the_same_crops(folders, size, seed, kind, is_fine):
    """Of every size, in every symmetry."""
    stack, source = memory_and(folders, kind, "fine" if is_fine else "modis")
    assert_equal(*(one.crops(5, size, torch.Generator().manual_seed(seed)) for one in (source, stack)))


@pytest.mark.parametrize("kind", ["files", "packed", "phase", "pseudo-labels"])
def test_cells_may_be_left_out(folders, monkeypatch, kind):
    """The rest stays the same, and nothing computes them."""
    stack, source = memory_and(folders, "files" if kind == "pseudo-labels" else kind, "modis")
    if kind == "pseudo-labels":
        stack, source = (PseudoLabels(one, [window.labels for window in stack.windows()]) for one in (stack, source))

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(streamed, "cell_ids", refuse)
    monkeypatch.setattr(streamed, "_cells", refuse)
    for one in (stack, source):
        crops = one.crops(5, 20, torch.Generator().manual_seed(0), cells=False)
        expected = stack.crops(5, 20, torch.Generator().manual_seed(0))
        assert all(torch.equal(*pair) for pair in zip(crops[:3], expected[:3], strict=True))
        assert (crops.cells.shape, crops.cells.dtype) == ((5, 0, 0), torch.int32)
        assert {tuple(window.cells.shape) for window in one.windows(cells=False)} == {(0, 0)}


def test_the_budget_decides_what_is_held_in_memory(folders, monkeypatch, capsys):
    """39 bytes per pixel; by argument, environment variable or default."""
    needed = 7 * 32 * 32 * 39 / 1e9
    for data in (folders / "files", str(folders / "packed"), patches.index(folders / "packed")):
        assert isinstance(open_source(data, memory_gb=needed), PatchStack)
        assert isinstance(open_source(data, memory_gb=needed * 0.999), PatchFiles)
    assert capsys.readouterr().out.count("packed, reading is faster") == 1
    monkeypatch.setenv("LCFUSE_MEMORY_GB", "0")
    assert isinstance(open_source(folders / "files"), PatchFiles)
    monkeypatch.setenv("LCFUSE_MEMORY_GB", "much")
    with pytest.raises(ParameterError, match="LCFUSE_MEMORY_GB: found 'much'"):
        open_source(folders / "files")
    monkeypatch.delenv("LCFUSE_MEMORY_GB")
    assert isinstance(open_source(folders / "files"), PatchStack)


@pytest.mark.parametrize("memory_gb", [0, 1])
def test_damaged_patches_are_reported_by_name(tmp_path, capsys, memory_gb):
    """Patches with NaN, a damaged or a missing file: counted and named, whether in memory or on disk."""
    table = write_scene(tmp_path, WHOLE[:6])
    values = scene_arrays()["s1"][:, :32, :32]
    values[0, 3, 4] = np.nan
    write_patch(tmp_path, patch=30, scene="7", kinds=("s1",), s1=values)
    Path(table["s2"].iloc[3]).write_bytes(b"no image")
    Path(table["lc"].iloc[5]).unlink()
    source = open_source(tmp_path, memory_gb=memory_gb)
    said = capsys.readouterr().out
    assert [name[-3:] for name in source.names] == ["p31", "p32", "p34"]
    assert "1 of 6 patches left out: they lack a file" in said
    assert "3 patches read (0 of them repaired), 2 skipped" in said
    assert "skipped ROIs1158_spring_7_p30: " in said
    assert "NaN" in said
    assert "skipped ROIs1158_spring_7_p33: " in said
    assert len(list(source.windows())) == 3


def test_everything_is_read_once(folders, monkeypatch, capsys):
    """The second time only the sizes and times of the files are read; a changed file is read again with its scene."""
    files = shutil.copytree(folders / "files", folders / "changing")
    first = open_source(files, memory_gb=0)
    assert "7 patches read (3 of them repaired)" in capsys.readouterr().out
    read = counted_reads(monkeypatch)
    again = open_source(files, memory_gb=0)
    assert "7 patches read (3 of them repaired)" in capsys.readouterr().out
    assert (read, again.digest(), again.statistics()) == ([], first.digest(), first.statistics())
    path = Path(patches.index(files)["lc"].iloc[0])
    content = bytearray(path.read_bytes())
    content[-4] = 17 if content[-4] != 17 else 12  # the IGBP code of the last pixel
    path.write_bytes(content)
    assert open_source(files, memory_gb=0).digest() != first.digest()
    assert read == [f"ROIs1158_spring_1_p{number}" for number in (30, 31, 32, 33)]
    assert open_source(folders / "packed", memory_gb=0).digest() == first.digest()
    assert open_source(folders / "packed", "fine", memory_gb=0).digest() != first.digest()


def counted_reads(monkeypatch):
    """The names of the patches that are read from now on, sorted."""
    read = []
    monkeypatch.setattr(
        streamed,
        "read_patch",
        lambda row, need: bisect.insort(read, patches.patch_name(row)) or patches.read_patch(row, need),
    )
    return read


def linked(folder, n):
    """Scenes of 50 patches, *n* in all, whose files are links to those of the first three of a folder."""
    table, made = patches.index(folder).head(3), folder.with_name(f"linked-{n}")
    for number in range(n):
        row, scene = table.iloc[number % 3], number // 50
        for kind in ("s1", "s2", "lc"):
            path = made / f"{kind}_{scene}" / f"ROIs1158_spring_{kind}_{scene}_p{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            (os.symlink if number % 2 else os.link)(row[kind], path)
    return made


def test_links_to_the_same_files_are_read_once(folders, tmp_path, monkeypatch, capsys):
    """Facts and repairs are shared; the report names every patch; of packed scenes each patch is read."""
    files = shutil.copytree(folders / "files", tmp_path / "files")
    for path in files.rglob("*_1_p*.tif"):
        path.unlink()
    read = counted_reads(monkeypatch)
    monkeypatch.setattr(streamed.os, "cpu_count", lambda: 1)
    source = open_source(linked(files, 12), memory_gb=0)
    assert len(read) == 3
    assert "12 patches read (12 of them repaired)" in capsys.readouterr().out
    assert source._facts[:3].tobytes() * 4 == source._facts.tobytes()
    expected = PatchSource.statistics(source)
    assert source.statistics() == expected
    read.clear()
    open_source(folders / "packed", memory_gb=0)
    assert len(read) == 7


def test_memory_grows_by_little_per_patch(folders, monkeypatch):
    """Index, check and source of some hundred patches more: 2 KB and the paths for each at the peak."""
    few, many = (linked(folders / "files", n) for n in (150, 450))
    open_source(few, memory_gb=0)  # imports, caches
    peaks = []
    for folder in (few, many):
        monkeypatch.setenv("LCFUSE_DATA", str(folder / "data"))
        tracemalloc.start()
        source = open_source(folder, memory_gb=0)
        source.digest()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    length = sum(len(str(path)) for path in many.rglob("*.tif")) / 450
    assert (peaks[1] - peaks[0]) / 300 < 2_000 + length


def test_what_cannot_be_opened_is_refused(folders, tmp_path, monkeypatch):
    """Labels without files, patches of two sizes, damage everywhere, a data folder that cannot be written."""
    write_scene(tmp_path / "a", WHOLE[:1])
    with pytest.raises(MissingDataError, match="none complete, expected patches with s1, s2, dfc files"):
        open_source(tmp_path / "a", "fine")
    with pytest.raises(ParameterError, match="labels"):
        open_source(tmp_path / "a", "coarse")
    write_scene(tmp_path / "a", [(0, 0)], side=48, scene="8")
    with pytest.raises(GridError, match=r"found \(48, 48\) pixels, expected \(32, 32\) as in ROIs1158_spring_7_p30"):
        open_source(tmp_path / "a", memory_gb=0)
    for path in (tmp_path / "a").rglob("*s1*.tif"):
        path.write_bytes(b"")
    for memory_gb in (0, 1):
        with pytest.raises(DataError, match="no readable patch among 2, the first because of"):
            open_source(tmp_path / "a", memory_gb=memory_gb)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "file"))
    with pytest.raises(DiskError, match="file"):
        open_source(folders / "files", memory_gb=0)


def test_a_reference_outside_the_pack_is_read(folders):
    """The truth of packed training scenes lies in files of its own."""
    table = patches.index(folders / "packed")
    expected = open_source(folders / "files", "fine", memory_gb=0)
    table["dfc"] = patches.index(folders / "files")["dfc"]
    source = PatchFiles(table, "fine")
    assert torch.equal(source.class_counts(), expected.class_counts())
    assert_equal(*(one.crops(9, 20, torch.Generator().manual_seed(1)) for one in (source, expected)))
