"""An experiment: data, networks that are stored and found again, and its ledger."""

import json
import shutil
from dataclasses import replace

import miniatures
import numpy as np
import pytest

from lcfuse_core.data import patches
from lcfuse_core.data.identity import data_digest
from lcfuse_core.data.legends import DFC2020
from lcfuse_core.data.sample import world
from lcfuse_core.errors import MissingDataError
from lcfuse_core.methods import experiment
from lcfuse_core.methods.experiment import BOTH, Experiment
from lcfuse_core.scoring import ledger, protocol, scores
from lcfuse_core.training import loop


@pytest.fixture
def own(folder, tmp_path, monkeypatch):
    """An experiment with a data folder of its own."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    roots = {"train_root": str(folder / "sen12ms"), "data_root": str(folder / "dfc2020")}
    return Experiment.from_profile("compare", steps=2, crop=32, batch=2, **roots)


def any_patch(here):
    return patches.read_patch(next(patches.index(here.train_root).itertuples()))


def perfect_scores(here):
    dfc = patches.read_patch(here.rows.iloc[0], ("dfc",)).dfc
    return scores.summarise(scores.confusion(dfc, dfc))


def test_parameters_come_from_the_profile_and_changes_win():
    plain = Experiment.from_profile("compare", seed=3)
    assert plain.parameters == {"profile": "smoke", "steps": 400, "crop": 64, "batch": 16, "seed": 3}
    changed = Experiment.from_profile("compare", "full", steps=5, data_root="", train_root=None)
    assert changed.parameters == {
        "profile": "full", "steps": 5, "crop": 256, "batch": 32, "seed": 0,
        "train_root": "data/sen12ms", "data_root": "",
    }  # fmt: skip


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "other"))
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    assert Experiment("a", {}).data_folder == tmp_path / "other"
    assert Experiment("a", {}).ledger_path == tmp_path / "other" / "ledger.jsonl"
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "mine.jsonl"))
    assert Experiment("a", {}).ledger_path == tmp_path / "mine.jsonl"


def test_the_sample_is_made_in_the_data_folder(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setattr(world, "make_world", lambda root, plan: calls.append((root, plan)) or root)
    here = Experiment("sen12ms", {"seed": 5})
    assert (here.train_root, here.on_sample, here.origin) == (
        tmp_path / "world-5" / "sen12ms",
        True,
        "synthetic sample",
    )
    assert calls == [(tmp_path / "world-5", world.WorldPlan(seed=5))]


def test_own_data_are_not_called_synthetic(own):
    assert (own.on_sample, own.origin) == (False, "your data")
    assert set(own.roots) == {"train", "evaluation"}
    assert set(Experiment("coarse_labels", {"seed": 0, "data_root": "x"}).roots) == {"evaluation"}


def test_training_and_held_out_patches_share_no_scene(tiny):
    learn, held_out = tiny.training_stack(), tiny.held_out_stack()
    assert (len(learn), len(held_out)) == (2, 1)
    assert not set(learn.names) & set(held_out.names)
    assert [patch.name for patch in tiny.held_out] == list(held_out.names)


def test_fine_labels_of_the_training_scenes_are_read_from_another_folder(folder, tmp_path, own):
    root = shutil.copytree(folder / "sen12ms", tmp_path / "sen12ms")
    for scene in "123":
        miniatures.write_patch(tmp_path / "truth", "truth", scene=scene)
    own.parameters["train_root"] = str(root)
    coarse, fine = own.training_stack("modis"), own.training_stack("fine")
    assert coarse.names == fine.names
    assert (coarse.labels != fine.labels).any()


def test_the_reference_of_the_test_split_is_not_opened(tiny, tmp_path):
    """With its files gone, everything that a method may learn from is still there."""
    blind = replace(tiny, memory={})
    blind.rows = tiny.rows.assign(dfc=str(tmp_path / "nowhere.tif"))
    assert len(blind.target_stack) == 2
    assert [patch.dfc for patch in blind.target_patches()] == [None, None]
    assert set(blind.target_regions) == {"test_0"}
    assert blind.target_stack.labels.max() > 7  # Savanna is kept as a class of its own
    assert BOTH == "modis+savanna"


def test_regions_without_a_reference_are_an_error(tiny, folder):
    with pytest.raises(MissingDataError, match="no patch with a reference"):
        _ = Experiment("compare", tiny.parameters | {"data_root": str(folder / "sen12ms")}).rows


def test_a_chapter_without_training_parameters_uses_the_small_networks():
    full = Experiment("reproduction", {"profile": "full", "seed": 0})
    assert full.plan("fcn", 0.5) == Experiment.from_profile("evaluation").plan("fcn", 0.5)


def test_a_trained_network_is_found_again_unless_an_input_changed(own, folder, tmp_path, monkeypatch):
    """Plan, code, and contents of the data: a copy in which one label differs is trained on anew."""
    plan, trained = own.plan("fcn", 0.5), []
    first = own.trained(plan)
    assert [line["step"] for line in first.history] == [1, 2]
    assert all(0 <= line["aa"] <= 1 for line in first.history)
    monkeypatch.setattr(loop, "train", lambda *a, **k: trained.append(1) or first)
    again = own.trained(plan)
    np.testing.assert_array_equal(loop.classify(first, any_patch(own)), loop.classify(again, any_patch(own)))
    assert trained == []
    other = shutil.copytree(folder / "sen12ms", tmp_path / "sen12ms")
    own.parameters["train_root"] = str(other)
    own.trained(plan)
    assert trained == []  # the same contents
    path = miniatures.file_of(other, "sen12ms", "lc")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    own.trained(plan)
    assert len(trained) == 1
    monkeypatch.setattr(experiment._runtime, "code_digest", lambda *modules: "other code")
    own.trained(plan)
    assert len(trained) == 2


@pytest.mark.parametrize("change", [{"steps": 3}, {"seed": 1}, {"batch": 3}, {"loss": "bag"}])
def test_another_plan_is_another_network(own, change):
    before = own.checkpoint_name(own.plan("fcn", 0.5))
    own.parameters |= change
    assert own.checkpoint_name(own.plan("fcn", 0.5)) != before


def test_adapted_networks_depend_on_the_target_regions(own, folder, tmp_path):
    plan = own.plan("fcn", 0.5)
    other = shutil.copytree(folder / "dfc2020", tmp_path / "dfc2020")
    names = {own.adapted_name(plan, plan), own.adapted_name(None, plan), own.adapted_name(plan, plan, "test_0")}
    path = miniatures.file_of(other, "test", "s2")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    own.parameters["data_root"] = str(other)
    assert len(names | {own.adapted_name(plan, plan)}) == 4


def test_networks_are_made_once(tiny):
    assert tiny.network() is tiny.network()
    patch = next(tiny.target_patches())
    for each_region in (False, True):
        first, again = (tiny.adapted_network(tiny.network(), each_region=each_region)[0] for _ in range(2))
        np.testing.assert_array_equal(first(patch), again(patch))
    called = []
    cached = tiny.cached("m", lambda patch: called.append(patch.name) or np.zeros((8, 2, 2), np.float32))
    assert cached(patch) is cached(patch)
    assert called == [patch.name]


@pytest.mark.parametrize("learner", protocol.NAMES)
def test_every_learner_draws_maps_in_the_legend(tiny, learner):
    draw, train_s = tiny.learned(learner, protocol.PLAIN)
    codes = draw(any_patch(tiny))
    assert (codes.shape, codes.dtype) == ((miniatures.ROWS, miniatures.COLS), np.uint8)
    DFC2020.check(codes)
    assert train_s > 0


def test_the_hash_of_a_checkpoint_is_that_of_its_file(own):
    assert own.checkpoint_hash("forest", 0.0) == {} == own.checkpoint_hash("fcn", 0.0)  # not trained yet
    path = own.checkpoint_path(own.checkpoint_name(own.plan("fcn", 0.0)))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    assert own.checkpoint_hash("fcn", 0.0)["checkpoint"].startswith("ba7816bf")  # SHA-256 of "abc", FIPS 180-2


def test_a_record_has_parameters_data_and_scores(own):
    draw = {"label": protocol.modis_label_map}
    results, _ = protocol.evaluate_methods(draw, protocol.evaluation_patches(own.data_root))
    given = {"regime": "transductive", "cost": {"train_s": 1.5}, "hashes": {"checkpoint": "abc"}}
    own.record("perfect", results["label"], **given)
    row = json.loads(own.ledger_path.read_text())
    assert (row["kind"], row["parameters"]["method"], row["label_regime"]) == ("compare", "perfect", "coarse only")
    assert (row["split"], row["regime"]) == ("test", "transductive")
    assert row["scores"]["n_patches"] == len(own.rows)
    assert row["scores"]["aa"] == results["label"].scores.aa
    assert list(row["scores"]["counts"]) == list(row["scores"]["regions"])
    assert row["hashes"] == {
        "train": data_digest(own.train_root),
        "evaluation": data_digest(own.data_root),
        "checkpoint": "abc",
    }
    assert (row["synthetic"], row["data_kind"], row["cost"]["train_s"]) == (False, "unverified", 1.5)


def test_relabelled_data_have_another_identity_in_the_ledger(own, folder, tmp_path):
    own.record("perfect", perfect_scores(own))
    other = shutil.copytree(folder / "dfc2020", tmp_path / "dfc2020")
    path = miniatures.file_of(other, "test", "dfc")
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    own.parameters["data_root"] = str(other)
    own.record("perfect", perfect_scores(own))
    lines = ledger.read(own.ledger_path)
    assert lines["hashes.train"].nunique() == 1
    assert lines["hashes.evaluation"].nunique() == 2
