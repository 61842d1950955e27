"""The benchmarks are run by hand, months apart: each must still find what it measures."""

import ast
import importlib
from types import ModuleType

import pytest

import chapters

FOLDER = chapters.ROOT / "benchmarks"
FILES = sorted(file.stem for file in FOLDER.glob("*.py"))
COMMANDS = [name for name in FILES if "def main(" in (FOLDER / f"{name}.py").read_text()]


@pytest.mark.parametrize("name", FILES)
def test_a_benchmark_finds_all_that_it_will_use(name):
    """It can be imported, and what it takes from modules exists."""
    names = vars(importlib.import_module(name))
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            assert not isinstance(module, ModuleType) or hasattr(module, node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_stands_in_the_readme_and_says_what_it_takes(name, monkeypatch, capsys):
    assert f"benchmarks/{name}.py" in (FOLDER / "README.md").read_text()
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main()
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out
