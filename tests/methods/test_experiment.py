"""An experiment: data, networks that are stored and found again, and its ledger."""

import hashlib
import json
import shutil
from dataclasses import replace

import miniatures
import numpy as np
import pytest
import torch
from toys import relabelled

from lcfuse_core.data import packing, patches
from lcfuse_core.data.legends import IGNORE
from lcfuse_core.data.source import PatchStack
from lcfuse_core.data.streamed import PatchFiles
from lcfuse_core.errors import DataError, MissingDataError
from lcfuse_core.methods import experiment
from lcfuse_core.methods.experiment import _ALL_REGIONS, Experiment
from lcfuse_core.methods.registry import learner
from lcfuse_core.sample import world
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.scoring.identity import data_digest
from lcfuse_core.training import checkpoint, loop


@pytest.fixture
def own(tiny, tmp_path, monkeypatch):
    """The same experiment with a data folder of its own, in which nothing is stored yet."""
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))
    return replace(tiny, parameters=dict(tiny.parameters), memory={})


def any_patch(here):
    return patches.read_patch(next(patches.index(here.train_root).itertuples()))


def perfect(here):
    """The result of a map that equals the reference."""
    by_name = {patch.name: patch.dfc for patch in patches.iter_patches(here.rows, patches.Report(), protocol.NEED)}
    results, _ = protocol.evaluate_methods({"perfect": lambda patch: by_name[patch.name]}, here.rows)
    return results["perfect"]


def change_last_byte(path):
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def test_parameters_come_from_the_profile_and_changes_win():
    plain = Experiment.from_profile("compare", seed=3)
    assert plain.parameters == {"profile": "smoke", "steps": 400, "crop": 64, "batch": 16, "seed": 3}
    changed = Experiment.from_profile("compare", "full", steps=5, data_root="", train_root=None, world=0)
    assert changed.parameters == {
        "profile": "full", "steps": 5, "crop": 256, "batch": 32, "seed": 0,
        "train_root": "data/sen12ms", "data_root": "", "world": 0,
    }  # fmt: skip


def test_the_ledger_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "other"))
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    assert Experiment("a", {}).ledger_path == tmp_path / "other" / "ledger.jsonl"
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "mine.jsonl"))
    assert Experiment("a", {}).ledger_path == tmp_path / "mine.jsonl"


@pytest.mark.parametrize(("further", "made", "training"), [({}, 5, 5), ({"world": 0}, 0, 5)])
def test_the_sample_is_made_in_the_data_folder(monkeypatch, tmp_path, further, made, training):
    """By default the world of the training's seed."""
    calls = []
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setattr(world, "make_world", lambda root, plan: calls.append((root, plan)) or root)
    here = Experiment("sen12ms", {"seed": 5, **further})
    folder = tmp_path / f"world-{made}"
    assert (here.train_root, here.on_sample, here.origin) == (folder / "sen12ms", True, "synthetic sample")
    assert calls == [(folder, world.WorldPlan(seed=made))]
    assert here.seeds == {"world": made, "training": training}
    assert here.plan("fcn", 0.5).seed == training


def test_own_data_are_not_called_synthetic(own):
    assert (own.on_sample, own.origin, set(own.roots)) == (False, "your data", {"train", "evaluation"})
    assert set(Experiment("coarse_labels", {"seed": 0, "data_root": "x"}).roots) == {"evaluation"}


def test_training_and_held_out_patches_share_no_scene(tiny):
    learn, held_out = tiny.training_source(), tiny.held_out_source()
    assert (len(learn), len(held_out)) == (2, 1)
    assert not set(learn.names) & set(held_out.names)


def test_fine_labels_of_the_training_scenes_are_read_from_another_folder(folder, tmp_path, own):
    root = shutil.copytree(folder / "sen12ms", tmp_path / "sen12ms")
    for scene in "123":
        miniatures.write_patch(tmp_path / "truth", "truth", scene=scene)
    own.parameters["train_root"] = str(root)
    coarse, fine = own.training_source("modis"), own.training_source("fine")
    assert coarse.names == fine.names
    assert (coarse.labels != fine.labels).any()


