"""Parameters of chapters: the profile fills in, the reader's own value wins, and anything unknown stops."""

import os
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from lcfuse_core import _runtime
from lcfuse_core.book import settings
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.models.losses import LOSSES

SMOKE = _runtime.read_profile("smoke")


@pytest.mark.parametrize("name", _runtime.PROFILES)
def test_every_profile_holds_every_parameter_and_names_itself(name):
    profile = _runtime.read_profile(name)
    assert settings.Settings(**profile).model_dump() == profile
    assert profile["profile"] == name


def test_the_losses_are_those_that_there_are():
    assert get_args(settings.Settings.model_fields["loss"].annotation) == tuple(LOSSES)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "1"), ("seed", 1.0), ("seed", True), ("seed", -1), ("steps", 0), ("crop", 16), ("network", "resnet"),
     ("class_weight_power", 1.5), ("class_weight_power", "0.5"), ("profile", "Smoke"), ("train_root", 3)],
)  # fmt: skip
def test_a_wrong_type_or_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ParameterError) as caught:
        settings.from_notebook({name: value}, "training")
    described = settings.Settings.model_fields[name].description
    assert f"parameters of training: {name}: found {value!r}, expected {described}" in str(caught.value)


# Notebooks: `In` is IPython's list of the cells that have run, the running one included

UNTOUCHED = {name: SMOKE[name] for name in settings.names_of("evaluation")} | {"profile": "colab"}
COLAB = {name: _runtime.read_profile("colab")[name] for name in UNTOUCHED}
CELL = "\n".join(f"{name} = {value!r}  # as it is shipped" for name, value in UNTOUCHED.items())
SET_UP = 'here = chapter.begin("evaluation", globals())'


def found_after(*cells, **values):
    """The parameters in a kernel in which these cells have run, with *values* where they differ from the cell's."""
    return settings.from_notebook({"In": ["", *cells, SET_UP], **UNTOUCHED, **values}, "evaluation")


def test_the_profile_fills_in_what_nobody_has_set():
    assert found_after(CELL) == COLAB
    assert found_after("import numpy as np", CELL, crop=96) == COLAB | {"crop": 96}


@pytest.mark.parametrize(
    "cell", ["# Parameters\nsteps = 400\ndata_root = ''\n", "steps = 400\ndata_root: str = ''", "# Parameters\n" + CELL]
)
def test_a_cell_below_the_parameters_sets_values_also_if_they_equal_the_default(cell):
    """The one that papermill injects, which may hold all names, or one of the reader's."""
    found = found_after(CELL, "import numpy as np\nnumber = 1", cell)
    assert found == (UNTOUCHED if CELL in cell else COLAB | {"steps": 400, "data_root": ""})


def test_only_cells_since_the_parameters_count():
    """Run all, then run all again: names of later cells are neither refused nor taken for parameters."""
    first = [CELL, "# Parameters\nsteps = 400", SET_UP, "batch, network = 3, None\nbatch = 4\nstepps = 1"]
    assert found_after(*first, CELL) == COLAB
    assert found_after(*first, CELL, "# Parameters\ncrop = 64") == COLAB | {"crop": 64}


@pytest.mark.parametrize("cells", [[CELL, "# Parameters\nstepps = 4"], [CELL.replace("steps", "stepps")]])
def test_a_misspelt_name_is_refused(cells):
    """Given to papermill, which only warns, or written into the parameters cell; all known names are listed."""
    with pytest.raises(ParameterError, match="parameters of evaluation: found unknown name stepps, expected some of"):
        found_after(*cells)


def test_other_namespaces_than_those_of_ipython():
    """A script has no list of cells; cells may be no Python, and all may be in one cell."""
    assert settings.from_notebook({"steps": 3, "other": 1}, "evaluation") == {"steps": 3}
    assert settings.from_notebook({"In": 3, "steps": 3}, "evaluation") == {"steps": 3}
    assert found_after(CELL, "%magic is no Python") == COLAB
    one = f"{CELL}\n{SET_UP}"
    assert settings.from_notebook({"In": ["", one], **UNTOUCHED}, "evaluation") == COLAB


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
