"""
Each command that README, the book and the claims print is executed, on a miniature in the layout of the real data.

Commands are collected from the texts, so a new one is covered. They run as printed, in a folder with data that were
fetched from a local server; only what makes them long or needs other machines is replaced, see `runnable` and
`small`. Chapters, runs of a grid and scenes of a list are executed in this process: `tests/book/test_reruns.py` and
`tests/mapping/test_commands.py` start the kernels and processes.
"""

import argparse
import re
import shlex
from contextlib import chdir
from functools import partial

import matplotlib as mpl
import mirror
import nbformat
import numpy as np
import papermill
import places
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

import chapters
from lcfuse_core import __main__ as shell
from lcfuse_core.book import reruns
from lcfuse_core.data import cells
from lcfuse_core.mapping import commands as mapping
from lcfuse_core.mapping import learn
from lcfuse_core.models import forest
from lcfuse_core.sample import world

ELSEWHERE = {
    "focal": "the example of CONTRIBUTING.md: tests/test_contributing.py",
    "MODIS label, filled": "the method that the reader adds in chapter methods_compared",
    "place ": "images from the network: tests/mapping/test_commands.py",
    "data adopt": "checks complete published sets: tests/data/test_commands.py",
}
"""Parts of commands that are executed by another test."""

REPLACED = {
    r" --cluster \S+": "",
    r"/shared/packs": "data/packs",
    r"/shared/": "",
    r"seed 0\.\.[1-9]": "seed 0..0",
    r"--seeds 0 1.*?(?= --|$)": "--seeds 0",
    r"S2A_MSIL1C_\S+": "s2.tif",
    r"MCD12Q1\.tif": "coarse.tif",
    r"--checkpoint \S+": "--checkpoint run",
    r"(s2|s1|coarse)_path …": r"\1_path \1.tif",
}

ADDED = {
    "data": ["--manifest", "manifest.yaml"],
    "train": ["-p", "steps", "2", "-p", "crop", "32", "-p", "batch", "2", "-p", "width", "4"],
    "compare": ["--steps", "2", "--crop", "32", "--batch", "2"],
    "map": ["--steps", "2"],
    "run": ["--book", "book"],
}
"""Small sizes, the local server, and chapters cut after their set-up (as a whole they are executed by nbval)."""

FEW_TREES = {"n_pixels": 2000, "n_trees": 4}

OPEN_DATA = """
from pathlib import Path
given = {name: value for name, value in here.parameters.items() if value and name.endswith(("_path", "_root"))}
assert all(Path(value).exists() for value in given.values())
assert "train_root" not in given or len(here.training_rows()[0])
assert "data_root" not in given or len(here.rows)
"""
"""What follows the set-up of a cut chapter: paths are those of the caller's folder, and the data can be opened."""


def texts():
    """Name and text of the README, the guide for contributors, and all pages and text cells."""
    files = [chapters.ROOT / "README.md", chapters.ROOT / "CONTRIBUTING.md"]
    for path in (*files, *sorted((chapters.ROOT / "book").glob("*.md"))):
        yield path.name, path.read_text()
    for name in chapters.names():
        yield from ((name, cell.source) for cell in chapters.read(name).cells if cell.cell_type == "markdown")


def printed():
    """Command -> the files that print it."""
    claims = yaml.safe_load((chapters.ROOT / "book" / "claims.yaml").read_text())["claims"]
    commands = [("claims.yaml", claim["command"]) for claim in claims if "command" in claim]
    found = {}
    for name, text in (*texts(), *commands):
        for command in re.findall(r"-m lcfuse_core ([^\n`#]+)", re.sub(r"\\\n\s*", " ", text)):
            found.setdefault(" ".join(command.split()), []).append(name)
    return {command: files for command, files in found.items() if not any(part in command for part in ELSEWHERE)}


