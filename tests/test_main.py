"""The command line: a chapter runs with checked parameters, and nothing runs with wrong ones."""

import subprocess
import sys

import nbformat
import pytest

from lcfuse_core import __main__ as shell
from lcfuse_core.scoring import ledger

SOURCE = """\
from lcfuse_core.book import chapter
here = chapter.begin("coarse_labels", globals())
{body}
print(seed, repr(data_root))"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book whose only chapter prints its parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LCFUSE_LEDGER", raising=False)
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "data"))

    def write(body=""):
        notebook = nbformat.v4.new_notebook()
        parameters = nbformat.v4.new_code_cell('profile = "smoke"\nseed = 0\ndata_root = ""\nplace = 0')
        parameters.metadata["tags"] = ["parameters"]
        notebook.cells = [parameters, nbformat.v4.new_code_cell(SOURCE.format(body=body))]
        (tmp_path / "book").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "book" / "coarse_labels.ipynb")
        return tmp_path

    return write


def run(*arguments):
    return shell.main(["run", "coarse_labels", "--book", "book", "--out", "made/of/folders", *arguments])


@pytest.mark.slow
def test_a_chapter_runs_with_the_parameters_given(book, capsys):
    """Values get their types, a path that is meant from here is made absolute, the folder is made."""
    top = book()
    assert run("-p", "seed", "12", "-p", "data_root", "my data") == 0
    notebook = nbformat.read(top / "made/of/folders/coarse_labels.ipynb", as_version=4)
    assert notebook.cells[-1].outputs[0].text == f"12 '{top / 'my data'}'\n"
    assert "coarse_labels.ipynb" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "sead", "1"], "unknown name sead, expected some of profile, seed, data_root, place"),
        (["-p", "steps", "1"], "unknown name steps"),
        (["-p", "seed", "many"], "parameter seed: found 'many'"),
        (["-p", "seed", "-1"], "greater than or equal to 0"),
        (["--profile", "huge"], "expected one of smoke, colab, full"),
        (["--profile", "colab", "-p", "profile", "full"], "expected one of the two"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_runs(book, capsys, arguments, message):
    top = book()
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (top / "made").exists()


def test_an_unknown_chapter_or_folder_is_refused_by_name(book, capsys):
    book()
    assert shell.main(["run", "coarse_label", "--out", "x"]) == 2
    assert "expected one of coarse_labels, sen12ms" in capsys.readouterr().err
    assert shell.main(["run", "sen12ms", "--book", "book", "--out", "x"]) == 2
    assert "sen12ms.ipynb: found no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_chapter_that_fails_says_where_and_keeps_its_notebook(book, capsys):
    top = book(body="1 / 0")
    assert run() == 1
    said = capsys.readouterr().err
    assert "coarse_labels, cell 3: ZeroDivisionError: division by zero" in said
    assert (top / "made/of/folders/coarse_labels.ipynb").exists()


def test_the_ledger_is_listed_as_a_table(tmp_path, capsys):
    entry = ledger.new_entry(
        "evaluation", {"method": "guess"}, {"aa": 0.25, "miou_8": 0.125, "oa": 0.5},
        label_regime="coarse only", profile="smoke", seeds={"world": 2}, synthetic=True,
    )  # fmt: skip
    ledger.append(tmp_path / "l.jsonl", entry)
    assert shell.main(["ledger", "list", "--file", str(tmp_path / "l.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "evaluation", "guess", "coarse", "only", "True", "2", "0.25", "0.125", "0.5"]


def test_a_missing_ledger_is_an_error_in_one_line(tmp_path, capsys):
    assert shell.main(["ledger", "list", "--file", str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none.jsonl'}: found no such file")


def test_the_sample_command_says_where_the_sample_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path))
    monkeypatch.setattr("lcfuse_core.data.sample.world.make_world", lambda root, plan: root)
    assert shell.main(["sample", "--seed", "6"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "world-6")


@pytest.mark.parametrize("command", ["run", "sample"])
def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    out = ["--out", str(tmp_path / "file" / "out")]
    monkeypatch.setenv("LCFUSE_DATA", str(tmp_path / "file"))
    assert shell.main([command, "reruns", *out] if command == "run" else [command]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ")
    assert str(tmp_path / "file") in captured
    assert captured.count("\n") == 1


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupt(root, plan):
        raise KeyboardInterrupt

    monkeypatch.setattr("lcfuse_core.data.sample.world.make_world", interrupt)
    assert shell.main(["sample", "--seed", "77"]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_the_shell_answers_without_the_libraries_that_take_seconds():
    """What a command needs it imports itself: `--help` and `data status` need none of these."""
    code = "import sys, lcfuse_core.__main__; print(*{'torch', 'sklearn', 'nbformat', 'papermill'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
