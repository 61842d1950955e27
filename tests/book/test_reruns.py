"""Reruns: grids are made in parallel and on a cluster, found again, and their failures reported together."""

import json
import os
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from jupyter_client import connect

from lcfuse_core import __main__ as shell
from lcfuse_core.book import reruns
from lcfuse_core.errors import LcfuseError, MissingDataError, ParameterError
from lcfuse_core.scoring import ledger

PARAMETERS = 'profile = "smoke"\nseed = 0\ndata_root = ""\nplace = 0'
# Without `lcfuse_core.scoring.ledger`: each kernel would need a second to import pandas.
SOURCE = """\
import json, os
line = json.dumps({"seed": seed, "root": data_root, "scores": {"aa": 1 / (2 - seed)}})
with open(os.environ["LCFUSE_LEDGER"], "a") as file:
    file.write(line + "\\n")"""


@pytest.fixture
def book(tmp_path):
    """A book whose only chapter records one score, and fails with seed 2."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(SOURCE)])
    (tmp_path / "book").mkdir()
    nbformat.write(notebook, tmp_path / "book" / "coarse_labels.ipynb")
    return tmp_path / "book"


def make(book, out, *arguments):
    return shell.main(["run", "coarse_labels", "--book", str(book), "--out", str(out), *arguments])


@pytest.mark.slow
def test_a_grid_runs_in_parallel_reports_its_failures_together_and_goes_on_where_it_stopped(book, tmp_path, capsys):
    """Three runs, one fails; then only that one is made again. A path with a comma arrives whole."""
    out, root = tmp_path / "out", str(tmp_path / "a, b")
    assert make(book, out, "-p", "seed", "0..2", "-p", "data_root", root, "--jobs", "2") == 1
    printed = capsys.readouterr().out
    assert "3 runs: 2 done, 0 found, 1 failed" in printed
    assert "failed: seed=2: coarse_labels, cell 3: ZeroDivisionError: division by zero" in printed
    assert f"open: {out / 'seed=2' / 'coarse_labels.ipynb'}" in printed
    assert (out / "seed=2" / "coarse_labels.ipynb").exists()

    for seed in (0, 1):
        folder = out / f"seed={seed}"
        outputs = nbformat.read(folder / "coarse_labels.ipynb", as_version=4).cells
        assert any(f"seed = {seed}" in cell.source for cell in outputs)
        asked = yaml.safe_load((folder / "parameters.yaml").read_text())
        assert asked == {"profile": "smoke", "seed": seed, "data_root": root, "place": 0}
        assert ledger.read(folder / "ledger.jsonl")["root"].tolist() == [root]
    table = reruns.gather(out)
    assert table[["run", "scores.aa"]].to_numpy().tolist() == [["seed=0", 0.5], ["seed=1", 1.0]]

    record = json.loads((out / "seed=1" / "coarse_labels.run.json").read_text())
    assert record["parameters"]["seed"] == 1
    assert make(book, out, "-p", "seed", "0..2", "-p", "data_root", root) == 1
    assert "3 runs: 0 done, 2 found, 1 failed" in capsys.readouterr().out
    assert len(reruns.gather(out)) == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no sockets in files")
def test_one_run_goes_right_into_its_folder_with_the_paths_of_the_caller(book, tmp_path, monkeypatch, capsys):
    """
    Values get their types, and a folder may have braces. Relative paths start where the command is given.

    Nor does the kernel take a port that another could have chosen: of many runs that start at once, one would wait for
    ever.
    """

    def taken(cache, ip):
        raise AssertionError("a port was chosen")

    monkeypatch.setattr(connect.LocalPortCache, "find_available_port", taken)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LCFUSE_LEDGER", "ledger.jsonl")
    monkeypatch.setenv("LCFUSE_DATA", "data")
    assert make(book, "made/of/{folders}", "-p", "seed", "1", "-p", "data_root", "my data") == 0
    assert str(tmp_path / "made/of/{folders}/coarse_labels.ipynb") in capsys.readouterr().out
    assert (tmp_path / "made/of/{folders}/coarse_labels.ipynb").exists()
    lines = ledger.read(tmp_path / "ledger.jsonl")
    assert lines[["seed", "root"]].to_numpy().tolist() == [[1, str(tmp_path / "my data")]]
    assert os.environ["LCFUSE_DATA"] == str(tmp_path / "data")


@pytest.mark.slow
def test_a_failed_run_is_reported_by_cell_and_its_notebook_is_kept(book, tmp_path, capsys):
    assert make(book, tmp_path / "out", "-p", "seed", "2") == 1
    assert "coarse_labels, cell 3: ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert (tmp_path / "out/coarse_labels.ipynb").exists()


@pytest.mark.slow
def test_a_grid_runs_on_a_dask_cluster(book, tmp_path, capsys):
    """Two workers, each a process: the same folders and lines as on this machine, and found again without it."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", local_directory=str(tmp_path)
    ) as cluster:
        assert make(book, tmp_path / "out", "-p", "seed", "0,1", "--cluster", cluster.scheduler_address) == 0
    assert "2 runs: 2 done" in capsys.readouterr().out
    assert reruns.gather(tmp_path / "out")["seed"].tolist() == [0, 1]
    assert make(book, tmp_path / "out", "-p", "seed", "0,1") == 0
    assert "2 found" in capsys.readouterr().out


