"""What an experiment trains: held-out scenes, networks that are found again, and the lines of several seeds."""

import sys

import miniatures
import numpy as np
import pytest

from lcfuse_core.book import chapter, settings
from lcfuse_core.data import patches
from lcfuse_core.data.legends import DFC2020
from lcfuse_core.data.sample import world
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.training.loop import classify

SMOKE = settings.read_profile("smoke")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A chapter with three training scenes of one tiny patch each, and plans of two steps."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))
    for scene in "123":
        miniatures.write_patch(tmp_path / "sen12ms", scene=scene)
    small = {"steps": 2, "crop": 32, "batch": 2, "train_root": str(tmp_path / "sen12ms")}
    return chapter.Chapter("training", SMOKE | small)


def test_learning_and_held_out_patches_share_no_scene(here):
    learn, held_out = here.training_stack(), here.held_out_stack()
    assert len(learn) == 2
    assert len(held_out) == 1
    assert set(learn.names) & set(held_out.names) == set()


def test_a_network_is_trained_once_and_then_found(here, tmp_path):
    plan = here.plan("fcn", 0.5)
    first = here.trained(plan)
    files = list((tmp_path / "data" / "runs").glob("*.safetensors"))
    before = files[0].stat().st_mtime_ns
    again = here.trained(plan)
    assert [file.stat().st_mtime_ns for file in files] == [before]
    assert first.history == again.history
    assert [line["step"] for line in first.history] == [1, 2]
    assert all(0 <= line["aa"] <= 1 for line in first.history)
    patch = patches.read_patch(next(patches.index(here.train_root).itertuples()))
    np.testing.assert_array_equal(classify(first, patch), classify(again, patch))


@pytest.mark.parametrize("change", [{"steps": 3}, {"seed": 1}, {"batch": 3}, {"loss": "bag"}])
def test_another_plan_is_another_network(here, tmp_path, change):
    here.trained(here.plan("fcn", 0.5))
    here.parameters |= change
    here.trained(here.plan("fcn", 0.5))
    assert len(list((tmp_path / "data" / "runs").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("learner", protocol.NAMES)
def test_whatever_learns_draws_maps_in_the_legend(here, learner):
    draw, train_s = here.learned(learner, protocol.PLAIN)
    patch = patches.read_patch(next(patches.index(here.train_root).itertuples()))
    codes = draw(patch)
    assert codes.shape == (miniatures.ROWS, miniatures.COLS)
    assert codes.dtype == np.uint8
    DFC2020.check(codes)
    assert train_s > 0


def test_shipped_lines_hold_every_method_with_five_seeds_and_todays_settings():
    """What the chapter shows was made with the profile smoke as it is now, with coarse labels only."""
    lines = protocol.recorded_seeds()
    methods = {protocol.method_name(*learner) for learner in seeds_script().LEARNERS} | {"MODIS label"}
    found = set(zip(lines["parameters.method"], lines["seeds.world"], strict=True))
    assert found == {(method, seed) for method in methods for seed in range(5)}
    assert len(lines) == len(found)
    assert lines["synthetic"].all()
    for name in ("steps", "crop", "batch"):
        assert set(lines[f"parameters.{name}"]) == {SMOKE[name]}
    assert lines.groupby("seeds.world")["hashes.evaluation"].nunique().tolist() == 5 * [1]


def seeds_script():
    """The module `scripts/seeds.py`."""
    import seeds

    return seeds


@pytest.mark.slow
def test_a_seed_gives_a_line_for_each_method_and_bound(tmp_path, monkeypatch):
    """On a small world, with two steps and two of the learners: the lines are those of the real thing."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setenv("LCFUSE_LEDGER", "")  # `score_seed` sets it; this takes it back
    script, out = seeds_script(), tmp_path / "out" / "seeds.jsonl"
    monkeypatch.setattr(script, "LEARNERS", (("fcn", 0.0), ("unet", 0.5)))
    script.write_whole(out, script.score_seed(4, steps=2, small=True, folder=tmp_path))
    lines = ledger.read(out)
    methods = ["MODIS label", "FCN, plain", "U-Net, weighted"]
    assert lines["parameters.method"].tolist()[:3] == methods
    assert lines["label_regime"].tolist() == ["coarse only"] * 3 + ["fine"] * 3
    assert set(lines["seeds.world"]) == {4}
    assert lines["scores.aa"].between(0, 1).all()
    small = world.read_world(tmp_path / "small" / "world-4")
    assert set(lines["hashes.evaluation"]) == {small["sha256"]}
    assert lines["synthetic"].all()


def test_a_trial_does_not_replace_the_shipped_lines(monkeypatch, capsys):
    script = seeds_script()
    monkeypatch.setattr(sys, "argv", ["seeds.py", "--steps", "2"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 2
    assert "name another file with --out" in capsys.readouterr().err
