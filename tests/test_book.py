"""
The pages as a reader gets them: built without a warning, whole, offline, on a phone and in the dark.

The second half needs a Chromium or Chrome (`pdf.find_chromium`) and is skipped without one. Each page is opened once,
and all that is asked of it in a browser is asked then: fixture `seen`.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

import api_pages
import build_book
import chapters
import finish
import pdf

pytestmark = pytest.mark.slow

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
    """The pages to be read: without forwardings, search and the index of terms."""
    made = {"index.html", "search.html", "genindex.html", *finish.MOVED}
    return {name: soup for name, soup in soups.items() if name not in made}


def test_there_is_a_page_for_each_chapter(soups):
    made = api_pages.pages(api_pages.read_modules(), {})
    texts = [file.stem for file in chapters.BOOK.glob("*.md")]
    assert sorted(written(soups)) == sorted(f"{name}.html" for name in [*chapters.names(), *texts, *made])
    assert {"intro", "notation", "glossary", "quiz", "teach", "api", "status"} <= set(texts)


def test_a_page_and_its_pictures_weigh_less_than_two_megabytes(pages, soups):
    for name, soup in soups.items():
        pictures = {pages / unquote(image["src"]) for image in soup.find_all("img") if "data:" not in image["src"]}
        weight = (pages / name).stat().st_size + sum(file.stat().st_size for file in pictures)
        assert weight < 2_000_000, f"{name}: {weight}"


def test_no_page_shows_the_marks_it_was_written_with(soups):
    """A role or directive that was not understood stands on the page as it was typed."""
    for name, soup in written(soups).items():
        text = "".join(
            string
            for string in article(soup).find_all(string=True)
            if not string.find_parent(["pre", "code", "script"])
        )
        assert re.findall(r"\{(?:py:\w+|term|doc|ref|numref|cite:\w|glue:\w+)\}|\$\$|`{3,}", text) == [], name


def test_every_page_tells_search_engines_and_chats_what_it_is(pages, soups):
    titles = set()
    for name, soup in written(soups).items():
        head = {tag.get("property") or tag.get("name"): tag.get("content") for tag in soup.head.find_all("meta")}
        assert 20 < len(head["description"]) <= finish.DESCRIPTION_LENGTH + 2, name
        assert head["og:title"], name
        assert head["og:url"].endswith(f"/{name}")
        assert (pages / finish.CARD).exists()
        titles.add(soup.title.get_text())
    assert len(titles) == len(written(soups))
    named = re.findall(r"<loc>.*/([^/]+)</loc>", (pages / "sitemap.xml").read_text())
    assert sorted(named) == sorted(written(soups))


def test_old_addresses_lead_to_pages(pages):
    for old, new in finish.MOVED.items():
        assert f'url={new}"' in (pages / old).read_text()


def test_chapters_and_reference_lead_to_each_other(soups):
    """At the foot of a chapter what it uses of the module; there, the chapters that teach it."""
    for name in chapters.names():
        [foot] = [p for p in article(soups[f"{name}.html"]).find_all("p") if "From the module" in p.get_text()]
        places = [a["href"] for a in foot.find_all("a", href=re.compile("^api-floor"))]
        assert places, name
        page, spot = places[0].split("#")
        entry = soups[page].find(id=spot).find_parent("dl")
        assert entry.find("a", href=f"{name}.html"), f"{places[0]} does not lead back to {name}"


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
    places = {name: {tag["id"] for tag in soup.find_all(id=True)} | {"__search"} for name, soup in soups.items()}
    for name, soup in soups.items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for element in soup.find_all(tag, **{attribute: True}):
                address = urlsplit(element[attribute])
                if address.scheme or address.netloc:
                    continue
                target = (pages / unquote(address.path)) if address.path else pages / name
                assert target.exists(), f"{name} names {element[attribute]}"
                if address.fragment and target.name in soups and tag == "a":
                    found = unquote(address.fragment) in places[target.name]
                    assert found, f"{name} names {element[attribute]}: no such place"


def test_nothing_comes_from_the_network_when_a_page_is_opened(pages, soups):
    """No script, style, font, picture or frame has a web address (links to follow may)."""
    for name, soup in soups.items():
        for tag in soup.find_all(src=True):
            assert not re.match(r"(https?:)?//", tag["src"]), f"{name}: {tag['src']}"
        for tag in soup.find_all("link", href=True):
            if "canonical" in tag.get("rel", []):
                continue  # the page's own address: named, never fetched
            assert not re.match(r"(https?:)?//", tag["href"]), f"{name}: {tag['href']}"
    for file in pages.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(errors="replace"), flags=re.DOTALL)
        assert not re.search(r"@import[^;]*//|url\(\s*[\"']?(https?:)?//", text), file


def test_formulas_are_set_by_the_local_mathjax(pages):
    assert (pages / "_static" / "mathjax" / "tex-svg.js").stat().st_size > 1_000_000


def test_every_picture_has_an_alternative_text(soups):
    for name, soup in written(soups).items():
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
        assert row.find_all("td")[5].get_text().endswith(f" of {cells}")


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

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
THIN = """
// Of what a page holds many times over, code cells and entries of the reference, the checker gets the first few.
for (const [what, few] of [[".cell_input", 3], [".cell_output pre", 3], ["dl.py", 4], ["table tbody tr", 12]])
  [...document.querySelectorAll(`.bd-article ${what}`)].slice(few).forEach(one => one.remove());
