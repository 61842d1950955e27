"""The frame: one lock, one version, one address, licences, and a Makefile that keeps its word."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import chapters
import set_address
from lcfuse_core import __version__

ROOT = chapters.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "matplotlib-base": "matplotlib"}
IMPORT_NAMES = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "cycler": "matplotlib",
    "IPython": "ipykernel",
}


def name_of(requirement: str) -> str:
    """The distribution that a requirement like `torch>=2.2` names."""
    return re.split(r"[\[<>=! ]", requirement)[0].lower()


def locked() -> dict[str, str]:
    """Name -> version of all packages in the lock, as for Python 3.11."""
    found = {}
    lines = re.findall(r"^([a-z0-9][\w.-]*)==([\w.+]+)(?: ; (.*?))? \\$", LOCK, re.MULTILINE)
    for name, version, marker in lines:
        if "python_full_version >= '3.12'" not in marker and "== '3.12" not in marker:
            found[name] = version
    return found


LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = locked()
HELD_BACK = (ROOT / "scripts" / "held_back.txt").read_text()


def test_lock_holds_every_requirement_at_its_lower_bound_or_above():
    wanted = PROJECT["dependencies"] + [item for extra in EXTRAS.values() for item in extra]
    for requirement in wanted:
        name = name_of(requirement)
        if name == "lcfuse-core":
            continue
        bound = re.search(r">=([\d.]+)", requirement)
        have = [int(part) for part in re.findall(r"\d+", LOCKED[name])]
        need = [int(part) for part in bound[1].split(".")] if bound else []
        assert have >= need, f"{requirement}, but the lock has {LOCKED[name]}"


def test_lock_takes_nothing_newer_than_it_may():
    held = [Requirement(line) for line in HELD_BACK.splitlines() if not line.startswith("#")]
    assert held
    for requirement in held:
        assert requirement.specifier.contains(LOCKED[requirement.name]), f"{requirement}: run `make lock`"


def test_make_keeps_bytecode_whatever_the_environment_says():
    """Without it each process of the checks compiles all that it imports: a third of their time."""
    probe = "probe:\n\t@echo [$$PYTHONDONTWRITEBYTECODE]\n"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["make", "-f", "Makefile", "-f", "-", "probe"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, input=probe, stdout=subprocess.PIPE, text=True, check=True
    )
    assert "[]" in done.stdout.splitlines()  # a make within a make says where it is, too


def test_every_package_of_the_lock_has_hashes():
    sections = re.split(r"^(?=[a-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(sections) > 100
    assert [part.split()[0] for part in sections if "--hash=sha256:" not in part] == []


def test_lock_names_no_place_and_no_cuda_library():
    assert not re.search(r"https?://|file:|index-url|find-links|^/| /", LOCK, re.MULTILINE)
    assert not re.search(r"^(nvidia|cuda|triton)", LOCK, re.MULTILINE)
    assert re.search(r"^torch==[\d.]+ \\$", LOCK, re.MULTILINE), "torch must carry no local label (+cpu)"


def test_package_declares_lower_bounds_only():
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement)


@pytest.mark.parametrize("file", ["environment.yml", ".binder/environment.yml"])
def test_conda_environment_agrees_with_the_lock(file):
    listed = yaml.safe_load((ROOT / file).read_text())["dependencies"]
    pinned = dict(item.split("=") for item in listed if isinstance(item, str) and "=" in item)
    by_pip = next((item["pip"] for item in listed if isinstance(item, dict)), [])
    pinned |= dict(item.split("==") for item in by_pip)
    assert pinned.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    for name, version in pinned.items():
        have = LOCKED[CONDA_NAMES.get(name, name)]
        assert f"{have}.".startswith(f"{version}."), f"{file}: {name}={version}, the lock has {have}"


@pytest.mark.parametrize(
    ("file", "extras"),
    [("environment.yml", ["notebook", "book", "test"]), (".binder/environment.yml", ["notebook"])],
)
def test_conda_environment_lacks_nothing_that_is_required(file, extras):
    text = (ROOT / file).read_text()
    names = {CONDA_NAMES.get(name, name) for name in re.findall(r"- ([a-z][\w-]*)==?", text)}
    wanted = {name_of(item) for item in PROJECT["dependencies"]}
    wanted |= {name_of(item) for extra in extras for item in EXTRAS[extra]}
    assert wanted - names - {"lcfuse-core", "playwright"} == set()


def imported(source: str) -> set[str]:
    """First names of all modules that *source* imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found - set(sys.stdlib_module_names) - {"lcfuse_core"}


