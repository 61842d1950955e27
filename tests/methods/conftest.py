"""Tiny data and an experiment on them, for the tests of methods."""

import pytest
from miniatures import write_patch

from lcfuse_core.data import patches
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.models.forest import train_forest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three training scenes, a validation patch and two test patches, of one tiny patch each."""
    root = tmp_path_factory.mktemp("methods")
    for scene in "123":
        write_patch(root / "sen12ms", scene=scene)
    write_patch(root / "dfc2020", "validation", 1)
    for number in (1, 2):
        write_patch(root / "dfc2020", "test", number)
    return root


@pytest.fixture(scope="module")
def tiny(folder):
    """An experiment on these data, with plans of two steps and forests of five trees."""
    patched = pytest.MonkeyPatch()
    patched.setenv("LCFUSE_DATA", str(folder / "data"))
    patched.delenv("LCFUSE_LEDGER", raising=False)
    patched.setitem(train_forest.__kwdefaults__, "n_trees", 5)
    roots = {"train_root": str(folder / "sen12ms"), "data_root": str(folder / "dfc2020")}
    yield Experiment.from_profile("compare", **roots, steps=2, crop=32, batch=2)
    patched.undo()


@pytest.fixture(scope="module")
def patch(tiny):
    """The first patch to evaluate, without its reference."""
    [first, _] = patches.iter_patches(tiny.rows, patches.Report(), ("s1", "s2", "lc"))
    return first
