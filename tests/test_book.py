"""The pages as a reader gets them: built without a warning, whole, offline, on a phone and in the dark."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

import build_book
import chapters

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published pages, built from scratch; any warning stops the build."""
    out = tmp_path_factory.mktemp("book") / "html"
    command = [sys.executable, str(chapters.ROOT / "scripts" / "build_book.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def soups(pages: Path) -> dict[str, BeautifulSoup]:
    """Every page, parsed."""
    return {file.name: BeautifulSoup(file.read_text(), "html.parser") for file in sorted(pages.glob("*.html"))}


def article(soup: BeautifulSoup) -> BeautifulSoup:
    """The text of a page without the frame around it."""
    return soup.find("article", class_="bd-article") or soup


def written(soups: dict[str, BeautifulSoup]) -> dict[str, BeautifulSoup]:
    """The pages that somebody wrote: without index (a forwarding), search and the index of terms."""
    made = {"index.html", "search.html", "genindex.html"}
    return {name: soup for name, soup in soups.items() if name not in made}


def test_there_is_a_page_for_each_chapter(soups):
    expected = [f"{name}.html" for name in [*chapters.names(), "intro", "glossary", "references", "status"]]
    assert sorted(written(soups)) == sorted(expected)


def test_a_page_shows_the_outputs_that_are_committed(soups):
    """Reader, runner and test see one thing: the texts stored in the notebooks stand on the pages."""
    for name in chapters.names():
        shown = " ".join(article(soups[f"{name}.html"]).get_text().split())
        cells = chapters.code_cells(chapters.read(name))
        stored = [out.text for cell in cells for out in cell.outputs if out.output_type == "stream"]
        visible = [text for text in stored if text.strip()]
        assert visible, f"{name} prints nothing"
        assert " ".join(visible[0].split()) in shown


def test_links_and_pictures_within_the_book_lead_somewhere(pages, soups):
    for name, soup in soups.items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for element in soup.find_all(tag, **{attribute: True}):
                address = urlsplit(element[attribute])
                if address.scheme or address.netloc:
                    continue
                target = (pages / unquote(address.path)) if address.path else pages / name
                assert target.exists(), f"{name} names {element[attribute]}"
                if address.fragment and target.name in soups and tag == "a":
                    there = soups[target.name]
                    found = there.find(id=unquote(address.fragment)) or address.fragment == "__search"
                    assert found, f"{name} names {element[attribute]}: no such place"


def test_nothing_comes_from_the_network_when_a_page_is_opened(pages, soups):
    """No script, style, font, picture or frame has a web address (links to follow may)."""
    for name, soup in soups.items():
        for tag in soup.find_all(src=True):
            assert not re.match(r"(https?:)?//", tag["src"]), f"{name}: {tag['src']}"
        for tag in soup.find_all("link", href=True):
            assert not re.match(r"(https?:)?//", tag["href"]), f"{name}: {tag['href']}"
    for file in pages.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(errors="replace"), flags=re.DOTALL)
        assert not re.search(r"@import[^;]*//|url\(\s*[\"']?(https?:)?//", text), file


def test_formulas_are_set_by_the_local_mathjax(pages):
    assert (pages / "_static" / "mathjax" / "tex-svg.js").stat().st_size > 1_000_000


def test_every_picture_has_an_alternative_text(soups):
    for name, soup in soups.items():
        for image in article(soup).find_all("img"):
            alt = image.get("alt", "").strip()
            assert len(alt) > 15, f"{name}: {image['src']} says {alt!r}"
            assert not alt.endswith((".png", ".svg")), f"{name}: {alt!r} is a file name"


def test_every_picture_made_by_a_chapter_has_a_number_and_a_caption(soups):
    for name in chapters.names():
        for image in article(soups[f"{name}.html"]).select(".cell_output img"):
            figure = image.find_parent("figure")
            assert figure is not None, f"{name}: {image['src']} is no figure"
            assert figure.select_one(".caption-number"), f"{name}: {image['src']} has no number"
            assert len(figure.select_one(".caption-text").get_text(strip=True)) > 10


def test_headings_come_in_order(soups):
    """One title a page; no level is skipped on the way down."""
    for name, soup in written(soups).items():
        levels = [int(tag.name[1]) for tag in article(soup).find_all(re.compile("^h[1-6]$"))]
        assert levels.count(1) == 1, name
        assert levels[0] == 1, name
        assert all(after - before <= 1 for before, after in pairwise(levels)), name


def test_chapters_open_on_colab_and_binder_and_other_pages_do_not(soups):
    for name, soup in written(soups).items():
        text = str(soup)
        is_chapter = name.removesuffix(".html") in chapters.names()
        for launcher in ("colab.research.google.com/github/", "mybinder.org/v2/gh/"):
            assert (launcher in text) == is_chapter, f"{name}: {launcher}"


def test_status_page_has_a_row_for_each_chapter(soups):
    rows = article(soups["status.html"]).find("table").find_all("tr")[1:]
    assert [row.find("a")["href"] for row in rows] == [f"{name}.html" for name in chapters.names()]
    for name, row in zip(chapters.names(), rows, strict=True):
        cells = len(chapters.code_cells(chapters.read(name)))
        assert int(row.find_all("td")[1].get_text()) == cells


def test_a_bad_page_stops_the_build(tmp_path, monkeypatch, capfd):
    """The build bites: a link to nowhere is an error, not a line that scrolls by."""
    source = tmp_path / "source"
    build_book.gather(source, chapters.BOOK)
    for name in chapters.names():
        (source / f"{name}.ipynb").unlink()
    (source / "_toc.yml").write_text("format: jb-book\nroot: glossary\n")
    (source / "glossary.md").write_text("# A page\n\nSee {doc}`nowhere`.\n")
    with pytest.raises(SystemExit, match="build of the book failed"):
        build_book.build(source, tmp_path / "html")
    assert "nowhere" in capfd.readouterr().err
    assert not (tmp_path / "html").exists()


# In a browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium of the system (playwright's own is not needed)."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the pages are checked without a browser only")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_pages_open_offline_and_fit_the_screen(pages, soups, browser, viewport):
    context = browser.new_context(viewport=viewport, offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for name in written(soups):
        page.goto((pages / name).as_uri())
        wide = page.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= viewport["width"], f"{name} is {wide} pixels wide"
    context.close()
    assert len(asked) > len(soups)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_class_colours_stay_what_they_are_in_the_dark(pages, soups, browser):
    """A class is known by its colour: dark mode must not filter pictures, and puts them on white."""
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    seen = 0
    for name in written(soups):
        page.goto((pages / name).as_uri())
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        styles = page.evaluate(
            "[...document.querySelectorAll('.bd-article img')]"
            ".map(i => getComputedStyle(i)).map(s => [s.filter, s.backgroundColor])"
        )
        seen += len(styles)
        assert all(style == ["none", "rgb(255, 255, 255)"] for style in styles), name
    context.close()
    assert seen > len(chapters.names())


def test_formulas_and_search_work_without_a_network(pages, soups, browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    with_formula = [name for name, soup in soups.items() if soup.select_one(".math")]
    assert with_formula, "no page has a formula"
    page.goto((pages / with_formula[0]).as_uri())
    page.wait_for_selector("mjx-container svg", state="attached", timeout=20_000)
    page.goto((pages / "search.html").as_uri() + "?q=backscatter")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    assert "glossary.html" in page.content()
    context.close()