"""
RUN = """async rules => {
  const said = await axe.run(document, {resultTypes: ["violations"], preload: false, ...rules});
  return said.violations.filter(one => ["serious", "critical"].includes(one.impact)).map(one =>
    `${one.id}: ${one.nodes[0].html.slice(0, 120)} ${one.nodes[0].any.map(check => check.message)}`.slice(0, 300));
}"""
CONTRAST = {"runOnly": ["color-contrast", "link-in-text-block"]}


@dataclass
class Seen:
    """What was seen of one page in a browser."""

    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    wide: dict[str, int] = field(default_factory=dict)
    serious: dict[str, list[str]] = field(default_factory=dict)
    theme: str = ""
    pictures_in_the_dark: list[list[str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium of the system (playwright's own is not needed)."""
    program = pdf.find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: the pages are checked without a browser only")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def seen(pages, soups, browser) -> dict[str, Seen]:
    """Each page opened once: on a desk, on a phone, and by the checker in the light and in the dark."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light", offline=True)
    context.add_init_script(AXE)
    return {name: look(context, (pages / name).as_uri()) for name in written(soups)}


def look(context, address: str) -> Seen:
    found, page = Seen(), context.new_page()
    page.on("request", lambda request: found.asked.append(request.url))
    page.on("console", lambda said: found.complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.goto(address)
    width = "document.scrollingElement.scrollWidth"
    found.wide["desktop"] = page.evaluate(width) - DESKTOP["width"]
    found.broken = page.evaluate(
        """async () => {
            const all = [...document.images];
            all.forEach(one => one.loading = "eager");
            await Promise.all(all.map(one => one.decode().catch(() => null)));
            return all.filter(one => !one.naturalWidth).map(one => one.src.slice(0, 100));
        }"""
    )
    page.set_viewport_size(PHONE)
    found.wide["phone"] = page.evaluate(width) - PHONE["width"]
    page.set_viewport_size(DESKTOP)
    page.add_style_tag(content="* { transition: none !important }")  # colours half way between themes are nobody's
    page.evaluate(THIN)
    found.serious["light"] = page.evaluate(RUN, {})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    found.theme = page.evaluate("document.documentElement.dataset.theme")
    styles = "[...document.querySelectorAll('.bd-article img')].map(i => getComputedStyle(i))"
    found.pictures_in_the_dark = page.evaluate(f"{styles}.map(s => [s.filter, s.backgroundColor])")
    found.serious["dark"] = page.evaluate(RUN, CONTRAST)
    page.close()
    return found


def test_no_request_leaves_the_machine(seen):
    asked = [url for one in seen.values() for url in one.asked]
    assert len(asked) > len(seen)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_console_stays_empty_and_every_picture_is_there(seen):
    assert {name: one.complaints for name, one in seen.items() if one.complaints} == {}
    assert {name: one.broken for name, one in seen.items() if one.broken} == {}


@pytest.mark.parametrize("screen", ["desktop", "phone"])
def test_nothing_is_wider_than_the_screen(seen, screen):
    assert {name: one.wide[screen] for name, one in seen.items() if one.wide[screen] > 0} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_accessibility_checker_finds_nothing_serious(seen, theme):
    """All rules of axe in the light; contrast and links in the dark, where only colours differ."""
    assert {name: one.serious[theme] for name, one in seen.items() if one.serious[theme]} == {}


def test_the_accessibility_checker_bites(browser):
    page = browser.new_page()
    page.set_content("<html lang=en><title>x</title><main><h1 style='color:#bbb'>pale</h1><img src=x></main>")
    page.evaluate(AXE)
    found = " ".join(page.evaluate(RUN, {}))
    page.close()
    assert "image-alt" in found
    assert "color-contrast" in found


def test_class_colours_stay_what_they_are_in_the_dark(seen):
    """A class is known by its colour: dark mode must not filter pictures, and puts them on white."""
    assert {one.theme for one in seen.values()} == {"dark"}
    styles = [style for one in seen.values() for style in one.pictures_in_the_dark]
    assert len(styles) > len(chapters.names())
    assert all(style == ["none", "rgb(255, 255, 255)"] for style in styles)


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


def test_a_handle_moves_by_the_keyboard_alone(pages, browser):
    """The cell explorer opens with the most mixed cell; the key End goes to the purest, and says so."""
    page = browser.new_page()
    page.goto((pages / "coarse_labels.html").as_uri())
    figure = page.locator(".lc-figure")
    before, outline = figure.locator("[aria-live]").inner_text(), figure.locator("path").first.get_attribute("d")
    figure.locator("input").focus()
    page.keyboard.press("End")
    assert figure.locator("[aria-live]").inner_text() != before
    assert figure.locator("path").first.get_attribute("d") != outline
    assert figure.locator(".lc-bar:visible").count() >= 1
    page.goto((pages / "networks.html").as_uri())
    figure = page.locator(".lc-figure")
    figure.locator("input").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert figure.locator("[aria-live]").inner_text().startswith("Pixel 1, ")
    page.close()


def test_a_question_is_answered_by_the_keyboard_alone(pages, browser):
    """The space bar chooses, arrows change the choice; what is right or wrong about it is shown, and only that."""
    page = browser.new_page()
    page.goto((pages / "quiz.html").as_uri())
    group = page.locator("fieldset").first
    assert group.locator(".lc-why:visible").count() == 0
    group.locator("input").first.focus()
    page.keyboard.press("Space")
    one = group.locator(".lc-why:visible").inner_text()
    page.keyboard.press("ArrowDown")
    assert group.locator(".lc-why:visible").count() == 1
    assert group.locator(".lc-why:visible").inner_text() != one
    page.emulate_media(media="print")
    assert group.locator(".lc-right .lc-why").is_visible()
    page.close()
