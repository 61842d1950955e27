"""
Numbers in the prose: a score that is typed in will be wrong one day, and nobody will notice.

The rule. A *score* is a number with a per cent sign (`46.45 %`, also a range), or one of 0..1 that follows the name of
a score (`AA of 0.52`). In Markdown it may stand only

- in the output of a cell, which is computed (`Markdown(f"...")`);
- in a paragraph or table row that cites where it was published (a link to `references.md`);
- in code, formulas, captions' options, or addresses, which are not prose;
- in ALLOWED, each with the reason why it can never go stale: definitions, arithmetic, settings.
"""

import re

import pytest

import chapters

SCORE = re.compile(
    r"(?<![\w.])\d+(?:\.\d+)?(?:\s?[–-]\s?\d+(?:\.\d+)?)?\s?%"
    r"|(?:\bAA|\bOA|\bmIoU|\bIoU|\bkappa|\brecall|\bprecision|\baccuracy)\b[^.|\n]{0,30}?\b0?\.\d+",
    re.IGNORECASE,
)
NOT_PROSE = re.compile(
    r"```(?:python|sh|bash|text|yaml|json)\b.*?```|\$\$.*?\$\$|\$[^$\n]+\$|`[^`\n]*`|^:\w[\w-]*:.*?$|https?://\S+",
    re.DOTALL | re.MULTILINE,
)
CITED = re.compile(r"\]\(references\.md#")

ALLOWED = {
    "dfc2020": {
        "88.9 %": "arithmetic: eight ninths",
    },
    "evaluation": {
        "100 %": "the recall of the only class that is mapped, by definition",
    },
    "glossary": {"80 %": "arithmetic: what a probability of 0.8 means"},
    "maps": {"95 %": "the level of the intervals, a choice and no score"},
    "methods_compared": {"95 %": "the level of the intervals, a choice and no score"},
    "reproduction": {"95 %": "the level of the intervals, a choice and no score"},
    "sen12ms": {"12.34 %": "what a digital number of 1,234 means, by definition"},
    "uncertainty": {"95 %": "the level of the intervals, a choice and no score"},
}
"""By page: what stands there for good, and why."""


def blocks(text):
    """Paragraphs and table rows, without what is not prose but with their citations."""
    kept = NOT_PROSE.sub(" ", text)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", kept):
        yield from paragraph.splitlines() if paragraph.lstrip().startswith("|") else [paragraph]


def typed_in(text):
    """The scores of a Markdown text that nothing stands behind."""
    return [found[0].strip() for block in blocks(text) if not CITED.search(block) for found in SCORE.finditer(block)]


def pages():
    """Every page of the book that somebody wrote: name and Markdown."""
    for name in chapters.names():
        cells = chapters.read(name).cells
        yield name, "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for file in sorted(chapters.BOOK.glob("*.md")):
        yield file.stem, file.read_text()


@pytest.mark.parametrize(("name", "text"), list(pages()), ids=lambda value: value if len(value) < 30 else "")
def test_scores_in_the_prose_come_from_a_cell_the_ledger_or_a_source(name, text):
    """And no exception outlives its number."""
    assert set(typed_in(text)) == set(ALLOWED.get(name, {})), "compute it, cite it, or give the reason why it can stay"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The FCN reaches 53.2 % here.", ["53.2 %"]),
        ("An AA of 0.523, and more.", ["AA of 0.523"]),
        ("Between 30–60 % of trees.", ["30–60 %"]),
        ("| FCN | 53.2 % |\n| U-Net | 46.45 % ([Liebel 2020](references.md#liebel-2020)) |", ["53.2 %"]),
        ("It won with 57.49 % ([IADF 2020](references.md#iadf-2020)).", []),
        ("It won with 57.49 %.\n\nAnother paragraph cites [IADF 2020](references.md#iadf-2020).", ["57.49 %"]),
        ("Write `f'{aa:.1f} %'` or see\n```python\nprint('53.2 %')\n```", []),
        ("A learning rate of 0.001, 10 m, 2 cores, Figure 3.", []),
        ("with $p = 0.5$ an accuracy of $95 %$", []),
    ],
)
def test_the_rule_finds_what_is_typed_and_leaves_the_rest(text, expected):
    assert typed_in(text) == expected
