"""
The committed chapters: run, current, in good style, and verified by a comparison that notices one wrong digit.

`make test` also runs every chapter from top to bottom and compares (nbval, as a second pytest command). Not compared
are cells that give a reason (their own *Checks* hold what matters), and what `nbval.cfg` replaces.
"""

import ast
import copy
import os
import re
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, get_sanitize_patterns, nocolors
from project import EXTRAS, PROJECT, imported, name_of

import chapters
from lcfuse_core.book import settings

NAMES = chapters.names()
SANITIZER = Path(__file__).with_name("nbval.cfg")
PATTERNS = dict(get_sanitize_patterns(SANITIZER.read_text()))
SKELETON = (
    r"able to", r"\bchecks\b", r"\btake[- ]?aways?\b", r"does not show", r"\bprovenance\b", r"\bexercises?\b",
)  # fmt: skip

MODULES_OF_A_CHAPTER = 8

each_chapter = pytest.mark.parametrize("name", NAMES)
read = cache(chapters.read)


def code(name: str) -> list[NotebookNode]:
    """The code cells of a chapter."""
    return chapters.code_cells(read(name))


def markdown(name: str) -> str:
    """All text cells of a chapter."""
    return "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")


def plain_python(cell: NotebookNode) -> str:
    """The source of a cell with its magics (`%pip`) turned into calls, as IPython does."""
    return TransformerManager().transform_cell(cell.source)


# What is committed -------------------------------------------------------------------------------


def test_the_book_lists_every_notebook_once():
    assert sorted(NAMES) == sorted(file.stem for file in chapters.BOOK.glob("*.ipynb"))
    assert sorted(NAMES) == sorted(settings.CHAPTERS)


@each_chapter
def test_a_notebook_is_valid_and_has_run_in_order_without_error(name):
    nbformat.validate(read(name))
    assert len({cell["id"] for cell in read(name).cells}) == len(read(name).cells)
    assert [cell["id"] for cell in read(name).cells if "execution" in cell.metadata] == [], "times differ in each run"
    assert [cell.execution_count for cell in code(name)] == list(range(1, len(code(name)) + 1))
    assert [out.ename for cell in code(name) for out in cell.outputs if out.output_type == "error"] == []


@each_chapter
def test_outputs_were_made_by_what_is_there_now(name):
    """A changed module, lock, profile or cell without re-executed chapters is found here."""
    assert chapters.is_current(read(name)), f"run: make execute CHAPTER={name}"


@each_chapter
def test_cells_that_are_not_compared_have_a_reason(name):
    for cell in code(name):
        is_ignored = chapters.IGNORED in chapters.tags(cell)
        reason = cell.metadata.get("lcfuse", {}).get("why", "").strip()
        assert is_ignored == bool(reason), f"{name}, cell {cell.execution_count}: why is it {is_ignored=}?"


FOLDERS = re.compile(r"(?<![\w.])/(work|home/\w+|root|opt|usr|Users|tmp|private)/\w|[A-Z]:\\\\?Users")
WARNING = re.compile(r"\b[A-Z]\w*Warning\b: |^Traceback|^WARNING|\[IPKernelApp\]", re.MULTILINE)
BARE_SERIES = re.compile(r"^(Name: .*, )?dtype: \w+$", re.MULTILINE)
"""A Series is printed with its name and dtype under its values; a table is not."""


@each_chapter
def test_stored_outputs_hold_no_warning_progress_bar_or_path_of_a_machine(name):
    for cell in code(name):
        assert "injected-parameters" not in chapters.tags(cell), "a run by papermill, not the chapter itself"
        assert [out.text for out in cell.outputs if out.get("name") == "stderr"] == [], cell["id"]
        for output in cell.outputs:
            data = {kind: text for kind, text in output.get("data", {}).items() if kind != "image/png"}
            assert not [kind for kind in data if "widget" in kind], cell["id"]
            for text in map(str, (output.get("text", ""), *data.values())):
                found = FOLDERS.search(text) or WARNING.search(text) or BARE_SERIES.search(text)
                assert not found, f"{name}, cell {cell.execution_count}: {found[0]}"


# Style -------------------------------------------------------------------------------------------


