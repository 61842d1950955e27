"""The commands `evaluate` and `compare`: lines are appended, a stopped call continues, wrong names stop it."""

import hashlib
import os
import shutil
import sys
from dataclasses import replace

import pytest
from miniatures import s2_array, write_patch

from lcfuse_core import __main__ as shell
from lcfuse_core.data.bands import B10
from lcfuse_core.errors import DataError
from lcfuse_core.methods import commands
from lcfuse_core.methods.registry import BOUNDS, METHODS, Method
from lcfuse_core.sample import world
from lcfuse_core.scoring import ledger, protocol
from lcfuse_core.training.checkpoint import LAST


def compare(folder, out, *arguments):
    sizes = ["--steps", "2", "--crop", "32", "--batch", "2"]
    roots = ["--train-root", str(folder / "sen12ms"), "--data-root", str(folder / "dfc2020")]
    return shell.main(["compare", *sizes, *roots, "--out", str(out), *arguments])


def test_a_stopped_call_continues(tiny, folder, tmp_path, capsys):
    """One line per method, at once; what has a line is not run again; other seeds and data are."""
    out = tmp_path / "lines.jsonl"
    assert compare(folder, out, "--seeds", "3", "--only", "MODIS label") == 0
    before = out.read_bytes()
    assert compare(folder, out, "--seeds", "3", "--only", "MODIS label", "MODIS label, i*") == 0
    assert out.read_bytes().startswith(before)
    assert compare(folder, out, "--seeds", "4", "--only", "MODIS label") == 0
    lines = ledger.read(out)
    found = list(zip(lines["parameters.method"], lines["seeds.world"], strict=True))
    assert found == [("MODIS label", 3), ("MODIS label, interpolated", 3), ("MODIS label", 4)]
    assert set(lines["label_regime"]) == {"coarse only"}
    assert (set(lines["regime"]), set(lines["split"])) == ({"inductive"}, {"test"})
    assert lines.filter(like="scores.counts.").notna().any(axis=1).all()  # for intervals
    assert (lines["scores.n_patches"] == 2).all()
    printed = capsys.readouterr().out
    assert "seed 4: AA" in printed
    assert "2 patches read (0 of them repaired), 0 skipped\n1 methods in one pass: " in printed
    assert compare(folder, out, "--seeds", "4", "--only", "MODIS label", "--data-root", str(folder / "copy")) == 2


def test_methods_share_one_pass_over_the_patches(tiny, tmp_path, monkeypatch, capsys):
    """Whatever their number; one that cannot learn is reported, and the others are recorded."""
    tables, evaluate = [], protocol.evaluate_methods
    monkeypatch.setattr(protocol, "evaluate_methods", lambda *a, **k: tables.append(set(a[0])) or evaluate(*a, **k))

    def fail(experiment):
        raise DataError("labels", found="none", expected="some", do="Label.")

    names = ["MODIS label", "Random forest, weighted, target regions", "Fusion, target regions"]
    methods = commands._chosen(names) | {"broken": Method(fail)}
    assert commands._score(tiny, methods, tmp_path / "lines.jsonl")
    assert tables == [set(names)]
    assert "error: broken: labels: found none" in capsys.readouterr().err
    lines = ledger.read(tmp_path / "lines.jsonl").set_index("parameters.method")
    assert lines["regime"].to_dict() == dict(zip(names, ["inductive", "transductive", "transductive"], strict=True))
    assert not commands._score(tiny, commands._chosen(names[:1]), tmp_path / "lines.jsonl")