def runnable(command):
    """The words of a command that runs here in seconds."""
    for pattern, new in REPLACED.items():
        command = re.sub(pattern, new, command)
    words = shlex.split(command)
    if words[0] == "compare" and "full" not in words:
        words += ["--small", *([] if "--only" in words else ["--only", "MODIS label"])]
    return words + ([] if "--demo" in words else ADDED.get(words[0], []))  # the demonstration trains nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the miniature has been fetched and packed, with small files for maps and the cut chapters."""
    top = tmp_path_factory.mktemp("miniature")
    (top / "_data").mkdir()
    (top / "_data" / "world-0").symlink_to(world.sample_folder(0))
    (top / "_data" / "small").symlink_to(mirror.small_worlds())
    with mirror.serve(top, faults=False) as served, pytest.MonkeyPatch.context() as patched:
        patched.chdir(top)
        assert served.manifest == top / "manifest.yaml"
        assert shell.main(["data", "fetch", "--profile", "colab", "--manifest", "manifest.yaml"]) == 0
        assert shell.main(["data", "pack"]) == 0
        s2, s1 = places.scene_arrays(64, 64)
        for name, array in {"s2": s2, "s1": s1}.items():
            places.write(top / f"{name}.tif", array)
        igbp = np.full((64, 64), 12, np.uint8)
        igbp[:, :32] = 1  # each cell gets one of the two
        codes, transform = cells.modis_raster(places.AT, places.UTM, igbp)
        places.write(top / "coarse.tif", codes[None], crs=cells.SINUSOIDAL, transform=transform, nodata=255)
        places.network(top / "run" / "last.safetensors")
        (top / "scenes.csv").write_text("name,s2,s1,coarse\none,s2.tif,s1.tif,coarse.tif\n")
        (top / "book").mkdir()
        for name in chapters.names():
            book = chapters.read(name)
            end = next(
                n for n, cell in enumerate(book.cells) if "chapter.begin(" in cell.source and cell.cell_type == "code"
            )
            book.cells = [*book.cells[: end + 1], nbformat.v4.new_code_cell(OPEN_DATA)]
            nbformat.write(book, top / "book" / f"{name}.ipynb")
        yield top


def execute_here(source, target, parameters, *, cwd, **options):
    """What papermill does with a cut chapter, without a kernel: its cells, with the given parameters."""
    notebook, names = nbformat.read(source, as_version=4), {}
    with chdir(cwd), mpl.rc_context():
        for cell in chapters.code_cells(notebook):
            exec(TransformerManager().transform_cell(cell.source), names)
            names |= parameters if "parameters" in chapters.tags(cell) else {}
    nbformat.write(notebook, target)


@pytest.fixture
def small(monkeypatch):
    """Forests have few trees, the sample scene few pixels; neither kernels nor processes are started."""
    whole = forest.train_forest
    for room in (forest, learn):
        monkeypatch.setattr(room, "train_forest", lambda source, **given: whole(source, **given | FEW_TREES))
    monkeypatch.setattr(world, "make_sample_scene", partial(world.make_sample_scene, side=200))
    monkeypatch.setattr(papermill, "execute_notebook", execute_here)
    monkeypatch.setattr(reruns, "_execute_apart", lambda run, data, threads: reruns.execute(run))
    monkeypatch.setattr(mapping, "_map_apart", lambda scene, threads: (shell.main(["map", *scene[1]]), scene[0]))


@pytest.mark.slow
@pytest.mark.parametrize("command", printed())
def test_a_printed_command_works(command, folder, small, monkeypatch, capsys):
    """Its exit code is 0; that of `data status` is 1 where data are missing."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LCFUSE_DATA", str(folder / "_data"))
    monkeypatch.setenv("LCFUSE_LEDGER", str(folder / "ledger.jsonl"))
    if command.startswith("ledger"):
        assert shell.main(["compare", "--small", "--seeds", "0", "--only", "MODIS label", "--out", "ledger.jsonl"]) == 0
    code = shell.main(runnable(command))
    assert code in ((0, 1) if command.startswith("data status") else (0,)), capsys.readouterr().err


def test_commands_are_found_in_every_kind_of_text():
    assert all((chapters.ROOT / test).exists() for why in ELSEWHERE.values() for test in re.findall(r"tests/\S+", why))
    files = {file for files in printed().values() for file in files}
    assert {"README.md", "run_it.md", "claims.yaml", "data_at_scale", "scaling_out"} <= files


OF_OTHER_PROGRAMS = {"--tags", "--nproc-per-node", "--log-level", "--nthreads"}  # git, torchrun, papermill, dask


def options_of(parser):
    """All options of a parser and of its commands."""
    found = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(options_of, action.choices.values()))
    return found


def test_options_that_a_text_names_exist():
    """In running text, where `test_a_printed_command_works` does not look."""
    own, named = options_of(shell._parser()), {}
    for name, text in texts():
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
            named |= dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span), name)
    assert len(named) > 20
    assert {option: name for option, name in named.items() if option not in own} == {
        option: named.get(option) for option in OF_OTHER_PROGRAMS
    }
