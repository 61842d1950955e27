"""The PDF edition on a small book: contents with the right numbers, a number on each sheet, links within the file."""

import re

import pytest
from pypdf import PdfReader

import chapters
import pdf

TOC = """
format: jb-book
root: intro
parts:
  - caption: The first part
    chapters:
      - {file: one, sections: [{file: below}]}
      - file: two
"""
PAGE = "<html lang='en'><head><meta charset='utf-8'><title>x</title></head><body><h1>{title}</h1>{body}</body></html>"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of four pages, one of them longer than a sheet; None where no browser can print it."""
    if pdf.find_chromium() is None:
        pytest.skip("no Chromium on this machine: nothing can be printed")
    folder = tmp_path_factory.mktemp("small")
    long = "".join(f"<p style='height:90mm'>text {number}</p>" for number in range(5))
    bodies = {
        "intro": (
            "The start",
            "<p>See <a href='two.html#spot'>a place</a>, <a href='https://example.org'>a site</a>.</p>",
        ),
        "one": ("One", long + "<a href='#below-here'>down</a><h2 id='below-here'>Here</h2>"),
        "below": ("Below one", "<details><summary>Answer</summary>folded words</details>"),
        "two": ("Two", long + "<h2 id='spot'>The spot</h2>"),
    }
    for name, (title, body) in bodies.items():
        (folder / f"{name}.html").write_text(PAGE.format(title=title, body=body))
    (folder / "toc.yml").write_text(TOC)
    sheets = pdf.make(folder, folder / "book.pdf", folder / "toc.yml")
    reader = PdfReader(folder / "book.pdf")
    assert len(reader.pages) == sheets
    return reader


def first_sheet(book, words):
    """Number (from 1) of the sheet that begins with these words."""
    return next(number for number, page in enumerate(book.pages, 1) if page.extract_text().strip().startswith(words))


@pytest.mark.slow
def test_contents_name_the_sheet_on_which_each_page_begins(book):
    front = "\n".join(page.extract_text() for page in book.pages[:2])
    listed = dict(re.findall(r"^(The start|One|Below one|Two)\s*(\d+)$", front, re.MULTILINE))
    assert {title: int(number) for title, number in listed.items()} == {
        title: first_sheet(book, title) for title in ("The start", "One", "Below one", "Two")
    }


@pytest.mark.slow
def test_every_sheet_but_the_first_carries_its_number(book):
    for number, page in enumerate(book.pages, 1):
        assert (page.extract_text().split()[-1] == str(number)) == (number > 1)


@pytest.mark.slow
def test_links_lead_within_the_file_and_those_to_the_web_stay(book):
    by_number = {page.indirect_reference.idnum: number for number, page in enumerate(book.pages, 1)}
    found, outside = [], []
    for page in book.pages:
        for link in (one.get_object() for one in page.get("/Annots") or []):
            if "/Dest" in link:
                found.append(by_number[link["/Dest"][0].idnum])
            else:
                outside.append(link["/A"]["/URI"])
    titles = ("The start", "One", "Below one", "Two")  # from the contents
    spot, here = (
        next(number for number, page in enumerate(book.pages, 1) if word in page.extract_text())
        for word in ("The spot", "Here")
    )
    assert spot > first_sheet(book, "Two"), "the place is to be found on a later sheet than its page begins on"
    # An unseen link to each place, so that the browser names it, comes beside the one that a reader sees.
    assert sorted(set(found)) == sorted({*(first_sheet(book, title) for title in titles), spot, here})
    assert outside == ["https://example.org/"]


@pytest.mark.slow
def test_the_outline_has_parts_and_pages_and_folded_text_is_printed(book):
    titles = [one.title for one in book.outline if not isinstance(one, list)]
    assert titles == ["The start", "The first part"]
    assert [one.title for one in book.outline[2]] == ["One", "Below one", "Two"]
    assert "folded words" in "".join(page.extract_text() for page in book.pages)


def test_contents_follow_the_book(tmp_path):
    (tmp_path / "toc.yml").write_text(TOC)
    part = "The first part"
    assert pdf.contents(tmp_path / "toc.yml") == [
        ("", "intro", False),
        (part, "one", False),
        (part, "below", True),
        (part, "two", False),
    ]


def test_pages_lead_to_the_file_once_it_is_there(tmp_path):
    config = (chapters.ROOT / "_config.yml").read_text()
    assert pdf.FOOT in config
    for name in ("one", "two"):
        (tmp_path / f"{name}.html").write_text(f"<body><footer>{pdf.FOOT} href='x'>CC</a></p></footer></body>")
    (tmp_path / "moved.html").write_text("<body>moved</body>")
    assert pdf.link_from(tmp_path) == 2
    assert pdf.link_from(tmp_path) == 0
    assert f'<a href="{pdf.NAME}">' in (tmp_path / "one.html").read_text()
