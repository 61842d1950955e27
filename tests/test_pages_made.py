"""Pages that are made when the book is built: reference, quiz, status; and what is added to every page at the end."""

import ast
import json
import re
from itertools import pairwise

import pytest
from bs4 import BeautifulSoup

import api_pages
import chapters
import finish
import lcfuse_core
import quizzes
import status_page
from lcfuse_core.data import cells, legends

MODULES = api_pages.read_modules()


# The reference -----------------------------------------------------------------------------------


def test_a_module_stands_above_all_that_it_imports_and_each_stands_once():
    level = {name: number for number, names in enumerate(api_pages.floors(MODULES)) for name in names}
    assert sorted(level) == sorted(MODULES)
    for name, module in MODULES.items():
        assert all(level[need] < level[name] for need in module.needs)
        assert level[name] == 0 or any(level[need] == level[name] - 1 for need in module.needs)


def test_every_public_name_has_an_entry_and_every_module_a_text():
    pages = "\n".join(api_pages.pages(MODULES, {}).values())
    assert {name for name, module in MODULES.items() if not module.text} == set()
    described = set(re.findall(r"\{py:(?:function|class|data)\} lcfuse_core\.([\w.]+)", pages))
    assert described == api_pages.documented(MODULES)
    assert {"cells.cell_ids", "training.train", "scores.summarise", "legends.SCORED"} <= described


def test_chapter_and_function_name_each_other():
    """`cells.cell_ids` is called in the chapter on coarse labels: each of the two pages leads to the other."""
    who = api_pages.users(chapters.BOOK, chapters.names(), MODULES)
    assert "coarse_labels" in who["cells.cell_ids"]
    page = next(text for text in api_pages.pages(MODULES, who).values() if "(api-cells)=" in text)
    entry = page.split("{py:function} lcfuse_core.cells.cell_ids")[1].split("````")[0]
    assert "*Taught in* {doc}`coarse_labels`" in entry
    back = api_pages.used_here("coarse_labels", MODULES, who)
    assert "{py:obj}`cells.cell_ids <lcfuse_core.cells.cell_ids>`" in back
    assert api_pages.used_here("coarse_labels", MODULES, {}) == ""


def test_what_a_cell_uses_is_found_under_any_name_it_has_there():
    found = api_pages.used_by(
        ["from lcfuse_core import cells as c\nfrom lcfuse_core.legends import SCORED\nc.cell_ids(1)"], MODULES
    )
    assert found == {"cells", "cells.cell_ids", "legends", "legends.SCORED"}


def test_a_docstring_becomes_a_list_code_and_text():
    text = "What it does, for $5.\n\nn, m : how *many*\n    of both\nIn a.py.\n\n>>> f(1)\n2\n\n    indented <code>"
    assert api_pages.markdown(text) == (
        "What it does, for \\$5.\n\n\n- `n, m`: how *many*\n  of both\n\nIn `a.py`.\n\n"
        "```python\n>>> f(1)\n2\n```\n\n```text\nindented <code>\n```"
    )


def test_a_parameter_in_a_docstring_is_set_apart_and_other_asterisks_stay_what_they_are():
    assert api_pages.plain("every *kind* of `*args`, 2 * 3 * 4") == r"every *kind* of `*args`, 2 \* 3 \* 4"


def test_a_signature_leads_to_the_right_one_of_two_classes_of_a_name():
    node = ast.parse("def f(run: Run, *, plan: runs.TrainPlan | None = None) -> list[Run]: ...").body[0]
    types = {"Run": "lcfuse_core.grids.Run", "runs.TrainPlan": "lcfuse_core.runs.TrainPlan"}
    assert api_pages.signature(node, types) == (
        "(run: lcfuse_core.grids.Run, *, plan: lcfuse_core.runs.TrainPlan | None=None) -> list[lcfuse_core.grids.Run]"
    )
    assert MODULES["reruns"].types["Run"] == "lcfuse_core.grids.Run"
    assert MODULES["training"].types["Run"] == "lcfuse_core.runs.Run"


# The quiz ----------------------------------------------------------------------------------------

PARTS = quizzes.read()
QUESTIONS = [question for part in PARTS for question in part["questions"]]


def test_every_part_of_the_book_has_questions_and_every_question_reasons():
    parts = chapters.yaml.safe_load((chapters.BOOK / "_toc.yml").read_text())["parts"]
    assert [part["part"] for part in PARTS] == [part["caption"] for part in parts if part["caption"] != "Appendix"]
    assert len({question["ask"] for question in QUESTIONS}) == len(QUESTIONS)
    for part in PARTS:
        assert len(part["questions"]) >= 2
    for question in QUESTIONS:
        assert len(question["choices"]) >= 3
        assert all(set(one) == {"say", "why"} for one in question["choices"]), "a comma without quotes?"
        assert len({str(one["say"]) for one in question["choices"]}) == len(question["choices"])
        assert all(len(one["why"].split()) >= 4 for one in question["choices"])


def test_answers_that_rest_on_a_number_agree_with_the_code():
    checks = [question["check"] for question in QUESTIONS if "check" in question]
    assert len(checks) >= 2
    for check in checks:
        assert eval(check, {"cells": cells, "legends": legends, "round": round, "len": len}) is True, check


def test_a_question_is_one_group_of_buttons_with_one_right_answer():
    soup = BeautifulSoup(quizzes.page(), "html.parser")
    assert len(soup.find_all("fieldset")) == len(QUESTIONS)
    names = [{button["name"] for button in group.find_all("input")} for group in soup.find_all("fieldset")]
    assert all(len(own) == 1 for own in names)
    assert len(set.union(*names)) == len(QUESTIONS)
    for group, question in zip(soup.find_all("fieldset"), QUESTIONS, strict=True):
        [right] = group.select(".lc-right label")
        assert right.get_text() == str(question["choices"][0]["say"])
        for button in group.find_all("input"):
            assert group.find("label", attrs={"for": button["id"]})
            assert group.find(id=button["aria-describedby"])