@each_chapter
def test_code_cells_and_functions_are_short(name):
    lengths = []
    for cell in code(name):
        lines = [line.strip() for line in cell.source.splitlines()]
        lengths.append(sum(1 for line in lines if line and not line.startswith("#")))
        for node in ast.walk(ast.parse(plain_python(cell))):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 30, f"{name}: {node.name} has {length} lines"
    assert max(lengths) <= 30
    assert statistics.median(lengths) <= 10


@each_chapter
def test_a_chapter_has_the_parts_that_every_chapter_has(name):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), "a file is named for its topic, letters first"
    assert read(name).cells[0].source.startswith("# ")
    assert [part for part in SKELETON if not re.search(part, markdown(name).lower())] == []
    assert any("parameters" in chapters.tags(cell) for cell in code(name))
    assert any(re.search(r"^assert ", cell.source, re.M) for cell in code(name))


@each_chapter
def test_each_exercise_has_a_solution(name):
    """Solutions are code cells, folded in the book and in JupyterLab, which are executed and compared as all others."""
    exercises = [int(number) for number in re.findall(r"^### Exercise (\d+)\. \S", markdown(name), re.M)]
    prompts = [cell.metadata.get("mystnb", {}).get("code_prompt_show", "") for cell in code(name)]
    folded = [cell for cell in code(name) if "hide-cell" in chapters.tags(cell)]
    assert len(exercises) >= 2
    assert exercises == list(range(1, len(exercises) + 1))
    assert {f"Solution of exercise {number}" for number in exercises} == set(filter(None, prompts))
    assert all(cell.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True} for cell in folded)


MYST = re.compile(r"\{[a-z:-]+\}`|^\s*(?:`{3,}|:{3,}|~{3,})\s*\{|^\([\w-]+\)=\s*$|^\+\+\+|^:\w+:", re.MULTILINE)
"""Roles, directives, targets, block breaks and options of MyST: raw text in JupyterLab, on Colab and on GitHub."""

MYST_ALLOWED = {"quiz": 1, "status": 1, "api": 10}
"""Pages with text that is generated by the build of the book (two includes, links to the reference of the module)."""


def test_pages_are_readable_without_myst():
    assert all(map(MYST.search, ("see {doc}`x`", "```{note}\nx\n```", ":::{tip}", "(here)=\n# x", ":label: x")))
    texts = {name: markdown(name) for name in NAMES}
    texts |= {file.stem: file.read_text() for file in chapters.BOOK.glob("*.md")}
    found = {name: len(MYST.findall(text)) for name, text in texts.items()}
    assert {name: number for name, number in found.items() if number} == MYST_ALLOWED


@each_chapter
def test_each_figure_has_a_numbered_caption_below_it_and_the_text_refers_to_it(name):
    cells = read(name).cells
    captions = []
    for number, cell in enumerate(cells[:-1]):
        has_picture = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if has_picture and "hide-cell" not in chapters.tags(cell):
            captions.append(re.match(r"\*\*Figure (\d+)\.\*\* \S.{20}", cells[number + 1].source))
            assert captions[-1], f"{name}, cell {number}: a figure without a caption"
    numbers = {int(number) for number in re.findall(r"^\*\*Figure (\d+)\.\*\*", markdown(name), re.M)}
    assert numbers == set(range(1, len(numbers) + 1))
    own = re.findall(r"\bFigures? (\d+)\b(?! of \[)", markdown(name))
    assert {int(number) for number in own} <= numbers


def test_the_set_up_cell_is_the_same_in_every_chapter():
    """Except for the extra that reads places from the network."""
    assert len({code(name)[0].source.replace(",places]", "]") for name in NAMES}) == 1


@each_chapter
def test_a_chapter_imports_only_what_colab_has_or_the_set_up_adds(name):
    allowed = {name_of(item) for item in [*PROJECT["dependencies"], *EXTRAS["notebook"]]}
    allowed |= {"google", "ipykernel"}  # Colab's own module, behind a check; IPython, which every notebook runs in
    for cell in code(name):
        assert imported(plain_python(cell)) <= allowed


