"""
The committed chapters: run, current, in good style, and verified by a comparison that bites.

`make test` also runs every chapter from top to bottom and compares (nbval, as a second pytest command);
here it is shown that this comparison notices a single wrong digit; `test_digits.py` asks it about all of them.
"""

import ast
import configparser
import copy
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from test_packaging import EXTRAS, IMPORT_NAMES, PROJECT, imported, name_of

import chapters
from lcfuse_core.book import settings

ROOT = chapters.ROOT
NAMES = chapters.names()
SANITIZER = Path(__file__).with_name("nbval.cfg")
SKELETON = (
    r"able to", r"\bchecks\b", r"\btake[- ]?aways?\b", r"does not show", r"\bprovenance\b", r"\bexercises?\b",
)  # fmt: skip

each_chapter = pytest.mark.parametrize("name", NAMES)


def plain_python(cell: NotebookNode) -> str:
    """The source of a cell with its magics (`%pip`) turned into calls, as IPython does."""
    return TransformerManager().transform_cell(cell.source)


def source_lines(cell: NotebookNode) -> int:
    """Lines of code in a cell, without empty ones and comments."""
    lines = [line.strip() for line in cell.source.splitlines()]
    return sum(1 for line in lines if line and not line.startswith("#"))


def prose(notebook: NotebookNode) -> str:
    """The text of a chapter: Markdown cells without code, formulas, directive lines and addresses."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.sub(r"```(python|sh|bash|text)\b.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"^(```|:::|:\w+:)[^\n]*$|\$\$.*?\$\$|https?://\S+", "", text, flags=re.MULTILINE | re.DOTALL)


def words(text: str) -> int:
    """Number of words."""
    return len(re.findall(r"\b[^\W\d_][\w'’-]*", text))


# What is committed -------------------------------------------------------------------------------


def test_the_book_has_chapters_and_lists_every_notebook_once():
    assert len(NAMES) >= 1
    assert sorted(NAMES) == sorted(file.stem for file in chapters.BOOK.glob("*.ipynb"))
    assert sorted(NAMES) == sorted(settings.CHAPTERS)


@each_chapter
def test_every_code_cell_has_run_in_order_and_without_error(name):
    cells = chapters.code_cells(chapters.read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [out.ename for cell in cells for out in cell.outputs if out.output_type == "error"] == []


@each_chapter
def test_outputs_were_made_by_what_is_there_now(name):
    """A changed module, lock, profile or cell without re-executed chapters is caught here."""
    assert chapters.is_current(chapters.read(name)), f"run: make execute CHAPTER={name}"


@each_chapter
def test_cells_that_are_not_compared_say_why(name):
    for cell in chapters.code_cells(chapters.read(name)):
        ignored = chapters.IGNORED in chapters.tags(cell)
        why = cell.metadata.get("lcfuse", {}).get("why", "")
        assert ignored == bool(why.strip()), f"{name}, cell {cell.execution_count}: why is it {ignored=}?"


@each_chapter
def test_no_warning_or_progress_bar_is_committed(name):
    for cell in chapters.code_cells(chapters.read(name)):
        errors = [out.text for out in cell.outputs if out.get("name") == "stderr"]
        assert errors == [], f"{name}, cell {cell.execution_count}"
        assert "widgets" not in str([list(out.get("data", {})) for out in cell.outputs])


@each_chapter
def test_notebook_is_valid_and_free_of_timing(name):
    notebook = chapters.read(name)
    nbformat.validate(notebook)
    assert len({cell["id"] for cell in notebook.cells}) == len(notebook.cells)
    assert [cell["id"] for cell in notebook.cells if "execution" in cell.metadata] == []


@each_chapter
def test_no_output_is_a_bare_series(name):
    """A Series prints its name and dtype under its values; a table does not."""
    for cell in chapters.code_cells(chapters.read(name)):
        for output in cell.outputs:
            text = output.get("data", {}).get("text/plain", "") + output.get("text", "")
            assert not re.search(r"^(Name: .*, )?dtype: \w+$", text, re.MULTILINE), cell["id"]


# Style -------------------------------------------------------------------------------------------


@each_chapter
def test_code_cells_are_few_and_short(name):
    lengths = [source_lines(cell) for cell in chapters.code_cells(chapters.read(name))]
    assert len(lengths) <= 25
    assert statistics.median(lengths) <= 5
    assert max(lengths) <= 25


@each_chapter
def test_prose_carries_the_code(name):
    notebook = chapters.read(name)
    count = words(prose(notebook))
    lines = sum(source_lines(cell) for cell in chapters.code_cells(notebook))
    assert 1000 <= count <= 2500
    assert count >= 10 * lines, f"{count} words for {lines} lines of code"


@each_chapter
def test_functions_on_a_page_are_short(name):
    for cell in chapters.code_cells(chapters.read(name)):
        for node in ast.walk(ast.parse(plain_python(cell))):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 15, f"{name}: {node.name} has {length} lines; it belongs into lcfuse_core"


@each_chapter
def test_sections_have_at_most_three_cells_and_end_in_words(name):
    """Each section closes with a sentence on what was seen (set-up and checks speak for themselves)."""
    cells = chapters.read(name).cells
    run, heading = 0, "the title"
    for cell, after in pairwise([*cells, None]):
        if cell.cell_type != "code":
            titles = re.findall(r"^##+ (.*)", cell.source, re.MULTILINE)
            run, heading = (0, titles[-1]) if titles else (run, heading)
            continue
        run += 1
        assert run <= 3, f"{name}: more than three code cells under {heading}"
        assert after is not None, f"{name}: {heading} ends in code"
        speaks = heading == "the title" or re.search(r"set-?up|param|check|provenance", heading, re.IGNORECASE)
        starts_new = after.source.startswith("## ")
        assert speaks or not starts_new, f"{name}: nothing is said about what {heading} shows"


@each_chapter
def test_a_chapter_has_the_parts_that_every_chapter_has(name):
    notebook = chapters.read(name)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), "a file is named for its topic, letters first"
    assert notebook.cells[0].source.startswith("# ")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").lower()
    assert [part for part in SKELETON if not re.search(part, text)] == []
    assert any("parameters" in chapters.tags(cell) for cell in chapters.code_cells(notebook))
    assert any(re.search(r"^assert ", cell.source, re.M) for cell in chapters.code_cells(notebook))


@each_chapter
def test_each_exercise_has_a_solution(name):
    text = "\n".join(cell.source for cell in chapters.read(name).cells if cell.cell_type == "markdown")
    labels = re.findall(r"\{exercise(?:-start)?\}.*?\n:label: ([\w-]+)", text)
    solved = re.findall(r"\{solution(?:-start)?\} ([\w-]+)", text)
    assert 2 <= len(labels) <= 4
    assert sorted(labels) == sorted(solved)


@each_chapter
def test_a_chapter_comes_back_to_our_place(name):
    """The red thread: the same place by the same call, in a figure that is called so, and in the words around it."""
    notebook = chapters.read(name)
    assert any("here.our_place(" in cell.source for cell in chapters.code_cells(notebook))
    figures = [cell.metadata.get("mystnb", {}).get("figure", {}) for cell in chapters.code_cells(notebook)]
    assert any(figure.get("caption", "").startswith("Our place") for figure in figures)
    assert re.search(r"\bour place\b", prose(notebook), re.IGNORECASE)


def test_the_first_code_cell_is_the_same_in_every_chapter():
    first = {name: chapters.code_cells(chapters.read(name))[0].source for name in NAMES}
    assert len(set(first.values())) == 1, "the set-up cell differs"


@each_chapter
def test_chapters_import_only_what_colab_has_or_the_set_up_adds(name):
    allowed = {name_of(item) for item in [*PROJECT["dependencies"], *EXTRAS["notebook"]]}
    allowed |= {"google", "ipykernel"}  # Colab's own module, behind a check; IPython, which every notebook runs in
    for cell in chapters.code_cells(chapters.read(name)):
        assert {IMPORT_NAMES.get(found, found).lower() for found in imported(plain_python(cell))} <= allowed


# The verification bites --------------------------------------------------------------------------


def sanitized(text: str) -> str:
    """What nbval compares, once it has replaced what may differ."""
    rules = configparser.RawConfigParser()
    rules.read(SANITIZER)
    for rule in rules.sections():
        text = re.sub(rules[rule]["regex"], rules[rule]["replace"], text)
    return text


def bend(text: str) -> str | None:
    """*text* with the last digit of its first compared number changed; None when it has none."""
    for match in re.finditer(r"(?<![\w.])\d+(\.\d+)?(?![\w.])", text):
        place = match.end() - 1
        bent = f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}"
        if sanitized(bent) != sanitized(text):
            return bent
    return None


def bend_first_number(notebook: NotebookNode) -> NotebookNode | None:
    """A copy that ends with the first cell that shows a compared number, and shows a wrong one there."""
    for end, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or chapters.IGNORED in chapters.tags(cell):
            continue
        for position, out in enumerate(cell.outputs):
            holder, key = (out, "text") if "text" in out else (out.get("data", {}), "text/plain")
            bent = None if "image/png" in holder else bend(holder.get(key, ""))
            if bent is not None:
                wrong = copy.deepcopy(notebook)
                wrong.cells = wrong.cells[:end]
                target = wrong.cells[-1].outputs[position]
                (target if key == "text" else target["data"])[key] = bent
                return wrong
    return None


def compare(folder: Path) -> dict[str, list[bool]]:
    """Run the notebooks of a folder as `make test` does; for each, whether its code cells passed."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600"]
    command += ["--nbval-sanitize-with", str(SANITIZER), f"--junitxml={report}", str(folder)]
    environment = {**os.environ, "LCFUSE_LEDGER": str(folder / "ledger.jsonl")}
    environment.pop("MPLBACKEND", None)  # set for tests alone; under it a chapter's figures would not show
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert report.exists(), done.stdout
    passed: dict[str, list[bool]] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = case.get("classname", "").removesuffix(".ipynb").split(".")[-1]
        passed.setdefault(name, []).append(case.find("failure") is None and case.find("error") is None)
    return passed


