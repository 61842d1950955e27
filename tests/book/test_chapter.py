"""What chapters share: set-up, trained networks that are found again, glue, records, provenance."""

import dataclasses

import pytest

from lcfuse_core.book import chapter, damage, settings
from lcfuse_core.data import patches
from lcfuse_core.data.sample import world
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.scoring import ledger, protocol, scores
from lcfuse_core.training import checkpoint


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    root = tmp_path_factory.mktemp("chapter") / "world-3"
    return world.make_world(root, world.WorldPlan(seed=3, n_train=2, n_validation=1, n_test=1), workers=1)


@pytest.fixture
def here(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    roots = {"data_root": str(sample / "dfc2020"), "train_root": str(sample / "sen12ms")}
    return chapter.begin("evaluation", {"profile": "smoke", "seed": 3, "steps": 2, "batch": 2, **roots})


def test_begin_takes_parameters_from_a_notebook_and_nothing_else():
    """What IPython, imports and private names leave in the namespace is no parameter."""
    namespace = {"seed": 4, "In": ["x"], "_i": "y", "patches": patches, "plot": print, "Out": {}, "profile": "smoke"}
    here = chapter.begin("coarse_labels", namespace)
    assert here.parameters == {"seed": 4, "profile": "smoke"}


def test_begin_stops_on_a_name_that_papermill_only_warns_of():
    with pytest.raises(ParameterError, match=r"parameters of coarse_labels: found unknown name sead"):
        chapter.begin("coarse_labels", {"seed": 0, "sead": 1})


def test_begin_writes_the_values_of_the_profile_back(monkeypatch):
    smoke = chapter.settings.read_profile("smoke")
    profiles = {"smoke": smoke, "full": smoke | {"profile": "full", "steps": 77}}
    monkeypatch.setattr(chapter.settings, "read_profile", lambda name: profiles[name])
    namespace = {"profile": "full", "steps": smoke["steps"]}
    chapter.begin("training", namespace)
    assert namespace["steps"] == 77


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    assert chapter.data_folder() == tmp_path / "elsewhere"
    assert chapter.ledger_path() == tmp_path / "elsewhere" / "ledger.jsonl"
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "mine.jsonl"))
    assert chapter.ledger_path() == tmp_path / "mine.jsonl"


