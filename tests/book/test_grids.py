"""Grids: what a command line asks for, and what stops before anything runs."""

from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcfuse_core import __main__ as shell
from lcfuse_core.book import grids
from lcfuse_core.errors import MissingDataError, ParameterError


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book with an empty notebook for each chapter that is asked for here."""
    folder = tmp_path_factory.mktemp("book")
    for name in ("training", "coarse_labels", "evaluation"):
        nbformat.write(nbformat.v4.new_notebook(), folder / f"{name}.ipynb")
    return folder


def points(book, *given_values, chapter="training", **options):
    """The parameters of each run that a command line asks for."""
    runs = grids.grid(chapter, list(given_values), out=Path("out"), book=book, **options)
    return [run.parameters for run in runs]


def test_a_grid_is_every_value_with_every_other(book):
    found = points(book, ("seed", "0..4"), ("network", "fcn,unet"))
    assert len(found) == 10
    assert found[0] == {"seed": 0, "network": "fcn", "profile": "smoke"}
    assert {(one["seed"], one["network"]) for one in found} == {(s, n) for s in range(5) for n in ("fcn", "unet")}


def test_lists_ranges_and_repeats_add_up_without_doubles(book):
    assert [one["seed"] for one in points(book, ("seed", "7,0..2,1"), ("seed", "9"))] == [7, 0, 1, 2, 9]
    assert [one["class_weight_power"] for one in points(book, ("class_weight_power", "0,0.5,1"))] == [0.0, 0.5, 1.0]


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_range_counts_both_ends(first, length):
    found = grids.parse("training", [("seed", f"{first}..{first + length}")], "smoke")
    assert found["seed"] == list(range(first, first + length + 1))


@pytest.mark.parametrize("path", ["a,b", "1..3", "../up, over/..", "x y"])
def test_a_path_is_never_split(book, path):
    """Commas and dots are its own; two paths are given by two -p."""
    assert points(book, ("train_root", path)) == [{"train_root": str(Path(path).absolute()), "profile": "smoke"}]
    assert len(points(book, ("train_root", path), ("train_root", "other"))) == 2


def test_one_run_goes_right_into_the_folder_and_many_into_folders_of_their_own(book):
    [run] = grids.grid("training", [("seed", "3")], out=Path("out"), book=book)
    assert run.notebook == Path("out").absolute() / "training.ipynb"
    many = grids.grid("training", [("seed", "3,4"), ("steps", "50")], out=Path("out"), book=book)
    assert [run.name for run in many] == ["seed=3", "seed=4"]


def test_folders_tell_any_two_runs_apart(book):
    """Two paths that end alike, and one with signs that a file system may not take."""
    given_values = [("data_root", path) for path in ("a/data", "b/data", "c/da ta:1")]
    runs = grids.grid("coarse_labels", [*given_values, ("seed", "0,1")], out=Path("out"), book=book)
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
def test_what_is_wrong_stops_before_anything_runs(book, tmp_path, capsys, arguments, message):
    """Misspelt, of another type, out of range, unknown: one line that lists what is accepted; no folder is made."""
    out = tmp_path / "out"
    assert shell.main(["run", "training", "--book", str(book), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_wrong_chapter_or_number_of_jobs_is_refused(book, tmp_path, capsys):
    with pytest.raises(ParameterError, match="'trainings', expected one of coarse_labels, "):
        points(book, chapter="trainings")
    with pytest.raises(MissingDataError, match=r"dfc2020\.ipynb: found no such file"):
        points(book, chapter="dfc2020")
    with pytest.raises(SystemExit):
        shell.main(["run", "training", "--out", str(tmp_path), "--jobs", "0"])
    assert "1 or more are needed" in capsys.readouterr().err


def test_the_key_of_a_run_changes_with_whatever_it_rests_on(book, tmp_path, monkeypatch):
    """Parameters, the notebook's code and the module; not its text, nor saying a default aloud."""

    def key(source="print(1)", **parameters):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / "training.ipynb")
        return grids.key(grids.Run("training", parameters, tmp_path / "out", tmp_path))

    first = key(seed=1)
    assert key(seed=1) == first == key(seed=1, batch=16, profile="smoke")
    assert len({first, key(seed=2), key(seed=1, steps=7), key("print(2)", seed=1)}) == 4
    monkeypatch.setattr(grids._runtime, "code_digest", lambda: "other code")
    assert key(seed=1) != first
