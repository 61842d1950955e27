"""CONTRIBUTING as a newcomer would follow it: the five steps, word for word, in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from mirror import small_worlds

import chapters
from lcfuse_core.scoring import ledger

TEXT = (chapters.ROOT / "CONTRIBUTING.md").read_text()
STEPS = TEXT.split("## Add a method in five steps")[1].split("\n## ")[0]


def run(words, folder):
    """A command in the copy, with the module of the copy; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "LCFUSE_DATA": str(folder / "_data")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_five_steps_and_what_they_name_is_there():
    assert re.findall(r"^\*\*(\d)\. ", STEPS, re.MULTILINE) == list("12345")
    for name in re.findall(r"`((?:lcfuse_core|tests|scripts|book)/[\w./]+\.\w+)`", TEXT):
        assert (chapters.ROOT / name).exists() or name.startswith("_build"), name


@pytest.mark.slow
def test_a_new_loss_becomes_a_row_of_the_table_by_the_five_steps(tmp_path):
    """Steps 1 to 4 as they are printed: a class, a name, the battery of tests, a line in a ledger."""
    for name in ("lcfuse_core", "scripts", "tests"):
        shutil.copytree(chapters.ROOT / name, tmp_path / name)
    shutil.copy(chapters.ROOT / "data_manifest.yaml", tmp_path)
    (tmp_path / "_data").mkdir()
    (tmp_path / "_data" / "small").symlink_to(small_worlds())
    for file, code in re.findall(r"```python\n# (lcfuse_core/[\w/]+\.py)\n(.*?)```", STEPS, re.DOTALL):
        target = tmp_path / file
        target.write_text(f"{target.read_text()}\n\n{code}")
    commands = [shlex.split(line) for line in re.findall(r"^python (.*)$", STEPS, re.MULTILINE)]
    battery, small, _ = commands
    said = run([sys.executable, *battery, "-p", "no:cacheprovider", "-n", "0"], tmp_path)
    assert int(re.search(r"(\d+) passed", said)[1]) >= 5
    (tmp_path / "_build").mkdir()
    run([sys.executable, *small], tmp_path)
    lines = ledger.read(tmp_path / "_build" / "try.jsonl")
    assert list(lines["parameters.method"]) == ["FCN, weighted, focal"]
    assert 0 < lines["scores.aa"].iloc[0] < 1
