"""The command `train`: its plan, its data, what is held out, and what it never opens."""

import numpy as np
import pytest
import rasterio
from miniatures import scene_arrays, write_patch, write_scene

from lcfuse_core import __main__ as shell
from lcfuse_core.data import packing, patches
from lcfuse_core.scoring import protocol
from lcfuse_core.training import loop
from lcfuse_core.training.checkpoint import Run

TOP = [(0, 0), (0, 16)]
"""Corners of the patches of a small scene."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten scenes of two patches of 32 x 32."""
    top = tmp_path_factory.mktemp("data") / "sen12ms"
    for scene in range(10):
        write_scene(top, TOP, str(scene))
    return top


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run `train` without a training; return plan, source and validation that it would use."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "_data"))
    calls = []

    def train(source, plan, out, *, validation, interval_s):
        calls.append((plan, source, validation))
        return Run(None, plan, None, [{"step": plan.steps, "loss": 1.0}])

    def run(*words):
        monkeypatch.setattr(loop, "train", train)
        assert shell.main(["train", *map(str, words), "--out", str(tmp_path / "run")]) == 0
        return calls.pop()

    return run


def test_scenes_are_held_out_as_in_the_chapters_also_of_packs(folder, call, tmp_path, capsys):
    learn, held_out = protocol.split_scenes(patches.index(folder))
    assert packing.pack(patches.index(folder), tmp_path / "packs").refused == []
    for root in (folder, tmp_path / "packs"):
        _, source, validation = call(root)
        assert source.names == list(map(patches.patch_name, learn.itertuples()))
        assert list(validation) == ["held_out"]
        assert validation["held_out"].names == list(map(patches.patch_name, held_out.itertuples()))
        assert f"held out: 2 patches of {held_out['scene_id'][0]}" in capsys.readouterr().out


def test_of_one_scene_nothing_is_held_out(tmp_path, call):
    write_scene(tmp_path / "one", TOP)
    _, source, validation = call(tmp_path / "one")
    assert (len(source), validation) == (2, {})


def test_patches_that_cannot_be_used_are_reported(tmp_path, call, capsys):
    """With a NaN by name, without a label by their number; a folder without any label by its path."""
    data, s1 = tmp_path / "data", scene_arrays()["s1"]
    s1[0, 5, 3] = np.nan
    for scene in "1234":
        write_scene(data, TOP, scene, s1=s1)
    for path in data.rglob("*_lc_4_*.tif"):
        path.unlink()
    _, source, validation = call(data)
    shown = capsys.readouterr().out
    assert [len(source), len(validation["held_out"])] == [2, 1]
    assert "2 of 8 patches left out: they lack a file" in shown
    assert all(f"ROIs1158_spring_{scene}_p30" in shown for scene in "123")
    assert "NaN" in shown
    for path in data.rglob("*_lc_*.tif"):
        path.unlink()
    assert shell.main(["train", str(data), "--out", str(tmp_path / "run")]) == 2
    assert f"{data}: found 8 patches, none complete" in capsys.readouterr().err


def test_validation_opens_the_validation_split_alone(folder, tmp_path, call, monkeypatch):
    """Also against the fine reference: no file of the test split is opened; a folder without the split is refused."""
    root, opened = tmp_path / "dfc2020", []
    for patch in (1, 2):
        write_patch(root, "validation", patch)
        write_patch(root, "test", patch)
    real = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda path, *a, **k: (opened.append(str(path)), real(path, *a, **k))[1])
    _, _, validation = call(folder, "--validation", root, "--fine")
    assert list(validation) == ["held_out", "modis", "fine"]
    assert validation["fine"].names == [f"ROIs0000_validation_0_p{patch}" for patch in (1, 2)]
    names = [path.rpartition("/")[2] for path in opened]
    assert any("validation_dfc" in name for name in names)
    assert not any("_test_" in name for name in names)
    write_patch(tmp_path / "alone", "test")
    words = ["--validation", str(tmp_path / "alone"), "--out", str(tmp_path / "run")]
    assert shell.main(["train", str(folder), *words]) == 2


def test_a_profile_gives_the_plan_and_the_folder(folder, call, monkeypatch):
    """In the caller's folder; a value that is given explicitly wins, also if it equals a default."""
    (folder.parent / "data").mkdir()
    (folder.parent / "data" / "sen12ms").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    plan, source, _ = call("--profile", "colab")
    assert (plan.steps, plan.crop, plan.batch, plan.report_every, len(source)) == (5000, 128, 32, 625, 18)
    plan, _, _ = call("--profile", "colab", "-p", "steps", 400, "-p", "crop", 64, "-p", "report_every", 7)
    assert (plan.steps, plan.crop, plan.batch, plan.report_every) == (400, 64, 32, 7)


def test_data_are_needed(tmp_path, capsys):
    assert shell.main(["train", "--out", str(tmp_path)]) == 2
    assert "found no DATA, expected a folder or --profile" in capsys.readouterr().err