def test_a_run_that_was_killed_is_not_finished(book, tmp_path):
    """Only a record with this key, beside a notebook, counts; half a record does not."""
    run = reruns.Run("coarse_labels", {"seed": 1}, tmp_path / "seed=1", book)
    assert not run.is_finished
    run.folder.mkdir()
    shutil.copy(book / "coarse_labels.ipynb", run.notebook)
    for text in ("", '{"key": "ab', "[]", '{"key": "other"}', "{}"):
        run.record.write_text(text)
        assert not run.is_finished, text
    run.record.write_text(json.dumps({"key": reruns.key(run)}))
    assert run.is_finished
    run.notebook.unlink()
    assert not run.is_finished


def test_failed_attempt_is_reported_and_its_ledger_kept_apart(book, tmp_path, monkeypatch):
    """A process that was killed prints no `error:` line; the ledger of a run has the lines of the last attempt."""
    monkeypatch.setattr(reruns.sys, "executable", shutil.which("false"))
    run = reruns.Run("coarse_labels", {"seed": 1}, tmp_path / "out", book)
    run.folder.mkdir()
    for text in ("first\n", "second\n"):
        (run.folder / "ledger.jsonl").write_text(text)
        outcome = reruns._execute_apart(run, str(tmp_path), 1)
        assert (outcome.state, outcome.message) == ("failed", "ended with code 1")
    assert (run.folder / "earlier-ledger.jsonl").read_text() == "first\nsecond\n"
    assert not (run.folder / "ledger.jsonl").exists()
    assert f"{tmp_path / 'out'} (no notebook)" in reruns.report([outcome])