@each_chapter
def test_a_chapter_imports_from_few_modules(name):
    found = set()
    for node in ast.walk(ast.parse("\n".join(map(plain_python, code(name))))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lcfuse_core"):
            for alias in node.names:
                path = Path(settings.__file__).parents[2] / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    assert len(found) <= MODULES_OF_A_CHAPTER, sorted(found)


# The comparison ----------------------------------------------------------------------------------

SKIPPED = (
    "metadata", "traceback", "text/latex", "prompt_number", "output_type", "name", "execution_count", "image/png",
)  # fmt: skip
NUMBER = re.compile(r"\d+(?:\.\d+)?")
LONG, MANY = 4000, 300
"""A text of more characters holds a drawing; of an output with more numbers, only every second, third, ... is tried."""


def comparison():
    """The comparison by nbval of two lists of outputs, with the project's rules, without a kernel."""
    item = IPyNbCell.__new__(IPyNbCell)
    item.parent = SimpleNamespace(skip_compare=SKIPPED, sanitize_patterns=PATTERNS)
    item.colors, item.comparison_traceback = nocolors, []
    item.format_output_compare = lambda *what: None
    return lambda one, other: IPyNbCell.compare_outputs(item, one, other)


def sanitized(text: str) -> str:
    """What nbval compares, once it has replaced what may differ."""
    for regex, replacement in PATTERNS.items():
        text = re.sub(regex, replacement, text)
    return text


def compared_texts(name: str):
    """(cell, output, kind, text) of each stored text that is compared; kind "text" for what a cell prints."""
    for cell in code(name):
        if chapters.IGNORED not in chapters.tags(cell):
            for output in cell.outputs:
                texts = {"text": output.get("text"), **output.get("data", {})}
                for kind, text in texts.items():
                    if kind not in SKIPPED and isinstance(text, str):
                        yield cell, output, kind, text


def with_text(output, kind, text):
    """The output again, with another text."""
    return NotebookNode({**output, **({"text": text} if kind == "text" else {"data": {**output["data"], kind: text}})})


def compared_numbers(text):
    """A match for each number in a text that no rule replaces."""
    replaced = [match.span() for rule in PATTERNS for match in re.finditer(rule, text)]
    for number in NUMBER.finditer(text):
        if not any(begin <= number.start() < end for begin, end in replaced):
            yield number


def with_a_wrong_digit(number):
    """The text of a match, with the last digit of the number changed."""
    text, last = number.string, number.end() - 1
    return f"{text[:last]}{(int(text[last]) + 1) % 10}{text[last + 1 :]}"


@each_chapter
def test_any_wrong_digit_of_a_compared_output_is_noticed(name):
    """Piece by piece: no rule reaches over a line or tag, so a piece that differs makes the whole output differ."""
    same, noticed, missed = comparison(), 0, []
    for cell, output, kind, text in compared_texts(name):
        pieces = dict.fromkeys(re.split(r"\n|(?<=>)", text))
        step = 1 + len(NUMBER.findall(text)) // MANY
        for number in islice((one for piece in pieces for one in compared_numbers(piece)), 0, None, step):
            whole, bent = number.string, with_a_wrong_digit(number)
            if same([with_text(output, kind, bent)], [with_text(output, kind, whole)]):
                missed.append((cell.execution_count, number.group(), whole[:80]))
            else:
                noticed += 1
    assert missed == []
    assert noticed >= 5


def test_no_rule_reaches_over_a_line_or_tag_and_together_they_hide_little():
    """A rule spells out what it takes: no line end, no ">", and nothing that stands for any character."""
    for rule in PATTERNS:
        assert not re.search(r"\\n|\\s[*+]|\\[SDWB]|\[\^|DOTALL", rule), rule
        taken = re.sub(r"\(\?[=!][^)]*\)", "", rule)  # what is only looked at
        assert ">" not in taken, rule
        assert "." not in re.sub(r"\[[^]]*\]|\\\.", "", taken), rule
    texts = [text for name in NAMES for *_, text in compared_texts(name) if len(text) < LONG]
    shown, kept = (sum(len(NUMBER.findall(change(text))) for text in texts) for change in (str, sanitized))
    assert shown > 500
    assert shown - kept < 0.1 * shown


BENT = os.environ.get("LCFUSE_BENT", "coarse_labels").split()
"""Chapters that are run with a wrong digit; LCFUSE_BENT=all, nightly, runs every one (four minutes)."""


def bent_notebook(name: str) -> NotebookNode:
    """A copy that ends with the first cell that shows a compared number, and stores a wrong one there."""
    for cell, output, kind, text in compared_texts(name):
        number = next(compared_numbers(text), None)
        if number is not None and "image/png" not in output.get("data", {}):
            notebook = copy.deepcopy(read(name))
            del notebook.cells[read(name).cells.index(cell) + 1 :]
            notebook.cells[-1].outputs[cell.outputs.index(output)] = with_text(output, kind, with_a_wrong_digit(number))
            return notebook
    raise AssertionError(f"{name} shows no compared number")


@pytest.mark.slow
def test_a_chapter_with_one_wrong_digit_fails_at_the_cell_that_shows_it(tmp_path):
    """Run and compared as `make test` does: the cells before it pass."""
    expected = {}
    for name in NAMES if BENT == ["all"] else BENT:
        notebook = bent_notebook(name)
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
        expected[name] = [True] * (len(chapters.code_cells(notebook)) - 1) + [False]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "--nbval"]
    command += ["--nbval-current-env", "--nbval-cell-timeout=600", "--nbval-sanitize-with", str(SANITIZER)]
    command += [f"--junitxml={tmp_path / 'report.xml'}", str(tmp_path)]
    environment = {**os.environ, "LCFUSE_LEDGER": str(tmp_path / "ledger.jsonl")}
    environment.pop("MPLBACKEND", None)  # set for tests alone; under it a chapter's figures would not show
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    passed: dict[str, list[bool]] = {}
    for case in ElementTree.parse(tmp_path / "report.xml").getroot().iter("testcase"):
        name = case.get("classname", "").removesuffix(".ipynb").split(".")[-1]
        passed.setdefault(name, []).append(case.find("failure") is None and case.find("error") is None)
    assert passed == expected


