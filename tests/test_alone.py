"""
A chapter alone: in an empty folder, with the package installed from a wheel and nothing of the repository in reach.

So it is on Colab. One cheap chapter in the suite; LCFUSE_ALONE="all", or names, runs others (nightly they all are).
"""

import os
import shutil
import subprocess
import sys
import zipfile

import nbformat
import pytest

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
def installed(tmp_path_factory):
    """The content of the wheel that a reader's pip would build, beside the files that it is built of."""
    folder = tmp_path_factory.mktemp("wheel")  # building leaves files behind
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(chapters.ROOT / name, folder)
    shutil.copytree(
        chapters.ROOT / "lcfuse_core", folder / "lcfuse_core", ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=folder, check=True)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_built_package_holds_every_file_of_the_module(installed):
    """What `pip install` from an address gets: modules of every room, profiles, type marker, and the licence."""
    source = installed.parent / "lcfuse_core"
    paths = {file.relative_to(source).as_posix() for file in source.rglob("*.*") if file.is_file()}
    assert "sample/world.py" in paths
    assert [path for path in paths if not (installed / "lcfuse_core" / path).is_file()] == []
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


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