def evaluate(folder, out, *arguments):
    roots = ["--train-root", str(folder / "sen12ms"), "--data", str(folder / "dfc2020")]
    return shell.main(["evaluate", *roots, "--ledger", str(out), *arguments])


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_processes_of_torchrun_are_refused(command, tmp_path, monkeypatch, capsys):
    """Each would write the same lines; an environment of one process is accepted."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shell.main([command]) == 2
    assert f"{command}: found 2 processes of torchrun, expected one. Start it without" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert shell.main([command]) == 2
    assert "torchrun" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def run(folder):
    """The folder of a network that `train` wrote."""
    values = {"steps": 3, "crop": 32, "batch": 2, "seed": 7, "class_weight_power": 0.0, "report_every": 3}
    words = [word for name, value in values.items() for word in ("-p", name, str(value))]
    assert shell.main(["train", str(folder / "sen12ms"), "--out", str(folder / "run"), *words]) == 0
    return folder / "run"


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_trained_network_is_evaluated(folder, run, tmp_path, capsys, is_folder):
    """What `train` wrote: its line has its plan, its seed and the hash of its file, beside that of the MODIS label."""
    out, file = tmp_path / "lines.jsonl", run / LAST
    assert evaluate(folder, out, "--checkpoint", str(run if is_folder else file)) == 0
    lines = ledger.read(out)
    assert lines["parameters.method"].tolist() == ["MODIS label", "FCN, plain"]
    line = lines.iloc[1]
    assert (line["kind"], line["profile"], line["seeds.training"], line["split"]) == ("evaluation", "smoke", 7, "test")
    assert [line[f"parameters.{name}"] for name in ("steps", "crop", "batch", "loss")] == [3, 32, 2, "cross_entropy"]
    assert line["hashes.checkpoint"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "better-than-modis" in capsys.readouterr().out  # a claim about this method, with its verdict


def test_a_network_of_another_level_is_refused(folder, run, tmp_path, capsys):
    """A network that was trained on L1C is not applied to surface reflectance, whose B10 is 0."""
    shutil.copytree(folder / "sen12ms", tmp_path / "sen12ms")
    for number in (1, 2):
        s2 = s2_array()
        s2[B10] = 0
        write_patch(tmp_path / "dfc2020", "test", number, s2=s2)
    assert evaluate(tmp_path, tmp_path / "lines.jsonl", "--checkpoint", str(run)) == 2
    assert "found Sentinel-2 L2A" in capsys.readouterr().err


def test_a_method_is_evaluated(tiny, folder, tmp_path):
    out = tmp_path / "lines.jsonl"
    assert evaluate(folder, out, "--method", "MODIS label, interpolated", "--seed", "3") == 0
    assert ledger.read(out)["parameters.method"].tolist() == ["MODIS label", "MODIS label, interpolated"]


def test_bounds_are_evaluated_on_their_own_patches(tiny, monkeypatch):
    """The network of the validation patches on every fourth of them; the others on the test split."""
    rows = tiny.rows
    monkeypatch.setattr(protocol, "evaluation_patches", lambda root, split="test": rows)
    learned = BOUNDS["DeepLabv3+, supervised, source regions"].learn(tiny)
    assert learned.rows is None
    held_out = BOUNDS["DeepLabv3+, supervised, target regions"].learn(tiny)
    assert held_out.rows.index.tolist() == []  # of two patches none is the fourth


def test_worlds_and_seeds_are_crossed(tmp_path, monkeypatch):
    """Each training on each world; without worlds a seed is both."""
    seen, out = [], ["--out", str(tmp_path / "x"), "--only", "MODIS label"]
    monkeypatch.setattr(commands, "_score_apart", lambda command, seeds: seen.append(seeds) or "done")
    assert shell.main(["compare", *out, "--worlds", "0", "1", "--seeds", "2", "1"]) == 0
    assert sorted(seen) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    seen.clear()
    assert shell.main(["compare", *out, "--seeds", "2", "1"]) == 0
    assert sorted(seen, key=str) == [(None, 1), (None, 2)]
    experiments = []
    monkeypatch.setattr(commands, "_score", lambda experiment, *more: bool(experiments.append(experiment.seeds)))
    assert shell.main(["compare", *out, "--worlds", "4", "--seeds", "2"]) == 0
    assert experiments == [{"world": 4, "training": 2}]


@pytest.mark.slow
def test_several_seeds_run_in_processes_of_their_own(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))
    out = tmp_path / "lines.jsonl"
    assert compare(folder, out, "--seeds", "1", "2", "--jobs", "2", "--only", "MODIS label") == 0
    assert sorted(ledger.read(out)["seeds.world"]) == [1, 2]
    assert "seed 1" in capsys.readouterr().out
    ends = [sys.executable, "-S", "-c", "raise SystemExit('error: none: found')"]
    monkeypatch.setattr(commands, "_command", lambda options, names: ends)
    assert compare(folder, out, "--seeds", "1", "2", "--only", "MODIS label") == 1
    assert "none: found" in capsys.readouterr().err


def test_methods_are_chosen_by_name_or_beginning(capsys):
    assert commands._chosen(None) == METHODS
    assert list(commands._chosen(["MODIS*"])) == [name for name in METHODS if name.startswith("MODIS")]
    assert commands._chosen(["*supervised*"]) == BOUNDS
    assert shell.main(["compare", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [*METHODS, *BOUNDS]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", [], "found not one of the two, expected a checkpoint or a method"),
        ("evaluate", ["--checkpoint", "x", "--method", "FCN, plain"], "found not one of the two"),
        ("evaluate", ["--checkpoint", "x"], "found no --train-root"),
        ("evaluate", ["--checkpoint", "x", "--train-root", ""], "x: found no such file, expected a checkpoint"),
        ("evaluate", ["--method", "FNC"], "method: found 'FNC', expected one of `compare --list`"),
        ("compare", ["--out", "x", "--only", "FNC"], "found 'FNC', expected one of `compare --list`"),
        ("compare", ["--only", "MODIS label"], "no --out"),
        ("compare", ["--out", "x", "--jobs", "0"], "found 0, expected 1 or more"),
        ("compare", ["--out", "x", "--profile", "huge"], "expected one of smoke, colab, full"),
        ("compare", ["--out", "x", "--worlds", "4", "--data-root", "y"], "--worlds: found other data"),
    ],
)
def test_wrong_options_are_refused(tmp_path, monkeypatch, capsys, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert shell.main([command, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_the_paths_of_a_profile_are_those_of_the_current_folder(tmp_path, monkeypatch):
    """Also for workers of a cluster, which run elsewhere; what is given wins, also if it is empty."""
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "_score", lambda experiment, *more: bool(seen.append(experiment.parameters)))
    arguments = ["compare", "--profile", "colab", "--seeds", "0", "--out", "x", "--steps", "400"]
    for more in ([], ["--data-root", ""]):
        assert shell.main(arguments + more) == 0
    wanted = {"profile": "colab", "steps": 400, "crop": 128, "batch": 32, "seed": 0}
    wanted |= {"train_root": str(tmp_path / "data/sen12ms"), "data_root": str(tmp_path / "data/dfc2020")}
    assert seen == [wanted, wanted | {"data_root": ""}]


def test_a_small_world_is_made_to_try_a_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    out, plans, make_world = tmp_path / "lines.jsonl", [], world.make_world

    def make_smaller(root, plan):
        plans.append(plan)
        return make_world(root, replace(plan, n_train=1, n_test=1))

    monkeypatch.setattr(world, "make_world", make_smaller)
    assert shell.main(["compare", "--small", "--seeds", "4", "--only", "MODIS label", "--out", str(out)]) == 0
    assert plans == [world.WorldPlan(4, n_train=4, n_validation=1, n_test=2)]
    small = world.read_world(tmp_path / "small" / "world-4")
    assert ledger.read(out)["hashes.evaluation"].tolist() == [small["sha256"]]


def test_the_shipped_ledger_of_the_seeds_is_complete():
    """Every learner and bound with five seeds, on the same worlds, with the profile smoke of today."""
    methods = {protocol.method_name(kind, power) for kind in protocol.NAMES for power in (0.0, 0.5)} | {"MODIS label"}
    lines, bounds = protocol.recorded_seeds(), protocol.recorded_seeds("fine")
    for found, names in ((lines, methods), (bounds, set(BOUNDS))):
        pairs = list(zip(found["parameters.method"], found["seeds.world"], strict=True))
        assert sorted(pairs) == sorted((name, seed) for name in names for seed in range(5))
    assert lines["synthetic"].all()
    smoke = commands._runtime.read_profile("smoke")
    assert all(set(lines[f"parameters.{name}"]) == {smoke[name]} for name in ("steps", "crop", "batch"))
    assert lines.groupby("seeds.world")["hashes.evaluation"].nunique().tolist() == 5 * [1]
    assert set(bounds["hashes.evaluation"]) == set(lines["hashes.evaluation"])


def test_a_ledger_of_lines_without_a_method_is_continued(folder, tmp_path):
    out = tmp_path / "lines.jsonl"
    out.write_text('{"kind": "notes", "label_regime": "coarse only"}\n')
    assert compare(folder, out, "--seeds", "3", "--only", "MODIS label") == 0
    assert list(ledger.read(out)["parameters.method"].dropna()) == ["MODIS label"]
