"""Parameters of chapters: the profile fills in, the reader's own value wins, and anything unknown stops."""

import ast
import os
import sys
from types import SimpleNamespace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chapters
from lcfuse_core import _runtime
from lcfuse_core.book import settings
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.models.losses import LOSSES

SMOKE = settings.read_profile("smoke")


@pytest.mark.parametrize("name", _runtime.PROFILES)
def test_every_profile_holds_every_parameter_and_names_itself(name):
    profile = settings.read_profile(name)
    assert set(profile) == set(settings.Settings.model_fields)
    assert profile["profile"] == name


def test_chapters_are_those_of_the_book():
    assert set(settings.CHAPTERS) == set(chapters.names())


@pytest.mark.parametrize("name", chapters.names())
def test_the_parameters_cell_holds_the_smoke_profile(name):
    """Names, values and order of a chapter's parameters cell are those of the module."""
    cells = [cell for cell in chapters.read(name).cells if "parameters" in chapters.tags(cell)]
    assert len(cells) == 1
    assigned = {
        target.id: ast.literal_eval(node.value) for node in ast.parse(cells[0].source).body for target in node.targets
    }
    assert assigned == {key: SMOKE[key] for key in settings.names_of(name)}
    assert tuple(assigned) == settings.names_of(name)


def test_the_losses_are_those_that_there_are():
    assert get_args(settings.Settings.model_fields["loss"].annotation) == tuple(LOSSES)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: settings.resolve({"sed": 1}, "evaluation"), r"unknown name sed, expected some of profile, seed, "),
        (lambda: settings.resolve({"steps": 10}, "coarse_labels"), r"coarse_labels: found unknown name steps"),
        (lambda: settings.read_profile("half"), r"found 'half', expected one of smoke, colab, full"),
        (lambda: settings.names_of("evaluate"), r"found 'evaluate', expected one of coarse_labels, "),
    ],
)
def test_unknown_name_of_a_parameter_profile_or_chapter_is_refused_with_the_known_ones(use, message):
    with pytest.raises(ParameterError, match=message):
        use()


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "1"), ("seed", 1.0), ("seed", True), ("seed", -1), ("steps", 0), ("crop", 16), ("network", "resnet"),
     ("class_weight_power", 1.5), ("class_weight_power", "0.5"), ("profile", "Smoke"), ("data_root", 3)],
)  # fmt: skip
def test_a_wrong_type_or_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ParameterError) as caught:
        settings.check({name: value})
    described = settings.Settings.model_fields[name].description
    assert f"parameters: {name}: found {value!r}, expected {described}" in str(caught.value)


COLAB = settings.read_profile("colab")
UNTOUCHED = {name: SMOKE[name] for name in settings.names_of("evaluation")} | {"profile": "colab"}


def test_the_profile_fills_in_what_nobody_has_set():
    found = settings.resolve(UNTOUCHED | {"crop": 96}, "evaluation")
    assert found == {name: COLAB[name] for name in UNTOUCHED} | {"crop": 96}


@pytest.mark.parametrize(("name", "value"), [("steps", 400), ("data_root", ""), ("seed", 0), ("loss", "cross_entropy")])
def test_a_given_value_wins_also_if_it_equals_the_default(name, value):
    assert value == SMOKE[name]
    assert settings.resolve(UNTOUCHED, "evaluation", [name])[name] == value


# Notebooks: `In` is IPython's list of the cells that have run, the running one included

CELL = "\n".join(f"{name} = {value!r}  # as it is shipped" for name, value in UNTOUCHED.items())
SET_UP = 'here = chapter.begin("evaluation", globals())'


def given_by(*cells, **values):
    """What `from_notebook` takes from a kernel in which these cells have run."""
    return settings.from_notebook({"In": ["", *cells, SET_UP], **UNTOUCHED, **values}, "evaluation")


def test_a_notebook_as_shipped_sets_nothing():
    assert given_by(CELL) == (UNTOUCHED, set())
    assert given_by("import numpy as np", CELL, steps=7) == (UNTOUCHED | {"steps": 7}, set())


@pytest.mark.parametrize(
    "cell", ["# Parameters\nsteps = 400\ndata_root = ''\n", "steps = 400\ndata_root: str = ''", "# Parameters\n" + CELL]
)
def test_a_cell_below_the_parameters_sets_values(cell):
    """The one that papermill injects, which may hold all names, or one of the reader's."""
    given = given_by(CELL, "import numpy as np\nnumber = 1", cell)[1]
    assert {"steps", "data_root"} <= given <= set(UNTOUCHED)


def test_only_cells_since_the_parameters_count():
    """Run all, then run all again: names of later cells are neither refused nor taken for parameters."""
    first = [CELL, "# Parameters\nsteps = 400", SET_UP, "batch, network = 3, None\nbatch = 4\nstepps = 1"]
    assert given_by(*first, CELL)[1] == set()
    assert given_by(*first, CELL, "# Parameters\ncrop = 64")[1] == {"crop"}


@pytest.mark.parametrize("cells", [[CELL, "# Parameters\nstepps = 4"], [CELL.replace("steps", "stepps")]])
def test_a_misspelt_name_is_refused(cells):
    """Given to papermill, which only warns, or written into the parameters cell."""
    with pytest.raises(ParameterError, match="parameters of evaluation: found unknown name stepps, expected some of"):
        given_by(*cells)


def test_other_namespaces_than_those_of_ipython():
    """A script has no list of cells; cells may be no Python, and all may be in one cell."""
    assert settings.from_notebook({"steps": 3, "other": 1}, "evaluation") == ({"steps": 3}, set())
    assert settings.from_notebook({"In": 3, "steps": 3}, "evaluation") == ({"steps": 3}, set())
    assert given_by(CELL, "%magic is no Python")[1] == set()
    one = f"{CELL}\n{SET_UP}"
    assert settings.from_notebook({"In": ["", one], **UNTOUCHED}, "evaluation") == (UNTOUCHED, set())


@given(st.integers(0, 2**31 - 1))
def test_a_number_comes_back_from_its_text(seed):
    assert settings.from_text("seed", str(seed)) == seed


@pytest.mark.parametrize(("name", "text"), [("seed", "one"), ("seed", "1.5"), ("class_weight_power", "much")])
def test_text_of_the_wrong_type_is_refused(name, text):
    with pytest.raises(ParameterError, match=f"parameter {name}: found '{text}', expected .* of type"):
        settings.from_text(name, text)


def test_drive_is_used_on_colab_alone(monkeypatch, tmp_path):
    """Checkpoints and samples are then kept in a folder of the mounted Drive."""
    monkeypatch.setenv("LCFUSE_DATA", "here")
    with pytest.raises(MissingDataError, match="elsewhere set LCFUSE_DATA"):
        settings.use_drive()
    mounted = []
    monkeypatch.setattr(settings, "_DRIVE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "google.colab.drive", SimpleNamespace(mount=mounted.append))
    path = settings.use_drive()
    assert (mounted, path.is_dir()) == ([str(tmp_path)], True)
    assert os.environ["LCFUSE_DATA"] == str(path) == str(tmp_path / "MyDrive" / "lcfuse")
