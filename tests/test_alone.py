"""
A chapter alone: in an empty folder, with the package installed from a wheel and nothing of the repository in reach.

So it is on Colab. One cheap chapter in the suite; LCFUSE_ALONE="all", or names, runs others (nightly they all are).
"""

import os
import subprocess
import sys
import zipfile

import nbformat
import pytest
from project import built_wheel

import chapters

ASKED = os.environ.get("LCFUSE_ALONE", "metrics").split()
NAMES = chapters.names() if ASKED == ["all"] else ASKED
FIRST = """
import pathlib, sys
_repository = {root!r}  # a name that is no parameter
sys.path[:] = [path for path in sys.path if not (path + "/").startswith(_repository + "/") or "site-packages" in path]
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in repr(finder)]
sys.path.insert(0, {installed!r})
import lcfuse_core
assert lcfuse_core.__file__.startswith({installed!r}), lcfuse_core.__file__
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as a reader's pip would build it, beside a copy of its files."""
    return built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel):
    """A folder that the package is installed into, from the wheel that a reader's pip would build."""
    install = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*install, "--target", wheel.parent / "site", wheel], check=True)
    return wheel.parent / "site"


@pytest.mark.slow
def test_the_built_package_holds_every_file_of_the_module(wheel):
    """What `pip install` from an address gets: modules of every room, profiles, type marker, and the licence."""
    files = [file for file in (wheel.parent / "lcfuse_core").rglob("*.*") if file.is_file()]
    paths = {file.relative_to(wheel.parent).as_posix() for file in files}
    assert "lcfuse_core/sample/world.py" in paths
    names = set(zipfile.ZipFile(wheel).namelist())
    assert paths <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_runs_in_an_empty_folder_with_the_installed_package_alone(name, installed, tmp_path, monkeypatch):
    notebook = chapters.read(name)
    first = nbformat.v4.new_code_cell(FIRST.format(root=str(chapters.ROOT), installed=str(installed)))
    notebook.cells.insert(0, first)
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("LCFUSE_DATA", str(chapters.ROOT / "_data"))  # a sample that is there; Colab makes its own
    ran = chapters.run(notebook, tmp_path)
    errors = [out for cell in chapters.code_cells(ran) for out in cell.outputs if out.output_type == "error"]
    assert errors == []
    assert [path.name for path in tmp_path.iterdir()] == [], "a chapter leaves nothing behind"
    assert len(chapters.code_cells(ran)) == len(chapters.code_cells(chapters.read(name))) + 1