@pytest.mark.parametrize("file", sorted((ROOT / "lcfuse_core").rglob("*.py")), ids=lambda file: file.name)
def test_module_imports_only_what_the_package_declares(file):
    on_a_desk = file.name in ("chapter.py", "grids.py", "reruns.py", "__main__.py")
    optional = [*EXTRAS["notebook"], *EXTRAS["book"], *EXTRAS["cluster"]] if on_a_desk else []
    allowed = {name_of(item) for item in [*PROJECT["dependencies"], *EXTRAS["notebook"], *optional]}
    assert {IMPORT_NAMES.get(name, name) for name in imported(file.read_text())} <= allowed


def built_wheel(folder):
    """The wheel that a reader's pip would build, from a copy in *folder*: building leaves things behind."""
    for name in ("lcfuse_core", "pyproject.toml", "README.md", "LICENSE"):
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(source, copy)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_built_package_holds_every_file_of_the_module(tmp_path):
    """What `pip install` from an address gets: modules, profiles, type marker, and the licence."""
    wheel = built_wheel(tmp_path)
    files = [file for file in (tmp_path / "lcfuse_core").rglob("*.*") if file.is_file()]
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {file.relative_to(tmp_path).as_posix() for file in files} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation["version"] == __version__
    assert newest is not None
    assert newest[1] == __version__


def test_citation_has_what_the_format_demands():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license", "version", "repository-code"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["doi"] == "10.5194/isprs-archives-XLIII-B1-2020-85-2020"


def test_licences_are_the_ones_that_are_named():
    code, text = (ROOT / "LICENSE").read_text(), (ROOT / "LICENSE-TEXT").read_text()
    assert code.startswith("BSD 3-Clause License")
    assert "Creative Commons Attribution 4.0 International Public License" in text
    assert "Section 8 -- Interpretation." in text


# One address -------------------------------------------------------------------------------------

ADDRESS = set_address.address()
OWNER_AND_NAME = ADDRESS.removeprefix(set_address.GITHUB)
DERIVED = (ADDRESS, set_address.pages(ADDRESS))
LAUNCHERS = {
    "colab.research.google.com/github/": rf"{re.escape(OWNER_AND_NAME)}/blob/main/(book/[\w.]+\.ipynb)",
    "mybinder.org/v2/gh/": rf"{re.escape(OWNER_AND_NAME)}/main(?:\?urlpath=lab/tree/(book/[\w.]+\.ipynb))?",
}


def urls(file: Path) -> list[str]:
    """All web addresses in a text file."""
    return re.findall(r"(?:git\+)?https?://[^\s\"'<>()\]\\`]+", file.read_text())