BENT = os.environ.get("LCFUSE_BENT", "coarse_labels sen12ms").split()
"""Chapters that are run with a wrong digit; LCFUSE_BENT=all, nightly, runs every one (four minutes)."""


@pytest.fixture(scope="module")
def bent() -> dict[str, NotebookNode]:
    """These chapters up to their first compared number, and with one wrong digit there."""
    wrong = {name: bend_first_number(chapters.read(name)) for name in (NAMES if BENT == ["all"] else BENT)}
    assert [name for name, notebook in wrong.items() if notebook is None] == [], "no compared number"
    return {name: notebook for name, notebook in wrong.items() if notebook is not None}


@pytest.fixture(scope="module")
def verdicts(bent, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bool]]:
    """What the comparison says of the bent chapters."""
    folder = tmp_path_factory.mktemp("bent")
    for name, notebook in bent.items():
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return compare(folder)


@pytest.mark.slow
def test_one_wrong_digit_is_noticed(bent, verdicts):
    """The cells before the wrong number pass, the cell that shows it fails."""
    assert verdicts == {name: [True] * (len(chapters.code_cells(wrong)) - 1) + [False] for name, wrong in bent.items()}


def test_bending_changes_one_digit_and_skips_what_is_not_compared():
    assert bend("AA 0.449 of 8 classes") == "AA 0.440 of 8 classes"
    assert bend("took 12.5 s, AA 0.44") == "took 12.5 s, AA 0.45"
    assert bend("took 3 s") is None


