"""What chapters share beside the experiment: parameters, the example patch, provenance."""

import ast
import os
import shutil

import mirror
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

import chapters
from lcfuse_core import _runtime
from lcfuse_core.book import chapter, settings
from lcfuse_core.data import patches
from lcfuse_core.data.files import KINDS
from lcfuse_core.errors import MissingDataError, ParameterError
from lcfuse_core.methods.experiment import Experiment
from lcfuse_core.sample import world
from lcfuse_core.scoring import protocol


@pytest.fixture(scope="module")
def sample():
    return mirror.small_world()


@pytest.fixture
def here(sample, tmp_path, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))
    roots = {"data_root": str(sample / "dfc2020"), "train_root": str(sample / "sen12ms")}
    return chapter.begin("evaluation", {"profile": "smoke", "seed": 3, "steps": 2, "batch": 2, **roots})


def test_begin_returns_an_experiment_with_the_parameters_of_the_chapter():
    """Other names in the namespace are ignored: what IPython, imports and earlier cells leave there."""
    namespace = {"seed": 4, "In": ["x"], "_i": "y", "patches": patches, "count": 1, "steps": 3, "profile": "smoke"}
    here = chapter.begin("coarse_labels", namespace)
    assert isinstance(here, Experiment)
    assert here.parameters == {"profile": "smoke", "seed": 4}
    assert not here.progress


def test_begin_writes_the_values_of_the_profile_back(monkeypatch):
    smoke = _runtime.read_profile("smoke")
    profiles = {"smoke": smoke, "full": smoke | {"profile": "full", "steps": 77}}
    monkeypatch.setattr(_runtime, "read_profile", lambda name: profiles[name])
    namespace = {"profile": "full", "steps": smoke["steps"]}
    chapter.begin("training", namespace)
    assert namespace["steps"] == 77


@pytest.mark.slow
@pytest.mark.parametrize("name", os.environ.get("LCFUSE_TWICE", "coarse_labels").split())  # nightly more
def test_a_whole_chapter_runs_twice_in_one_kernel(name, tmp_path, monkeypatch):
    """Run all, choose another patch, run all: no cell fails, and the figures of the second run are others."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel inherits it; a chapter draws into its outputs
    notebook, pictures = chapters.read(name), []
    parameters = next(cell for cell in notebook.cells if "parameters" in chapters.tags(cell))
    source = parameters.source
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    with client.setup_kernel():
        for place in (0, 1):
            parameters.source = f"{source}\nplace = {place}"
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
            outputs = [out for cell in chapters.code_cells(notebook) for out in cell.outputs]
            pictures.append([out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})])
    assert pictures[0] != pictures[1]


CHANGED = {"place": 1, "steps": 7, "map_folder": "maps", "seed": 1}
"""A value for each chapter that is not the default; `seed` last, as another seed is another world."""


@pytest.mark.parametrize("name", chapters.names())
def test_a_changed_parameter_counts_in_a_kernel_that_has_run_the_chapter(name):
    """Run all, change one parameter, run all: names that other cells assign are neither refused nor parameters."""
    tagged = [(chapters.tags(cell), cell.source) for cell in chapters.code_cells(chapters.read(name))]
    (parameters,) = (source for tags, source in tagged if "parameters" in tags)
    assert tuple(settings._assigned(parameters)) == settings.names_of(name)  # `profile` first: it marks the cell
    sources = [TransformerManager().transform_cell(source) for _, source in tagged]
    set_up = next(source for source in sources if "chapter.begin(" in source)
    others = [ast.parse(source) for source in sources if source not in (parameters, set_up)]
    names = [node for tree in others for node in ast.walk(tree) if isinstance(node, ast.Name)]
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    namespace, found = {"In": [""]}, []
    changed = next(key for key in CHANGED if key in settings.names_of(name))
    for value in (None, CHANGED[changed]):
        first = parameters if value is None else f"{parameters}\n{changed} = {value!r}"
        for source in (first, set_up):
            namespace["In"].append(source)
            exec(source, namespace)
        found.append(dict(namespace["here"].parameters))
        namespace["In"] += sources[sources.index(set_up) + 1 :]
        namespace |= dict.fromkeys(assigned - set(settings.names_of(name)))
    assert found[0] == {key: _runtime.read_profile("smoke")[key] for key in settings.names_of(name)}
    assert found[1] == found[0] | {changed: CHANGED[changed]}


def test_the_lines_of_the_command_evaluate_are_evidence_in_a_run_with_a_ledger_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setenv("LCFUSE_LEDGER", str(tmp_path / "run.jsonl"))
    assert chapter.Chapter("reproduction", {"seed": 0}).evidence_path == tmp_path / "ledger.jsonl"
    (tmp_path / "run.jsonl").write_text("{}")
    assert chapter.Chapter("reproduction", {"seed": 0}).evidence_path == tmp_path / "run.jsonl"


def evaluated_in(folder):
    """A chapter that evaluates on the patches of *folder*."""
    return chapter.Chapter("evaluation", {"profile": "smoke", "seed": 3, "data_root": str(folder)})


def test_the_example_patch_is_the_most_varied_patch_that_is_evaluated(here):
    """Of the test split, by its MODIS label; the second one comes next; its reference can be shown."""
    rows = protocol.by_variety(protocol.evaluation_patches(here.data_root))
    assert set(rows["split"]) == {"test"}
    assert [here.example_patch(k).name for k in (0, 1)] == [patches.patch_name(row) for row in rows[:2].itertuples()]
    assert here.example_patch().dfc is not None
    with pytest.raises(ParameterError, match=rf"place: found {len(rows)}, expected 0 to {len(rows) - 1}"):
        here.example_patch(len(rows))


def test_the_example_patch_is_the_same_in_a_chapter_that_evaluates_nothing(here, sample, monkeypatch):
    monkeypatch.setattr(chapter.Chapter, "sample", sample)
    one, other = chapter.Chapter("reruns", {"seed": 3}).example_patch(), here.example_patch()
    assert one.name == other.name
    np.testing.assert_array_equal(one.s2, other.s2)


def copy_patches(rows, folder):
    """Copy the files of these rows of an index into a new folder; return its index."""
    folder.mkdir()
    for kind in KINDS:
        for file in rows[kind].dropna():
            shutil.copy(file, folder)
    return patches.index(folder)


def test_the_example_patch_of_small_data(here, sample, tmp_path):
    """One patch; no test split; no reference; nothing to show."""
    table = patches.index(here.data_root)
    validation = table[table["split"] == "validation"]
    one = copy_patches(table[table["split"] == "test"].head(1), tmp_path / "one")
    assert evaluated_in(tmp_path / "one").example_patch().name == patches.patch_name(one.iloc[0])
    copy_patches(validation, tmp_path / "validation")
    most = patches.patch_name(protocol.by_variety(validation).iloc[0])
    assert evaluated_in(tmp_path / "validation").example_patch().name == most
    assert evaluated_in(sample / "sen12ms").example_patch().dfc is None
    copy_patches(one.assign(lc=None), tmp_path / "bare")
    with pytest.raises(MissingDataError, match="no patch with a reference"):
        evaluated_in(tmp_path / "bare").example_patch()


def test_provenance_names_parameters_data_and_versions_and_no_folder(here, sample):
    box = here.provenance().data
    for expected in ("evaluation, profile smoke", "seed\u00a0=\u00a03", "lcfuse_core", "torch", " MB"):
        assert expected in box
    assert world.read_world(sample)["sha256"][:16] in box
    assert "<script" not in box