# The tools themselves ----------------------------------------------------------------------------


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A project with a module of two rooms, a lock, a profile, and one chapter of one cell."""
    for file, text in {
        "lcfuse_core/a.py": "X = 1\n",
        "lcfuse_core/sample/b.py": "Y = 1\n",
        "lcfuse_core/shipped/profiles/smoke.json": "{}\n",
        "requirements.lock": "numpy==2.4.6\n",
        "book/_toc.yml": "parts: [{chapters: [{file: one}]}]\n",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text(text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(2 * 21)")])
    nbformat.write(notebook, tmp_path / "book" / "one.ipynb")
    return tmp_path


def test_the_digest_of_a_chapter_changes_with_every_file_in_every_folder(small_book):
    notebook = chapters.read("one", small_book / "book")
    before = chapters.digest(notebook, small_book)
    files = [file for file in small_book.rglob("*") if file.suffix in {".py", ".lock", ".json"}]
    assert len(files) == 4
    for file in files:
        text = file.read_text()
        file.write_text(text + "\nY = 2\n")
        assert chapters.digest(notebook, small_book) != before, file
        file.write_text(text)
    assert chapters.digest(notebook, small_book) == before
    notebook.cells[0].source = "print(2 * 22)"
    assert chapters.digest(notebook, small_book) != before


@pytest.mark.slow
def test_executing_stores_outputs_with_their_digest_and_a_failure_changes_nothing(small_book):
    book = small_book / "book"
    chapters.execute("one", book)
    notebook = chapters.read("one", book)
    assert notebook.cells[0].outputs[0].text == "42\n"
    assert chapters.is_current(notebook, small_book)
    notebook.cells[0].source = "raise ValueError('no')"
    nbformat.write(notebook, book / "one.ipynb")
    before = (book / "one.ipynb").read_bytes()
    with pytest.raises(CellExecutionError, match="no"):
        chapters.execute("one", book)
    assert (book / "one.ipynb").read_bytes() == before
    assert list(book.glob("*.part")) == []


def test_chapters_that_take_longest_are_begun_first_and_none_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["chapters.py", "list", "--longest-first"])
    chapters.main()
    listed = capsys.readouterr().out.split()
    assert listed[0] == chapters.LONGEST[0]
    assert sorted(listed) == sorted(NAMES)