# The tools themselves ----------------------------------------------------------------------------


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A project with one module file, one lock, and one chapter of one cell."""
    for file, text in {
        "lcfuse_core/a.py": "X = 1\n",
        "requirements.lock": "numpy==2.4.6\n",
        "book/_toc.yml": "parts: [{chapters: [{file: one}]}]\n",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(2 * 21)")])
    nbformat.write(notebook, tmp_path / "book" / "one.ipynb")
    return tmp_path


@pytest.mark.slow
def test_executing_stores_outputs_and_a_digest_that_notices_every_change(small_book):
    book = small_book / "book"
    assert not chapters.is_current(chapters.read("one", book), small_book)
    chapters.execute("one", book)
    notebook = chapters.read("one", book)
    assert notebook.cells[0].outputs[0].text == "42\n"
    assert chapters.is_current(notebook, small_book)
    for file in ("lcfuse_core/a.py", "requirements.lock"):
        text = (small_book / file).read_text()
        (small_book / file).write_text(text + "# changed\n")
        assert not chapters.is_current(notebook, small_book), file
        (small_book / file).write_text(text)
    assert chapters.is_current(notebook, small_book)
    notebook.cells[0].source = "print(2 * 22)"
    assert not chapters.is_current(notebook, small_book)


@pytest.mark.slow
def test_a_failing_chapter_is_left_as_it_was(small_book):
    file = small_book / "book" / "one.ipynb"
    notebook = chapters.read("one", file.parent)
    notebook.cells[0].source = "raise ValueError('no')"
    nbformat.write(notebook, file)
    before = file.read_bytes()
    with pytest.raises(CellExecutionError, match="no"):
        chapters.execute("one", file.parent)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.glob("*.part")] == []


def test_chapters_that_take_longest_are_begun_first_and_none_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["chapters.py", "list", "--longest-first"])
    chapters.main()
    said = capsys.readouterr().out.split()
    assert said[0] == chapters.LONGEST[0]
    assert sorted(said) == sorted(chapters.names())
