"""The ledger from a shell: list, show, diff."""

import json

import pytest

from lcfuse_core import __main__ as shell
from lcfuse_core.scoring import ledger


@pytest.fixture
def file(tmp_path):
    """A ledger with two lines that differ in one parameter and one score, and a torn line between them."""
    path = tmp_path / "ledger.jsonl"
    for seed in (0, 1):
        entry = ledger.new_entry(
            "evaluation", {"method": "guess", "seed": seed}, {"aa": 0.25 + seed / 8, "regions": {}},
            label_regime="coarse only", profile="smoke", seeds={"world": 0}, synthetic=True, cost={"train_s": seed},
        )  # fmt: skip
        ledger.append(path, entry)
        if seed == 0:
            with path.open("ab") as open_file:
                open_file.write(b'{"schema": 2, "kin')
    return str(path)


def run(*arguments):
    return shell.main(["ledger", *arguments])


@pytest.mark.filterwarnings("ignore:left out")
def test_list_numbers_the_lines_as_show_takes_them(file, capsys):
    assert run("list", "--file", file) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["line", "1", "3"]
    assert run("show", "3", "--file", file) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == {"method": "guess", "seed": 1}
    assert run("show", "-1", "--file", file) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["seed"] == 1


def test_diff_names_what_differs_and_nothing_else(file, capsys):
    assert run("diff", "1", "3", "--file", file) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said == [["parameters.seed", "0", "->", "1"], ["scores.aa", "0.25", "->", "0.375"]]
    assert run("diff", "1", "3", "--all", "--file", file) == 0
    assert "cost.train_s" in capsys.readouterr().out
    assert run("diff", "1", "1", "--file", file) == 0
    assert capsys.readouterr().out.startswith("no difference")


@pytest.mark.parametrize("number", ["0", "2", "4", "-3"])
def test_a_line_that_is_not_there_is_named_with_those_that_are(file, capsys, number):
    """Line 2 is torn: it is no line."""
    assert run("show", number, "--file", file) == 2
    assert f"found no line {number}, expected one of 1, 3" in capsys.readouterr().err
