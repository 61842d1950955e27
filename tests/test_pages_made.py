"""What is generated when the book is built: quiz, status table, corrected tables."""

import json
import re

from bs4 import BeautifulSoup

import build_book
import chapters
import lcfuse_core
import quizzes
import status_page
from lcfuse_core.data import cells, legends

# The quiz ----------------------------------------------------------------------------------------

PARTS = quizzes.read()
QUESTIONS = [question for part in PARTS for question in part["questions"]]


def test_every_part_of_the_book_has_questions_and_every_choice_a_reason():
    parts = chapters.yaml.safe_load((chapters.BOOK / "_toc.yml").read_text())["parts"]
    assert [part["part"] for part in PARTS] == [part["caption"] for part in parts if part["caption"] != "Appendix"]
    assert len({question["ask"] for question in QUESTIONS}) == len(QUESTIONS)
    assert min(len(part["questions"]) for part in PARTS) >= 2
    for question in QUESTIONS:
        assert all(set(choice) == {"say", "why"} for choice in question["choices"]), "a comma without quotes?"
        assert len({str(choice["say"]) for choice in question["choices"]}) == len(question["choices"]) >= 3
        assert all(len(choice["why"].split()) >= 4 for choice in question["choices"])


def test_answers_that_rest_on_a_number_agree_with_the_code():
    checks = [question["check"] for question in QUESTIONS if "check" in question]
    assert len(checks) >= 2
    for check in checks:
        assert eval(check, {"cells": cells, "legends": legends, "round": round, "len": len}) is True, check


def test_a_question_is_one_group_of_buttons_with_one_right_answer():
    groups = BeautifulSoup(quizzes.page(), "html.parser").find_all("fieldset")
    assert len({group.input["name"] for group in groups}) == len(groups) == len(QUESTIONS)
    for group, question in zip(groups, QUESTIONS, strict=True):
        [right] = group.select(".lc-right label")
        assert right.get_text() == str(question["choices"][0]["say"])
        for button in group.find_all("input"):
            assert group.find("label", attrs={"for": button["id"]})
            assert group.find(id=button["aria-describedby"])
    positions = [[right for _, _, right in quizzes.shuffled(question)].index(True) for question in QUESTIONS]
    assert len(set(positions)) >= 3, "the right answer is always in the same position"


# The status --------------------------------------------------------------------------------------


def test_the_status_table_shows_a_date_only_for_the_outputs_that_were_checked(tmp_path):
    name, file = chapters.names()[0], tmp_path / "verified.json"
    notebook = chapters.read(name)
    assert status_page.checked_on(name, notebook, file) == "–"
    chapters.verify(file)
    day = json.loads(file.read_text())[name]["on"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert status_page.checked_on(name, notebook, file) == day
    chapters.code_cells(notebook)[0].source += "\nmore = 1"
    assert status_page.checked_on(name, notebook, file) == "–"


def test_time_memory_and_versions_come_from_the_provenance_box_of_the_chapter():
    facts = status_page.provenance(chapters.read("coarse_labels"))
    row = status_page.row("coarse_labels", chapters.BOOK)
    time, memory = re.match(r"(\d+ s), at most (\d+ MB)", facts["Time and memory"]).groups()
    assert f"| {time} | {memory} |" in row
    assert facts["Versions"] in status_page.made_with(chapters.BOOK, ["coarse_labels"])
    assert facts["Code"] == f"lcfuse_core {lcfuse_core.__version__}"


def test_every_chapter_fits_into_the_two_gigabytes_of_binder():
    for name in chapters.names():
        memory = re.search(r"at most (\d+) MB", status_page.provenance(chapters.read(name))["Time and memory"])
        assert int(memory[1]) < 1800, name


# Corrections to built pages ----------------------------------------------------------------------

TABLE = """<table border="1" class="dataframe"><thead><tr><th></th><th>AA %</th><th>why</th></tr>
<tr><th>method</th><th></th><th></th></tr></thead><tbody><tr><th>one</th><td>46.3</td><td>for 2 reasons</td></tr>
<tr><th>the other of both</th><td>-7</td><td>-</td></tr></tbody></table>"""


def tidied(tmp_path, text):
    file = tmp_path / "one.html"
    file.write_text(text)
    build_book.tidy(file)
    return BeautifulSoup(file.read_text(), "html.parser")


def test_a_pandas_table_has_one_heading_row_and_its_numbers_are_aligned(tmp_path):
    soup = tidied(tmp_path, TABLE)
    assert [cell.get_text() for cell in soup.select("thead tr th")] == ["method", "AA %", "why"]
    assert sorted(cell.get_text() for cell in soup.select(".lc-number")) == ["-7", "46.3", "AA %"]
    assert [cell.get_text() for cell in soup.select(".lc-name")] == ["the other of both"]
    two = TABLE.replace("<th>method</th><th></th>", "<th>method</th><th>mean</th>")
    assert len(tidied(tmp_path, two).select("thead tr")) == 2, "both heading rows hold something"


def test_printed_columns_and_code_keep_their_lines_and_sentences_do_not(tmp_path):
    texts = {
        "columns": "AA   46.3\nOA   7.0\n",
        "code": "def f():\n    return 1\n",
        "words": "48 patches read\nnone left\n",
    }
    soup = tidied(
        tmp_path, "".join(f'<div class="output stream" id="{k}"><pre>{v}</pre></div>' for k, v in texts.items())
    )
    assert [one["id"] for one in soup.select(".lc-columns")] == ["columns", "code"]
