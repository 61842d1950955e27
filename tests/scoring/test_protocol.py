"""The one protocol: who sees what, what is counted, and the ledger of several seeds."""

import json
import sys
from dataclasses import replace

import miniatures
import numpy as np
import pandas as pd
import pytest

from lcfuse_core.book import chapter, settings
from lcfuse_core.data import patches
from lcfuse_core.data.legends import DFC2020, SAVANNA, igbp_to_dfc
from lcfuse_core.data.sample import world
from lcfuse_core.errors import DataError, MissingDataError, ParameterError
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.scoring.scores import confusion, summarise
from lcfuse_core.training.loop import classify

SMOKE = settings.read_profile("smoke")


@pytest.fixture
def contest(tmp_path):
    """Phase archives with one validation and three test patches, from two regions."""
    root = tmp_path / "dfc2020"
    miniatures.write_patch(root, "validation", 0)
    for patch in (0, 1, 2):
        reference = np.where(miniatures.coordinates()[0] < 8 * patch, 10, 1).astype(np.uint8)
        miniatures.write_patch(root, "test", patch, dfc=reference[None])
    regions = {"validation": {"0": "north"}, "test": {"0": "east", "1": "west", "2": "west"}}
    (tmp_path / "world.json").write_text(json.dumps({"regions": regions}))
    return root


def all_forest(patch):
    """A map that says forest everywhere."""
    return np.ones(patch.s2.shape[1:], np.uint8)


# Who learns from what ----------------------------------------------------------------------------


def test_held_out_scenes_are_whole_and_always_the_same():
    table = pd.DataFrame({"scene_id": [f"scene {number // 4}" for number in range(64)], "patch": range(64)})
    learn, held_out = protocol.split_scenes(table)
    assert set(learn["scene_id"]) & set(held_out["scene_id"]) == set()
    assert held_out["scene_id"].nunique() == 2  # an eighth of sixteen
    assert len(learn) + len(held_out) == 64
    pd.testing.assert_frame_equal(protocol.split_scenes(table)[1], held_out)


def test_one_scene_cannot_be_split():
    with pytest.raises(ParameterError, match="two scenes or more"):
        protocol.split_scenes(pd.DataFrame({"scene_id": ["1", "1"]}))


def test_only_the_test_split_is_judged_where_there_is_one(contest):
    assert protocol.evaluation_patches(contest)["split"].tolist() == ["test"] * 3


def test_all_patches_of_the_public_bundle_are_judged(tmp_path):
    for patch in (3, 5):
        miniatures.write_patch(tmp_path, "bundle", patch)
    miniatures.write_patch(tmp_path, "bundle", 9, kinds=("s1", "s2", "dfc"))
    assert protocol.evaluation_patches(tmp_path)["patch"].tolist() == [3, 5]


def test_validation_patches_are_never_taken_from_another_split(contest, tmp_path):
    assert set(protocol.evaluation_patches(contest, "validation")["split"]) == {"validation"}
    miniatures.write_patch(tmp_path / "other", "bundle", 3)
    with pytest.raises(MissingDataError, match="no patch of the validation split"):
        protocol.evaluation_patches(tmp_path / "other", "validation")


def test_a_folder_without_reference_is_refused(tmp_path):
    miniatures.write_patch(tmp_path)
    with pytest.raises(MissingDataError, match="no patch with a reference"):
        protocol.evaluation_patches(tmp_path)


# What is counted ---------------------------------------------------------------------------------


def test_counts_are_kept_by_region_and_add_up(contest):
    """Patch k of the test split has 8k rows of water, of 32; a map of forest is wrong there."""
    results, report = protocol.judge({"forest": all_forest}, protocol.evaluation_patches(contest))
    result, cols = results["forest"], miniatures.COLS
    assert report.n_read == 3
    assert sorted(result.by_region) == ["east", "west"]
    assert result.by_region["east"][1, 1] == 32 * cols
    assert result.by_region["west"][10, 1] == (8 + 16) * cols
    assert result.counts.sum() == 3 * 32 * cols
    assert result.scores.aa == summarise(sum(result.by_region.values())).aa == 0.5
    assert result.scores.oa == pytest.approx(72 / 96)
    assert result.regions["east"].oa == 1
    assert result.regions["west"].oa == pytest.approx(40 / 64)


def test_a_region_without_scored_pixels_is_left_out_of_the_regions():
    result = protocol.Result()
    result.add("sea", np.zeros((11, 11), np.int64))
    result.add("land", confusion(np.array([1, 2]), np.array([1, 1])))
    assert list(result.regions) == ["land"]
    assert result.scores.aa == 0.5


