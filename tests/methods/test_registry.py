"""The ladder: every method learns, none sees the reference, and a call that was stopped goes on."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from miniatures import dfc_array, lc_array, write_patch

from lcfuse_core.book import chapter, settings
from lcfuse_core.errors import MissingDataError
from lcfuse_core.methods.bench import BOTH, Bench, counted, estimated
from lcfuse_core.methods.registry import METHODS
from lcfuse_core.models.losses import HEARS_SAVANNA, LOSSES
from lcfuse_core.models.networks import NETWORKS
from lcfuse_core.scoring import ledger, protocol

SMOKE = settings.read_profile("smoke")
PARAMETERS = {name: SMOKE[name] for name in ("profile", "seed", "batch")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three training scenes, a validation patch and two test patches, all tiny."""
    root = tmp_path_factory.mktemp("ladder")
    for scene in "123":
        write_patch(root / "sen12ms", scene=scene)
    write_patch(root / "dfc2020", "validation", 1)
    for number in (1, 2):
        write_patch(root / "dfc2020", "test", number)
    return root


@pytest.fixture(scope="module")
def bench(folder):
    """What the methods share, with plans of two steps."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LCFUSE_DATA", str(folder / "data"))
    roots = {"train_root": str(folder / "sen12ms"), "data_root": str(folder / "dfc2020")}
    yield Bench(chapter.Chapter("ladder", PARAMETERS | roots | {"steps": 2, "crop": 32, "batch": 2}))
    patch.undo()


def test_the_ladder_names_what_there_is():
    """Every network, plain and weighted; every loss; those that can with Savanna as a mixture too."""
    assert {f"FCN, weighted, {loss}" for loss in LOSSES} - set(METHODS) == {"FCN, weighted, cross_entropy"}
    assert {f"FCN, weighted, {loss}, Savanna a mixture" for loss in HEARS_SAVANNA} <= set(METHODS)
    assert sum(name.endswith((", plain", ", weighted")) for name in METHODS) == 2 * (len(NETWORKS) + 1)
    for kind in protocol.NAMES:
        assert protocol.method_name(kind, 0.0) in METHODS


SLOW = pytest.mark.slow
QUICK = ("MODIS label, interpolated", "FCN, weighted, forward, matrix counted", "Fusion, at home")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else SLOW) for n in METHODS])
def test_every_method_draws_maps_in_the_legend(bench, name):
    """Of patches whose reference it does not get."""
    learned = METHODS[name](bench)
    assert learned.train_s >= 0
    assert (learned.label_regime == "coarse + fine validation") == ("counted" in name)
    results, report = protocol.evaluate_methods({name: learned.classify}, bench.rows)
    assert report.n_read == 2
    assert 0 <= results[name].scores.aa <= 1


def test_the_bench_never_opens_a_test_reference(bench, folder, tmp_path):
    """With the reference files of the test patches gone, all that a method may learn from is still there."""
    rows = bench.rows.assign(dfc=str(tmp_path / "nowhere.tif"))
    blind = Bench(replace(bench.here))
    blind.__dict__["rows"] = rows
    assert len(blind.there) == 2
    assert [patch.dfc for patch in blind.patches_there()] == [None, None]
    assert set(blind.regions) == {"test_0"}
    for name in ("FCN, cell_mean, at home", "Student of the fusion, at home", "Clusters, at home"):
        METHODS[name](blind)


def test_matrices_are_of_their_sources(bench):
    """Counted is what the validation patch says; estimated and stated come without any reference."""
    fine, coarse = dfc_array()[0], lc_array()[0]
    matrix = counted(bench)
    assert matrix.shape == estimated(bench).shape == bench.matrix.shape == (8, 9)
    water_called_crops = ((fine == 10) & (coarse == 12) | (fine == 10) & (coarse == 14)).sum()
    known = ((fine == 10) & (coarse != 15)).sum()
    assert matrix[7, 4] == pytest.approx(water_called_crops / (known + 1))


def test_what_was_made_once_is_kept(bench):
    """Networks, and copies of them at home, are the same objects when asked for again."""
    assert bench.network() is bench.network()
    patch = next(bench.patches_there())
    for each_region in (False, True):
        first, again = (bench.network_at_home(bench.network(), each_region=each_region)[0] for _ in range(2))
        np.testing.assert_array_equal(first(patch), again(patch))
    asked = []
    recall = bench.remembered("m", lambda patch: asked.append(patch.name) or np.zeros((8, 2, 2), np.float32))
    assert recall(patch) is recall(patch)
    assert asked == [patch.name]
    assert bench.there.labels.max() > 7  # Savanna is kept apart
    assert BOTH == "modis+savanna"


@pytest.fixture
def script(monkeypatch, bench):
    """The module `scripts/methods.py`, at work on the bench's tiny data."""
    import methods

    monkeypatch.setenv("LCFUSE_LEDGER", "")  # `score_seed` sets it; this takes it back

    def begin(seed, steps, small, profile):
        return chapter.Chapter("methods", bench.here.parameters | {"seed": seed})

    monkeypatch.setattr(methods, "begin", begin)
    return methods


def test_a_call_that_was_stopped_goes_on(script, tmp_path):
    """One line a method, at once; what has a line is not run again; other seeds are."""
    out = tmp_path / "lines.jsonl"
    given = {"steps": None, "small": False, "out": out}
    script.score_seed(3, names=["MODIS label"], **given)
    before = out.read_bytes()
    script.score_seed(3, names=["MODIS label", "MODIS label, interpolated"], **given)
    assert out.read_bytes().startswith(before)
    script.score_seed(4, names=["MODIS label"], **given)
    lines = ledger.read(out)
    places = list(zip(lines["parameters.method"], lines["seeds.world"], strict=True))
    assert places == [("MODIS label", 3), ("MODIS label, interpolated", 3), ("MODIS label", 4)]
    assert set(lines["label_regime"]) == {"coarse only"}
    assert (lines["cost.judge_s"] >= 0).all()
    assert lines.filter(like="scores.counts.").notna().any(axis=1).all()  # what intervals are made of
    assert (lines["scores.n_patches"] > 0).all()


def test_methods_are_chosen_by_name_or_beginning(script):
    assert script.chosen(None) == list(METHODS)
    assert script.chosen(["MODIS*"]) == [name for name in METHODS if name.startswith("MODIS")]
    with pytest.raises(SystemExit, match="no method 'FNC'"):
        script.chosen(["FNC"])


def test_the_list_is_the_ladder(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods.py", "--list"])
    script.main()
    assert capsys.readouterr().out.splitlines() == list(METHODS)


def test_regions_without_rows_are_an_error(bench, folder):
    """A folder without a reference has nothing to judge."""
    with pytest.raises(MissingDataError, match="no patch with a reference"):
        _ = Bench(chapter.Chapter("ladder", bench.here.parameters | {"data_root": str(folder / "sen12ms")})).rows