def test_a_cluster_that_does_not_answer_is_one_clear_error(book, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def no_answer(address, **options):
        raise OSError("Timed out")

    monkeypatch.setattr(distributed, "Client", no_answer)
    runs = reruns.grid("coarse_labels", [("seed", "0,1")], out=tmp_path, book=book)
    with pytest.raises(LcfuseError, match=r"tcp://nowhere:1: found no answer \(Timed out\).*dask scheduler"):
        reruns.execute_all(runs, cluster="tcp://nowhere:1")


def test_nothing_to_gather_is_an_error(tmp_path):
    with pytest.raises(MissingDataError, match="no finished run"):
        reruns.gather(tmp_path)


# Grids


@pytest.fixture(scope="module")
def empty_book(tmp_path_factory):
    """A book with an empty notebook for each chapter that is asked for here."""
    folder = tmp_path_factory.mktemp("book")
    for name in ("training", "coarse_labels", "evaluation"):
        nbformat.write(nbformat.v4.new_notebook(), folder / f"{name}.ipynb")
    return folder


def points(empty_book, *given_values, chapter="training", **options):
    """The parameters of each run that a command line asks for."""
    runs = reruns.grid(chapter, list(given_values), out=Path("out"), book=empty_book, **options)
    return [run.parameters for run in runs]


def test_lists_ranges_and_repeats_add_up_without_doubles(empty_book):
    assert [one["seed"] for one in points(empty_book, ("seed", "7,0..2,1"), ("seed", "9"))] == [7, 0, 1, 2, 9]
    powers = points(empty_book, ("class_weight_power", "0,0.5,1"))
    assert [one["class_weight_power"] for one in powers] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("path", ["a,b", "1..3", "../up, over/..", "x y"])
def test_a_path_is_never_split(empty_book, path):
    """Commas and dots are its own; two paths are given by two -p."""
    assert points(empty_book, ("train_root", path)) == [{"train_root": str(Path(path).absolute()), "profile": "smoke"}]
    assert len(points(empty_book, ("train_root", path), ("train_root", "other"))) == 2


def test_folders_tell_any_two_runs_apart(empty_book):
    """A grid is every value with every other; two paths end alike, one has signs that a file system may not take."""
    given_values = [("data_root", path) for path in ("a/data", "b/data", "c/da ta:1")]
    runs = reruns.grid("coarse_labels", [*given_values, ("seed", "0,1")], out=Path("out"), book=empty_book)
    assert len({run.folder for run in runs}) == 6
    assert all(set(run.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=,.-") for run in runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sead", "0..4"], "unknown name sead, expected some of profile, seed, "),
        (["-p", "network", "fcn,resnet"], "found 'resnet', expected network to train: input should be 'fcn', 'unet'"),
        (["-p", "seed", "0,one"], "parameter seed: found 'one', expected of the sample world and of training, of type"),
        (["-p", "seed", "0.5"], "parameter seed: found '0.5'"),
        (["-p", "seed", "0,-1"], "found -1"),
        (["-p", "seed", "0..1000000"], "found 1000001 values, expected at most 10000"),
        (["-p", "seed", "0..9999", "-p", "steps", "1..9999"], "found 99,990,000 runs (10,000 of seed x "),
        (["-p", "seed", "4..0"], "found '4..0', expected the smaller end first. Write 0..4."),
        (["-p", "steps", "10,0"], "found 0, expected training steps: input should be greater than or equal to 1"),
        (["-p", "crop", "16..64"], "greater than or equal to 32"),
        (["-p", "class_weight_power", "0..1"], "found '0..1'"),
        (["-p", "network", "fcn,"], "found ''"),
        (["-p", "profile", "smoke,half"], "found 'half', expected"),
        (["--profile", "half"], "found 'half', expected one of smoke, colab, full"),
        (["--profile", "colab", "-p", "profile", "smoke,full"], "expected one of the two"),
    ],
)
def test_what_is_wrong_stops_before_anything_runs(empty_book, tmp_path, capsys, arguments, message):
    """Misspelt, of another type, out of range, unknown: one line that lists what is accepted; no folder is made."""
    out = tmp_path / "out"
    assert shell.main(["run", "training", "--book", str(empty_book), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_wrong_chapter_or_number_of_jobs_is_refused(empty_book, tmp_path, capsys):
    with pytest.raises(ParameterError, match="'trainings', expected one of coarse_labels, "):
        points(empty_book, chapter="trainings")
    with pytest.raises(MissingDataError, match=r"dfc2020\.ipynb: found no such file"):
        points(empty_book, chapter="dfc2020")
    with pytest.raises(SystemExit):
        shell.main(["run", "training", "--out", str(tmp_path), "--jobs", "0"])
    assert "1 or more are needed" in capsys.readouterr().err


def test_the_key_of_a_run_changes_with_whatever_it_rests_on(tmp_path, monkeypatch):
    """Parameters, the notebook's code and the module; not its text, nor a default that is given explicitly."""

    def key(source="print(1)", **parameters):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / "training.ipynb")
        return reruns.key(reruns.Run("training", parameters, tmp_path / "out", tmp_path))

    first = key(seed=1)
    assert key(seed=1) == first == key(seed=1, batch=16, profile="smoke")
    assert len({first, key(seed=2), key(seed=1, steps=7), key("print(2)", seed=1)}) == 4
    monkeypatch.setattr(reruns._runtime, "code_digest", lambda: "other code")
    assert key(seed=1) != first


def test_given_values_win_also_if_they_equal_a_default(empty_book):
    """Under another profile: a number, an empty path, one value of several."""
    asked = [("steps", "400,200"), ("crop", "64"), ("train_root", "")]
    runs = reruns.grid("training", asked, profile="colab", out=Path("out"), book=empty_book)
    found = [{name: run.all_parameters[name] for name in ("steps", "crop", "batch", "train_root")} for run in runs]
    assert found == [{"steps": steps, "crop": 64, "batch": 32, "train_root": ""} for steps in (400, 200)]


def test_paths_of_a_profile_are_resolved_where_the_command_is_given(empty_book, tmp_path, monkeypatch):
    """Not in --out, where the kernel runs: `data fetch` puts the data into the current folder."""
    monkeypatch.chdir(tmp_path)
    [run] = reruns.grid("coarse_labels", [], profile="colab", out=tmp_path / "out", book=empty_book)
    assert run.parameters == {"profile": "colab", "data_root": str(tmp_path / "data" / "dfc2020")}
