"""The frame of the project: one lock, one version, one address, licences, and a Makefile that keeps its promises."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from project import EXTRAS, PROJECT, ROOT, imported, name_of

import chapters
import set_address
from lcfuse_core import __version__

CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}
LOCK = (ROOT / "requirements.lock").read_text()


def locked() -> dict[str, str]:
    """Name -> version of all packages in the lock, as for Python 3.11."""
    lines = re.findall(r"^([a-z0-9][\w.-]*)==([\w.+]+)(?: ; (.*?))? \\$", LOCK, re.MULTILINE)
    later = ("python_full_version >= '3.12'", "== '3.12")
    return {name: version for name, version, marker in lines if not any(one in marker for one in later)}


LOCKED = locked()


# Requirements ------------------------------------------------------------------------------------


def test_the_lock_satisfies_every_requirement_and_what_is_held_back():
    held = [line for line in (ROOT / "scripts" / "held_back.txt").read_text().splitlines() if line[0] != "#"]
    wanted = [*PROJECT["dependencies"], *held, *(item for extra in EXTRAS.values() for item in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "lcfuse-core":
            version = LOCKED[requirement.name.lower()]
            assert requirement.specifier.contains(version), f"{requirement}, the lock has {version}: run `make lock`"


def test_the_lock_has_hashes_and_names_neither_an_index_nor_cuda_libraries():
    sections = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(sections) > 100
    assert [part.split()[0] for part in sections if "--hash=sha256:" not in part] == []
    assert not re.search(r"https?://|file:|index-url|find-links|^/| /", LOCK, re.MULTILINE)
    assert not re.search(r"^(nvidia|cuda|triton)", LOCK, re.MULTILINE)
    assert re.search(r"^torch==[\d.]+ \\$", LOCK, re.MULTILINE), "torch must carry no local label (+cpu)"


def test_what_colab_ships_is_new_enough():
    """A chapter there installs the module beside what is there and must not have to replace it: lower bounds only."""
    shipped = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "tests" / "colab.txt").read_text().lower(), re.MULTILINE))
    for text in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", text)
        assert Requirement(text).specifier.contains(shipped[name_of(text)])


@pytest.mark.parametrize(
    ("file", "extras"),
    [("environment.yml", ["notebook", "book", "test"]), (".binder/environment.yml", ["notebook"])],
)
def test_a_conda_environment_holds_what_is_required_at_the_versions_of_the_lock(file, extras):
    listed = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    pinned = dict(item.split("=") for item in listed if isinstance(item, str) and "=" in item)
    pinned |= dict(item.split("==") for one in listed if isinstance(one, dict) for item in one["pip"])
    assert pinned.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    for name, version in pinned.items():
        have = LOCKED[CONDA_NAMES.get(name, name)]
        assert f"{have}.".startswith(f"{version}."), f"{file}: {name}={version}, the lock has {have}"
    wanted = [*PROJECT["dependencies"], *(item for extra in extras for item in EXTRAS[extra])]
    missing = set(map(name_of, wanted)) - {CONDA_NAMES.get(name, name) for name in pinned}
    assert missing <= {"lcfuse-core", "playwright"}


def test_modules_import_only_what_the_package_declares():
    """The room for notebooks, the command line and a cluster may also use what opens and runs a book."""
    package = {name_of(item) for item in [*PROJECT["dependencies"], *EXTRAS["notebook"]]}
    desk = package | {name_of(item) for extra in ("book", "cluster") for item in EXTRAS[extra]}
    for file in (ROOT / "lcfuse_core").rglob("*.py"):
        is_desk = file.parent.name == "book" or file.name in ("__main__.py", "_runtime.py")
        online = {name_of(item) for item in EXTRAS["places"]} if file.name == "stac.py" else set()
        assert imported(file.read_text()) <= (desk if is_desk else package) | online, file


# Files in subfolders of the module ---------------------------------------------------------------


def test_make_runs_and_renders_again_when_a_file_in_any_folder_of_the_module_changes():
    database = make("--print-data-base", "--question", "help").stdout
    module = {file.relative_to(ROOT).as_posix() for file in (ROOT / "lcfuse_core").rglob("*.py")}
    for target in ("_build/run/.done", "_build/html/index.html"):
        [needs] = re.findall(rf"^{re.escape(target)}: (.*)$", database, re.MULTILINE)
        assert module <= set(needs.split())
        assert {"requirements.lock", "data_manifest.yaml"} & set(needs.split())


# One version, licences ---------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere_and_the_citation_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == newest[1] == __version__
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "version", "repository-code"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["doi"] == "10.5194/isprs-archives-XLIII-B1-2020-85-2020"


def test_the_licences_are_the_ones_that_are_named():
    assert (ROOT / "LICENSE").read_text().startswith("BSD 3-Clause License")
    assert "Creative Commons Attribution 4.0 International Public License" in (ROOT / "LICENSE-TEXT").read_text()


# One address -------------------------------------------------------------------------------------

ADDRESS = set_address.address()
OWNER_AND_NAME = ADDRESS.removeprefix(set_address.GITHUB)
LAUNCHERS = {
    "colab.research.google.com/github/": rf"{re.escape(OWNER_AND_NAME)}/blob/main/(book/[\w.]+\.ipynb)",
    "mybinder.org/v2/gh/": rf"{re.escape(OWNER_AND_NAME)}/main(?:\?urlpath=lab/tree/(book/[\w.]+\.ipynb))?",
}


def test_addresses_of_the_project_derive_from_the_configuration():
    """Every link to this project, or that opens it elsewhere, follows `repository.url` of _config.yml."""
    for file in set_address.places():
        for url in re.findall(r"(?:git\+)?https?://[^\s\"'<>()\]\\`]+", file.read_text()):
            launcher = next((start for start in LAUNCHERS if start in url), None)
            if launcher:
                match = re.fullmatch(rf"https://{re.escape(launcher)}{LAUNCHERS[launcher]}", url)
                assert match, f"{file.name}: {url} does not derive from {ADDRESS}"
                assert match[1] is None or (ROOT / match[1]).exists(), f"{url} opens nothing"
            elif OWNER_AND_NAME.split("/")[1] in url:
                assert ADDRESS in url or set_address.pages(ADDRESS) in url, f"{file.name}: {url}"


@cache
def texts() -> dict[Path, str]:
    """Every text file of the project."""
    folders = ("lcfuse_core", "book", "scripts", "tests", "benchmarks", ".github", ".binder")
    files = [*ROOT.glob("*"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    kinds = {".py", ".md", ".ipynb", ".yml", ".yaml", ".toml", ".lock", ".cfg", ".cff", ".json", ".css"}
    return {file: file.read_text() for file in files if file.suffix in kinds and file.is_file()}


def test_no_other_file_names_the_address():
    known = set(set_address.places()) | {Path(__file__)}
    assert [file for file, text in texts().items() if OWNER_AND_NAME in text and file not in known] == []


def test_committed_files_name_no_path_of_a_machine():
    pattern = re.compile(r"(?<![\w.])/(work|home/\w+|root|opt|Users|tmp)/\w")
    assert [file for file, text in texts().items() if pattern.search(text) and file != Path(__file__)] == []


def test_setting_another_address_changes_every_file_in_every_folder(tmp_path):
    """`make address` leaves no trace of the old address, and chapters that were current stay so."""
    beside = [ROOT / "book/_toc.yml", ROOT / "requirements.lock", ROOT / "data_manifest.yaml"]
    shipped = [file for file in (ROOT / "lcfuse_core/shipped").rglob("*") if file.is_file()]
    for file in [*set_address.places(), *beside, *shipped]:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    deep = tmp_path / "lcfuse_core/sample/new.py"
    deep.write_text(f'HOME = "{ADDRESS}"\n')
    was_current = {
        name: chapters.is_current(chapters.read(name, tmp_path / "book"), tmp_path) for name in chapters.names()
    }
    new = "https://github.com/Someone/else-where"
    changed = set_address.replace_address(new, tmp_path)
    assert {"_config.yml", "README.md", "CITATION.cff", "pyproject.toml", "new.py"} <= {file.name for file in changed}
    assert set_address.address(tmp_path) == new
    left = "".join(file.read_text() for file in set_address.places(tmp_path))
    assert OWNER_AND_NAME not in left
    assert set_address.pages(ADDRESS) not in left
    assert "https://someone.github.io/else-where" in left
    for name, current in was_current.items():
        assert chapters.is_current(chapters.read(name, tmp_path / "book"), tmp_path) == current


# README, Makefile, continuous integration --------------------------------------------------------


def test_readme_links_lead_somewhere_and_pictures_have_alt_text():
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 5
    for picture, words, target in links:
        assert words.strip(), f"no text for {target}"
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"README names {target}, which does not exist"
            assert not picture or len(words) > 40, "describe what the picture shows"


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_help_comes_first_and_lists_every_target_that_texts_name():
    shown = re.findall(r"^make (\w+) +\S", make().stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(phony[1].split())
    for file in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").glob("*.md")]:
        named = re.findall(r"`make (\w+)|^make (\w+)", file.read_text(), re.MULTILINE)
        assert {first or second for first, second in named} <= set(shown), file.name


def test_make_writes_bytecode_whatever_the_environment_sets():
    """Without it each process of the checks compiles all that it imports: a third of their time."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["make", "-f", "Makefile", "-f", "-", "probe"]
    probe = "probe:\n\t@echo [$$PYTHONDONTWRITEBYTECODE]\n"
    done = subprocess.run(command, cwd=ROOT, env=environment, input=probe, capture_output=True, text=True, check=True)
    assert "[]" in done.stdout.splitlines()  # a nested make prints its folder, too