def test_the_sample_is_made_once_where_the_data_live(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setattr(world, "make_world", lambda root, plan: calls.append((root, plan)) or root)
    assert chapter.Chapter("sen12ms", {"seed": 5}).train_root == tmp_path / "world-5" / "sen12ms"
    assert calls == [(tmp_path / "world-5", world.WorldPlan(seed=5))]


@pytest.mark.slow
def test_a_trained_network_is_found_again_and_another_plan_is_not(here, monkeypatch):
    """The second call trains nothing; a changed plan, data or training code does."""
    plan = checkpoint.TrainPlan(steps=2, batch=2, crop=32, device="cpu")
    first = here.trained(plan)
    trained = []
    monkeypatch.setattr(chapter.training, "train", lambda *a, **k: trained.append(1) or first)
    again = here.trained(plan)
    assert trained == []
    for name, value in first.network.state_dict().items():
        assert (value == again.network.state_dict()[name]).all()
    here.trained(dataclasses.replace(plan, seed=1))
    assert len(trained) == 1
    monkeypatch.setattr(chapter, "_code_digest", lambda: "other code")
    here.trained(plan)
    assert len(trained) == 2
    monkeypatch.setattr(chapter, "data_digest", lambda root: "other data")
    here.trained(plan)
    assert len(trained) == 3


def test_fine_labels_of_the_training_scenes_are_kept_apart(here):
    coarse, fine = here.training_stack("modis"), here.training_stack("fine")
    assert coarse.names == fine.names
    assert (coarse.labels != fine.labels).any()


def test_a_record_says_what_was_run_on_what(here):
    counts = scores.confusion(*([patches.read_patch(patches.index(here.data_root).iloc[0], ("dfc",)).dfc] * 2))
    here.record("perfect", scores.summarise(counts), cost={"train_s": 1.5})
    row = ledger.read(chapter.ledger_path()).iloc[0]
    assert row["kind"] == "evaluation"
    assert row["parameters.method"] == "perfect"
    assert row["scores.aa"] == 1
    assert bool(row["synthetic"]) is True
    assert row["label_regime"] == "coarse only"
    assert row["hashes.train"] == world.read_world(here.train_root.parent)["sha256"]
    assert row["cost.train_s"] == 1.5


def test_a_record_takes_further_scores_and_hashes(here):
    counts = scores.confusion(*([patches.read_patch(patches.index(here.data_root).iloc[0], ("dfc",)).dfc] * 2))
    perfect = scores.summarise(counts)
    here.record("perfect", perfect, hashes={"checkpoint": "abc"}, more={"near_borders": {"aa": 0.5}, "n_patches": 1})
    row = ledger.read(chapter.ledger_path()).iloc[0]
    assert (row["hashes.checkpoint"], row["scores.near_borders.aa"], row["scores.n_patches"]) == ("abc", 0.5, 1)
    assert row["hashes.train"] == world.read_world(here.train_root.parent)["sha256"]


def test_what_was_not_verified_is_not_called_real(tmp_path, here, monkeypatch):
    """Real are folders that `data fetch` vouches for, all of them; what is partly synthetic is synthetic."""
    mine, theirs = tmp_path / "mine" / "dfc2020", tmp_path / "data" / "sen12ms"
    assert chapter._data_kind([mine]) == "unverified"
    monkeypatch.setattr(chapter.fetched, "vouched_for", lambda folder: ["an item"] * (folder == theirs))
    assert chapter._data_kind([theirs]) == "real"
    assert chapter._data_kind([theirs, mine]) == "unverified"
    assert chapter._data_kind([theirs, here.data_root]) == "synthetic"


def test_the_hash_of_a_checkpoint_is_that_of_its_file(here, monkeypatch, tmp_path):
    assert here.checkpoint_hash("forest", 0.0) == {}
    here.parameters["crop"] = 32
    assert here.checkpoint_hash("fcn", 0.0) == {}  # not trained yet
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    monkeypatch.setattr(chapter, "_checkpoint", lambda name: file)
    assert here.checkpoint_hash("fcn", 0.0)["checkpoint"].startswith("ba7816bf")  # SHA-256 of "abc", FIPS 180-2


def test_real_data_are_not_called_synthetic(tmp_path, sample):
    """A digest of other data notices a file that is missing or of another size."""
    folder = tmp_path / "real"
    folder.mkdir()
    (folder / "a.tif").write_bytes(b"12")
    before = chapter.data_digest(folder)
    (folder / "a.tif").write_bytes(b"123")
    assert chapter.data_digest(folder) != before
    mine = chapter.Chapter("coarse_labels", {"profile": "smoke", "seed": 0, "data_root": str(folder)})
    assert mine.roots == {"evaluation": folder}
    assert (mine.on_sample, mine.origin) == (False, "your data")
    assert chapter.Chapter("evaluation", {"seed": 0, "data_root": ""}).origin == "synthetic sample"


def judged_in(folder):
    """A chapter that judges on the patches of *folder*."""
    return chapter.Chapter("evaluation", {"profile": "smoke", "seed": 3, "data_root": str(folder)})


def test_our_place_is_the_most_varied_patch_that_is_judged(here):
    """Of the test split, by its MODIS label; the second one comes next; its reference is there to be looked at."""
    rows = protocol.by_variety(protocol.evaluation_patches(here.data_root))
    assert set(rows["split"]) == {"test"}
    assert [here.our_place(k).name for k in (0, 1)] == [patches.patch_name(row) for row in rows[:2].itertuples()]
    assert here.our_place().dfc is not None
    with pytest.raises(ParameterError, match=rf"place: found {len(rows)}, expected 0 to {len(rows) - 1}"):
        here.our_place(len(rows))


def test_our_place_is_the_same_in_a_chapter_that_judges_nothing(here, sample, monkeypatch):
    monkeypatch.setattr(chapter.Chapter, "sample", sample)
    assert damage.is_same(chapter.Chapter("reruns", {"seed": 3}).our_place(), here.our_place())


def test_our_place_where_there_is_little(here, sample, tmp_path):
    """One patch; no test split; no reference at all; nothing to look at."""
    table = patches.index(here.data_root)
    validation = table[table["split"] == "validation"]
    one = damage.copy_patches(table[table["split"] == "test"].head(1), tmp_path / "one")
    assert judged_in(tmp_path / "one").our_place().name == patches.patch_name(one.iloc[0])
    damage.copy_patches(validation, tmp_path / "validation")
    most = patches.patch_name(protocol.by_variety(validation).iloc[0])
    assert judged_in(tmp_path / "validation").our_place().name == most
    assert judged_in(sample / "sen12ms").our_place().dfc is None
    damage.copy_patches(one.assign(lc=None), tmp_path / "bare")
    with pytest.raises(MissingDataError, match="no patch with a reference"):
        judged_in(tmp_path / "bare").our_place()


def test_a_chapter_without_training_parameters_asks_for_the_small_networks():
    smoke = settings.read_profile("smoke")
    told = {name: smoke[name] for name in settings.names_of("evaluation")}
    plain = chapter.Chapter("reproduction", {"profile": "full", "seed": 0})
    assert plain.plan("fcn", 0.5) == chapter.Chapter("evaluation", told).plan("fcn", 0.5)


def test_glue_leaves_what_the_book_quotes(here, monkeypatch):
    """The output has the mime type and the metadata by which MyST-NB finds a glued value."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    here.glue("aa", 45.678, ".1f")
    data, options = shown[0]
    assert data == {"application/papermill.record/text/plain": "'45.7'"}
    assert options["metadata"]["scrapbook"] == {"name": "aa", "mime_prefix": "application/papermill.record/"}
    assert options["raw"] is True


def test_provenance_names_parameters_data_and_versions_and_no_folder(here, sample):
    box = here.provenance().data
    for expected in ("evaluation, profile smoke", "seed\u00a0=\u00a03", "lcfuse_core", "torch", " MB"):
        assert expected in box
    assert world.read_world(sample)["sha256"][:16] in box
    assert "<script" not in box