def test_the_right_answer_is_not_always_in_the_same_place():
    places = [[right for _, _, right in quizzes.shuffled(question)].index(True) for question in QUESTIONS]
    assert len(set(places)) >= 3


# The status --------------------------------------------------------------------------------------


def test_status_tells_the_day_only_of_the_outputs_that_were_checked(tmp_path):
    name, file = chapters.names()[0], tmp_path / "verified.json"
    notebook = chapters.read(name)
    assert status_page.checked_on(name, notebook, file) == "–"
    chapters.verify(file)
    day = json.loads(file.read_text())[name]["on"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert status_page.checked_on(name, notebook, file) == day
    notebook.cells[-2].source += "\nmore"
    chapters.code_cells(notebook)[0].source += "\nmore = 1"
    assert status_page.checked_on(name, notebook, file) == "–"


def test_time_memory_and_versions_come_from_the_box_of_the_chapter():
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


# At the end --------------------------------------------------------------------------------------

PAGE = (
    "<html><head><title>x</title></head><body><article class='bd-article'><h1>3. One &amp; two<a>#</a></h1>"
    "<p>First words of the page.</p></article></body></html>"
)


def test_a_page_gets_title_description_and_its_own_address(tmp_path):
    file = tmp_path / "one.html"
    file.write_text(PAGE)
    finish.add_fields(file, "https://x.org/book/one.html")
    finish.add_fields(file, "https://x.org/book/one.html")  # a second time changes nothing
    soup = BeautifulSoup(file.read_text(), "html.parser")
    head = {tag.get("property") or tag.get("name"): tag["content"] for tag in soup.find_all("meta")}
    assert head["og:title"] == "One & two"
    assert head["description"] == head["og:description"] == "First words of the page."
    assert head["og:image"] == "https://x.org/book/_static/social-card.png"
    assert [tag["href"] for tag in soup.find_all("link", rel="canonical")] == ["https://x.org/book/one.html"]


TABLE = """<table border="1" class="dataframe"><thead><tr><th></th><th>AA %</th><th>why</th></tr>
<tr><th>method</th><th></th><th></th></tr></thead><tbody><tr><th>one</th><td>46.3</td><td>for 2 reasons</td></tr>
<tr><th>the other of both</th><td>-7</td><td>-</td></tr></tbody></table>"""


def test_a_table_of_pandas_has_one_row_of_headings_and_its_figures_one_under_the_other(tmp_path):
    file = tmp_path / "one.html"
    file.write_text(f"<body>{TABLE}</body>")
    finish.mend_frame(file)
    soup = BeautifulSoup(file.read_text(), "html.parser")
    assert [cell.get_text() for cell in soup.select("thead tr th")] == ["method", "AA %", "why"]
    assert sorted(cell.get_text() for cell in soup.select(".lc-number")) == ["-7", "46.3", "AA %"]
    assert [cell.get_text() for cell in soup.select(".lc-name")] == ["the other of both"]


def test_headings_that_both_say_something_stay_in_two_rows(tmp_path):
    file = tmp_path / "one.html"
    file.write_text(TABLE.replace("<th>method</th><th></th>", "<th>method</th><th>mean</th>"))
    finish.mend_frame(file)
    assert len(BeautifulSoup(file.read_text(), "html.parser").select("thead tr")) == 2


def test_printed_columns_and_code_keep_their_lines_and_sentences_do_not(tmp_path):
    texts = {
        "columns": "AA   46.3\nOA   7.0\n",
        "code": "def f():\n    return 1\n",
        "words": "48 patches read\nnone left\n",
    }
    file = tmp_path / "one.html"
    file.write_text("".join(f'<div class="output stream" id="{k}"><pre>{v}</pre></div>' for k, v in texts.items()))
    finish.mend_frame(file)
    marked = BeautifulSoup(file.read_text(), "html.parser").select(".lc-columns")
    assert [one["id"] for one in marked] == ["columns", "code"]


def test_a_long_description_is_cut_between_words():
    soup = BeautifulSoup(f"<article class='bd-article'><p>{'word ' * 100}</p></article>", "html.parser")
    said = finish.description(soup)
    assert said.endswith("word …")
    assert len(said) <= finish.DESCRIPTION_LENGTH + 2


def test_a_page_that_has_moved_leads_on(tmp_path):
    (tmp_path / "new.html").write_text(PAGE)
    finish.add_forwardings(tmp_path, {"old.html": "new.html#spot"})
    soup = BeautifulSoup((tmp_path / "old.html").read_text(), "html.parser")
    assert soup.find("meta", attrs={"http-equiv": "refresh"})["content"] == "0; url=new.html#spot"
    assert soup.find("a")["href"] == "new.html#spot"
    with pytest.raises(SystemExit, match="no page of the book"):
        finish.add_forwardings(tmp_path, {"other.html": "gone.html"})
    with pytest.raises(SystemExit, match="the book has that page"):
        finish.add_forwardings(tmp_path, {"new.html": "old.html"})


def test_no_forwarding_leads_to_another():
    assert set(finish.MOVED) & {target.split("#")[0] for target in finish.MOVED.values()} == set()
    assert all(re.fullmatch(r"[\w-]+\.html", old) for old in finish.MOVED)


def test_headings_of_made_pages_go_down_step_by_step():
    for text in (quizzes.page(), *api_pages.pages(MODULES, {}).values()):
        levels = [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)]
        assert all(after - before <= 1 for before, after in pairwise(levels))
