"""The benchmarks are run by hand, months apart: each must still find what it measures."""

import importlib

import pytest

import chapters

FOLDER = chapters.ROOT / "benchmarks"
FILES = sorted(file.stem for file in FOLDER.glob("*.py"))
COMMANDS = [name for name in FILES if "def main(" in (FOLDER / f"{name}.py").read_text()]


@pytest.mark.parametrize("name", FILES)
def test_a_benchmark_finds_all_that_it_will_use(name):
    importlib.import_module(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_stands_in_the_readme_and_says_what_it_takes(name, monkeypatch, capsys):
    assert f"benchmarks/{name}.py" in (FOLDER / "README.md").read_text()
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main()
    assert end.value.code == 0
    assert "usage: " in capsys.readouterr().out