def test_the_same_network_is_trained_in_memory_from_files_and_from_packed_scenes(own, tmp_path, monkeypatch):
    """Also by fine-tuning on the target regions."""
    plan, packs, digests, kinds = own.plan("fcn", 0.5), tmp_path / "packs", [], []
    packing.pack(patches.index(own.train_root), packs)
    for memory, root in (("1", own.train_root), ("0", own.train_root), ("0", packs)):
        monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / f"data-{len(digests)}"))
        monkeypatch.setenv("LCFUSE_MEMORY_GB", memory)
        here = Experiment("compare", own.parameters | {"train_root": str(root)})
        run = here.trained(plan)
        here.adapted_network(run, steps=2)
        (tuned,) = (value[_ALL_REGIONS] for value in here.memory.values() if isinstance(value, dict))
        digests.append([checkpoint.network_digest(one.network) for one in (run, tuned)])
        kinds.append({type(one) for one in (here.training_source(), here.target_source)})
    assert kinds == [{PatchStack}, {PatchFiles}, {PatchFiles}]
    assert digests[0] == digests[1] == digests[2]


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
    other = shutil.copytree(folder / "sen12ms", tmp_path / "sen12ms")
    own.parameters["train_root"] = str(other)
    own.trained(plan)
    assert trained == []  # the same contents
    change_last_byte(miniatures.file_of(other, "sen12ms", "lc"))
    own = replace(own, memory={})  # an experiment reads the identity of its data once
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
    change_last_byte(miniatures.file_of(other, "test", "s2"))
    own.parameters["data_root"] = str(other)
    assert len(names | {own.adapted_name(plan, plan)}) == 4


def test_a_given_checkpoint_takes_the_place_of_the_network_of_its_kind(own, tmp_path):
    """Fine-tuning starts from it, with the steps of the experiment; other kinds are trained."""
    longer = loop.train(own.training_source(), replace(own.plan("fcn", 0.5), steps=4), progress=False)
    file = checkpoint.save_checkpoint(longer, tmp_path / "given.safetensors")
    here = Experiment("compare", own.parameters | {"checkpoint": str(file)})
    assert here.network().plan.steps == 4
    assert here.network(power=0.0).plan.steps == 2
    names = [one.adapted_name(one.network(), one.plan("fcn", 0.5)) for one in (own, here)]
    assert names[0] != names[1]
    _, seconds = here.adapted_network(here.network())
    assert seconds > 0
    (tuned,) = (value[_ALL_REGIONS] for value in here.memory.values() if isinstance(value, dict))
    assert tuned.plan.steps == round(2.25 * 2)
    learned = learner("fcn", 0.5).learn(here)
    assert learned.hashes == {"checkpoint": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert learned.parameters["steps"] == 4


def test_a_region_without_labels_leaves_the_network(own):
    """From fresh weights that is an error."""
    run, patch = own.network(), any_patch(own)
    own.target_source = relabelled(own.target_source, torch.full_like(own.target_source.labels, IGNORE))
    predict, _ = own.adapted_network(run)
    np.testing.assert_array_equal(predict(patch), loop.predict(run, patch))
    with pytest.raises(DataError, match="no labelled pixel"):
        own.adapted_network(run.plan)


def test_models_of_regions_predict_their_own_patches(tiny):
    patch = patches.read_patch(tiny.rows.iloc[0])
    assert tiny.by_region({"test_0": "own"}, lambda model, patch: (model, patch.name))(patch) == ("own", patch.name)
    first, again = (tiny.adapted_network(tiny.network(), each_region=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first(patch), again(patch))
    assert tiny.network() is tiny.network()


def test_predictions_are_shared_for_one_patch_only(tiny):
    """A copy with the same name, such as an augmented patch, is another patch."""
    called, patch = [], any_patch(tiny)
    shared = tiny.shared("m", lambda patch: called.append(patch) or np.zeros((8, 2, 2), np.float32))
    assert shared(patch) is shared(patch)
    shared(replace(patch))
    shared(patch)
    assert len(called) == 3
    assert called[0] is called[2] is patch


def test_a_record_has_parameters_data_and_scores(own):
    own.record("perfect", perfect(own), regime="transductive", cost={"train_s": 1.5}, hashes={"checkpoint": "abc"})
    row = json.loads(own.ledger_path.read_text())
    assert (row["kind"], row["parameters"]["method"], row["label_regime"]) == ("compare", "perfect", "coarse only")
    assert (row["regime"], row["split"]) == ("transductive", "test")
    assert (row["scores"]["aa"], row["scores"]["n_patches"]) == (1, 2)
    hashes = {"train": data_digest(own.train_root), "evaluation": data_digest(own.data_root), "checkpoint": "abc"}
    assert row["hashes"] == hashes
    assert (row["synthetic"], row["data_kind"], row["cost"]["train_s"]) == (False, "unverified", 1.5)
    own.record("agreement", perfect(own).scores)
    assert ledger.read(own.ledger_path)["split"].tolist() == ["test", ""]