@pytest.mark.parametrize("file", set_address.places(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_addresses_of_the_project_derive_from_the_configuration(file):
    """Whatever names this project, or opens it elsewhere, follows `repository.url` of _config.yml."""
    name = OWNER_AND_NAME.split("/")[1]
    for url in urls(file):
        for start, form in LAUNCHERS.items():
            if start in url:
                match = re.fullmatch(rf"https://{re.escape(start)}{form}", url)
                assert match, f"{url} does not derive from {ADDRESS}"
                assert match[1] is None or (ROOT / match[1]).exists(), f"{url} opens nothing"
                break
        else:
            if name in url:
                assert any(part in url for part in DERIVED), f"{url} does not derive from {ADDRESS}"


def test_no_other_file_names_the_address():
    known = set(set_address.places())
    for folder in ("book", "lcfuse_core", "scripts", ".github", ".binder", ".ci", "."):
        files = (ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*")
        for file in files:
            if file.is_file() and file not in known and file.suffix in {".md", ".py", ".yml", ".cff", ".ipynb"}:
                assert OWNER_AND_NAME not in file.read_text(), f"{file} is not in set_address.PLACES"


def test_setting_another_address_changes_every_place(tmp_path):
    """`make address` leaves no trace of the old address, and what was current stays so."""
    beside = [ROOT / "book/_toc.yml", ROOT / "requirements.lock", ROOT / "data_manifest.yaml"]
    shipped = [file for file in (ROOT / "lcfuse_core/shipped").rglob("*") if file.is_file()]
    for file in [*set_address.places(), *beside, *shipped]:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    new = "https://github.com/Someone/else-where"
    changed = set_address.replace_address(new, tmp_path)
    assert {"_config.yml", "README.md", "CITATION.cff", "pyproject.toml"} <= {file.name for file in changed}
    assert set_address.address(tmp_path) == new
    left = "".join(file.read_text() for file in set_address.places(tmp_path))
    assert OWNER_AND_NAME not in left
    assert set_address.pages(ADDRESS) not in left
    assert "https://someone.github.io/else-where" in left
    for name in chapters.names(tmp_path / "book"):
        before, after = chapters.read(name), chapters.read(name, tmp_path / "book")
        assert chapters.is_current(before) == chapters.is_current(after, tmp_path)


# README and Makefile -----------------------------------------------------------------------------


def test_readme_links_lead_somewhere_and_pictures_have_alt_text():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)]+)\)", text)
    assert len(links) > 5
    for picture, words, target in links:
        assert words.strip(), f"no text for {target}"
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"README names {target}, which is not there"
        if picture and not target.startswith("http"):
            assert len(words) > 40, "say what the picture shows"


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_make_help_comes_first_and_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = re.findall(r"^make (\w+) +\S", make().stdout, re.MULTILINE)
    assert sorted(shown) == sorted(phony[1].split())
    assert make("help").stdout == make().stdout


def test_readme_and_book_name_only_targets_that_exist():
    targets = set(re.findall(r"^make (\w+)", make("help").stdout, re.MULTILINE))
    for file in [ROOT / "README.md", *(ROOT / "book").glob("*.md")]:
        named = set(re.findall(r"`make (\w+)|^make (\w+)", file.read_text(), re.MULTILINE))
        assert {first or second for first, second in named} <= targets, file.name


def test_continuous_integration_runs_make_test():
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("make test")
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["test"]["steps"]]


def test_old_python_is_refused_in_one_line():
    """The first step of `make setup` names the version found and the way out."""
    code = (ROOT / "scripts/check_python.py").read_text()
    shim = "import sys; sys.version_info = (3, 9, 2)\n"
    done = subprocess.run([sys.executable, "-c", shim + code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == ("Python 3.9 is here, 3.11 or later is needed. Name another: make PYTHON=python3.11")


def test_committed_files_name_no_machine():
    """No path of the machine that made them, in any text that is published."""
    pattern = re.compile(r"(?<![\w.])/(work|home/\w+|root|opt|Users|tmp)/\w")
    kinds = {
        ".py",
        ".md",
        ".ipynb",
        ".yml",
        ".yaml",
        ".toml",
        ".lock",
        ".cfg",
        ".cff",
        ".json",
        ".css",
        ".bib",
    }
    skipped = {".venv", "_build", "_data", ".git"}
    for file in ROOT.rglob("*"):
        parts = file.relative_to(ROOT).parts
        hidden = any(part in skipped or part.endswith("_cache") for part in parts)
        if file.suffix in kinds and not hidden and file != Path(__file__):
            assert not pattern.search(file.read_text()), file


def test_what_colab_ships_is_new_enough():
    """A chapter there installs the module on top of what is there, and must not have to replace it."""
    shipped = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "tests" / "colab.txt").read_text().lower(), re.MULTILINE))
    needed = [Requirement(text) for text in PROJECT["dependencies"]]
    assert {one.name for one in needed} <= set(shipped)
    assert [one.name for one in needed if not one.specifier.contains(shipped[one.name])] == []