def test_no_method_ever_sees_the_reference(contest):
    """Not the reference itself, and not through what an earlier method left behind."""
    seen = []

    def looks(patch):
        seen.append(patch.dfc)
        return all_forest(patch)

    protocol.judge({"one": looks, "two": looks}, protocol.evaluation_patches(contest))
    assert seen == [None] * 6


def test_a_damaged_patch_is_skipped_for_all_methods_and_named(contest):
    (contest / "s2_0" / "ROIs0000_test_s2_0_p1.tif").write_bytes(b"no image")
    methods = {"one": all_forest, "two": protocol.modis_map}
    results, report = protocol.judge(methods, protocol.evaluation_patches(contest))
    assert [name for name, _ in report.skipped] == ["ROIs0000_test_0_p1"]
    pixels = 2 * miniatures.ROWS * miniatures.COLS
    assert [result.counts.sum() for result in results.values()] == [pixels, pixels]


def test_nothing_readable_is_an_error_not_a_score(contest):
    for file in (contest / "s1_0").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="no readable patch among 3"):
        protocol.judge({"forest": all_forest}, protocol.evaluation_patches(contest))


def test_savanna_of_the_modis_map_counts_as_an_error(contest):
    row = next(protocol.evaluation_patches(contest).itertuples())
    patch = replace(patches.read_patch(row), lc=np.full((4, 4, 4), 9, np.uint8))
    codes = protocol.modis_map(patch)
    assert (codes == SAVANNA).all()
    assert summarise(confusion(np.ones((4, 4), np.uint8), codes)).oa == 0


def test_modis_map_is_the_label_of_the_patch(contest):
    row = next(protocol.evaluation_patches(contest).itertuples())
    patch = patches.read_patch(row)
    np.testing.assert_array_equal(protocol.modis_map(patch), igbp_to_dfc(patch.lc[0]))


def test_places_to_look_at_are_those_whose_label_names_most_classes(contest):
    """The reference is not opened for it, and what cannot be read is not shown."""
    for patch, codes in ((0, (10,)), (1, (1, 12, 13)), (2, (10, 11))):
        labels = miniatures.lc_array()
        labels[0] = np.resize(codes, labels[0].shape)
        miniatures.write_patch(contest, "test", patch, kinds=("lc",), lc=labels)
        (contest / "dfc_0" / f"ROIs0000_test_dfc_0_p{patch}.tif").write_bytes(b"must not be read")
    table = protocol.evaluation_patches(contest)
    assert protocol.by_variety(table)["patch"].tolist() == [1, 2, 0]
    assert protocol.by_variety(table, first=2)["patch"].tolist() == [1, 0]
    (contest / "s2_0" / "ROIs0000_test_s2_0_p1.tif").write_bytes(b"no image")
    assert protocol.by_variety(table)["patch"].tolist() == [2, 0]


# What a chapter learns ---------------------------------------------------------------------------


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


# Several seeds -----------------------------------------------------------------------------------


def test_seeds_are_summed_up_by_method_best_first():
    lines = pd.DataFrame(
        [("a", 0, 0.4), ("a", 1, 0.5), ("b", 0, 0.6), ("b", 1, 0.5)],
        columns=["parameters.method", "seeds.world", "scores.aa"],
    )
    table = protocol.over_seeds(lines)
    assert list(table.columns) == ["seed 0", "seed 1", "mean", "min", "max"]
    assert table.loc["a"].tolist() == [40, 50, 45, 40, 50]
    assert list(table.index) == ["b", "a"]


def test_shipped_lines_hold_every_method_with_five_seeds_and_todays_settings():
    """What the chapter shows was made with the profile smoke as it is now, with coarse labels only."""
    lines = protocol.recorded()
    methods = {protocol.method_name(*learner) for learner in seeds_script().LEARNERS} | {"MODIS label"}
    found = set(zip(lines["parameters.method"], lines["seeds.world"], strict=True))
    assert found == {(method, seed) for method in methods for seed in range(5)}
    assert len(lines) == len(found)
    assert lines["synthetic"].all()
    for name in ("steps", "crop", "batch"):
        assert set(lines[f"parameters.{name}"]) == {SMOKE[name]}
    assert lines.groupby("seeds.world")["hashes.evaluation"].nunique().tolist() == 5 * [1]


def test_shipped_bounds_are_kept_apart_from_the_methods():
    """Three bounds with fine labels, on the same worlds."""
    bounds = protocol.recorded("fine")
    assert len(bounds) == 3 * 5
    assert set(bounds["hashes.evaluation"]) == set(protocol.recorded()["hashes.evaluation"])
    assert not set(bounds["parameters.method"]) & set(protocol.recorded()["parameters.method"])


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