def test_continuous_integration_runs_make_test():
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test")
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["test"]["steps"]]


def test_files_that_workflows_name_exist():
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        for name in re.findall(r"\b((?:tests|scripts)/[\w/]+\.\w+)", file.read_text()):
            assert (ROOT / name).exists(), f"{file.name} names {name}"


def test_workflows_run_pinned_code_and_only_jobs_without_foreign_code_may_write():
    """Actions by commit, packages by hash; a token that may write issues or pages is in no job that checks out code."""
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        workflow = yaml.safe_load(file.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            uses = [step["uses"] for step in job["steps"] if "uses" in step]
            assert all(re.search(r"@[0-9a-f]{40}$", action) for action in uses)
            if "write" in job.get("permissions", {}).values():
                assert not any(action.startswith("actions/checkout") for action in uses)
                assert not ("issues" in job["permissions"] and uses)
            installs = [step["run"] for step in job["steps"] if "pip install" in step.get("run", "")]
            assert all("--require-hashes" in run or "--no-build-isolation ." in run for run in installs)
    locked = (ROOT / "tests/colab.lock").read_text()
    pins = re.findall(r"^([\w-]+==[\w.]+)", (ROOT / "tests/colab.txt").read_text(), re.MULTILINE)
    assert [pin for pin in pins if f"\n{pin.lower()} " not in locked] == []


def test_an_old_python_is_refused_in_one_line():
    """The first step of `make setup` names the version found and the remedy."""
    code = "import sys; sys.version_info = (3, 9, 2)\n" + (ROOT / "scripts/check_python.py").read_text()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "Python 3.9 is here, 3.11 or later is needed. Name another: make PYTHON=python3.11"


def test_switches_of_the_nightly_job_reach_a_test_that_reads_them():
    """A variable on a step that runs other tests would change nothing, and nobody would notice."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())["jobs"].values()
    steps = [step for job in jobs for step in job["steps"] if "LCFUSE_" in str(step.get("env"))]
    assert len(steps) >= 3
    for step in steps:
        paths = [ROOT / path for path in re.findall(r"tests/[\w/.]*", step["run"])] or [ROOT / "tests"]
        files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
        text = "".join(file.read_text() for file in files)
        assert [name for name in step["env"] if name not in text] == []
