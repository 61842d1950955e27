"""
Every stored number is compared: change one digit of any of them, anywhere in the book, and the comparison fails.

`test_chapters.py` runs chapters with one wrong digit. Here nbval's own comparison is asked, without running
anything, about every number of every output that it compares. Not compared are cells that say why (their own *Checks*
hold what matters), and what `nbval.cfg` replaces: times, addresses, folders, pictures.
"""

import re
from itertools import islice
from types import SimpleNamespace

import pytest
from nbformat import NotebookNode
from nbval.plugin import IPyNbCell, get_sanitize_patterns, nocolors
from test_chapters import SANITIZER, sanitized

import chapters

SKIPPED = (
    "metadata",
    "traceback",
    "text/latex",
    "prompt_number",
    "output_type",
    "name",
    "execution_count",
    "image/png",
)
LONG = 4000
"""Characters of a line, or of a tag, that holds a drawing."""

NUMBER = re.compile(r"\d+(?:\.\d+)?")
PATTERNS = dict(get_sanitize_patterns(SANITIZER.read_text()))


def comparison():
    """The comparison by nbval of two lists of outputs, with the project's rules, without a kernel."""
    item = IPyNbCell.__new__(IPyNbCell)
    item.parent = SimpleNamespace(skip_compare=SKIPPED, sanitize_patterns=PATTERNS)
    item.colors, item.comparison_traceback = nocolors, []
    item.format_output_compare = lambda *what: None
    return lambda one, other: IPyNbCell.compare_outputs(item, one, other)


def stored(cell):
    """(output, kind) of each stored text of a cell; kind "text" for what it prints."""
    for output in cell.outputs:
        if "text" in output:
            yield output, "text"
        for kind in output.get("data", {}):
            if kind not in SKIPPED and isinstance(output["data"][kind], str):
                yield output, kind


def said(output, kind):
    """The text itself."""
    return output["text"] if kind == "text" else output["data"][kind]


def with_text(output, kind, text):
    """The output again, with another text."""
    changed = {"text": text} if kind == "text" else {"data": {**output["data"], kind: text}}
    return NotebookNode({**output, **changed})


def wrong(text):
    """The text once for each number in it that no rule replaces, with the last digit of that number changed."""
    replaced = [match.span() for rule in PATTERNS for match in re.finditer(rule, text)]
    for number in NUMBER.finditer(text):
        if not any(begin <= number.start() < end for begin, end in replaced):
            place = number.end() - 1
            yield f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}", number.group()


@pytest.mark.parametrize("name", chapters.names())
def test_any_wrong_digit_of_a_compared_output_is_caught(name):
    """Piece by piece: no rule reaches over its end, so a piece that differs makes the whole output differ."""
    same, caught, missed = comparison(), 0, []
    for cell in chapters.code_cells(chapters.read(name)):
        if chapters.IGNORED in chapters.tags(cell):
            continue
        for output, kind in stored(cell):
            for piece in re.split(r"\n|(?<=>)", said(output, kind)):
                whole = with_text(output, kind, piece)
                # A tag may be a drawing of thousands of numbers: of those, every fiftieth.
                for bent, number in islice(wrong(piece), 0, None, 1 if len(piece) < LONG else 50):
                    if same([with_text(output, kind, bent)], [whole]):
                        missed.append((cell.execution_count, number, piece[:80]))
                    else:
                        caught += 1
    assert missed == []
    assert caught >= 5


def test_no_rule_reaches_over_the_end_of_a_line_or_tag():
    """A rule spells out what it takes: no line end, no ">", and nothing that stands for any character."""
    for rule in PATTERNS:
        assert not re.search(r"\\n|\\s[*+]|\\[SDWB]|\[\^|DOTALL", rule), rule
        taken = re.sub(r"\(\?[=!][^)]*\)", "", rule)  # what is only looked at
        assert ">" not in taken, rule
        assert "." not in re.sub(r"\[[^]]*\]|\\\.", "", taken), rule


def test_what_is_not_compared_is_little():
    """Of all numbers in compared cells, the share that a rule of nbval.cfg hides."""
    shown = hidden = 0
    for name in chapters.names():
        for cell in chapters.code_cells(chapters.read(name)):
            if chapters.IGNORED not in chapters.tags(cell):
                for output, kind in stored(cell):
                    text = said(output, kind)
                    if len(text) < LONG:
                        shown += len(NUMBER.findall(text))
                        hidden += len(NUMBER.findall(text)) - len(NUMBER.findall(sanitized(text)))
    assert shown > 500
    assert hidden < 0.1 * shown
