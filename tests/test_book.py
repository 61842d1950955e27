"""
The pages as a reader gets them: built without a warning, complete, offline, on a phone and in dark mode.

The book is built once. The second half needs a Chromium or Chrome (`pdf.find_chromium`) and is skipped without one;
each page is opened once there (fixture `seen`).
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

import build_book
import chapters
import pdf

pytestmark = pytest.mark.slow

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
CONFIG = yaml.safe_load((chapters.ROOT / "_config.yml").read_text())["sphinx"]["config"]
NOT_WRITTEN = {"index.html", "search.html", "genindex.html", "py-modindex.html"}


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
    """Every written page, parsed: without search, indices and redirects."""
    names = {file.relative_to(pages).as_posix() for file in pages.rglob("*.html") if "_static" not in file.parts}
    names -= NOT_WRITTEN | {f"{old}.html" for old in CONFIG["redirects"]}
    return {name: BeautifulSoup((pages / name).read_text(), "html.parser") for name in sorted(names)}


def article(soup: BeautifulSoup) -> BeautifulSoup:
    """The text of a page without the frame around it."""
    return soup.find("article", class_="bd-article") or soup


def test_there_is_a_page_for_each_chapter_text_and_room(soups):
    texts = [file.stem for file in chapters.BOOK.glob("*.md")]
    assert sorted(soups) == sorted(f"{name}.html" for name in [*chapters.names(), *texts, *build_book.rooms()])


def test_every_documented_public_name_has_an_entry_in_the_reference(soups):
    for file in build_book.PACKAGE.rglob("[!_]*.py"):
        parts = file.relative_to(build_book.PACKAGE.parent).with_suffix("").parts
        anchors = {tag["id"] for tag in soups[f"api/{'/'.join(parts[:-1])}/index.html"].find_all(id=True)}
        body = ast.parse(file.read_text()).body
        listed = [
            node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        for node in body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
            if listed:
                is_public = is_public and node.name in ast.literal_eval(listed[0])
            if is_public and ast.get_docstring(node):
                assert f"{'.'.join(parts)}.{node.name}" in anchors


def test_a_page_and_its_pictures_weigh_less_than_two_megabytes(pages, soups):
    for name, soup in soups.items():
        pictures = {pages / unquote(image["src"]) for image in soup.find_all("img") if "data:" not in image["src"]}
        weight = (pages / name).stat().st_size + sum(file.stat().st_size for file in pictures if file.exists())
        assert weight < 2_000_000, f"{name}: {weight}"


def without_code(tag: Tag) -> Iterator[str]:
    """The strings below a tag that do not stand in code."""
    for child in tag.children:
        if not isinstance(child, Tag):
            yield str(child)
        elif child.name not in {"pre", "code", "script"}:
            yield from without_code(child)


def test_no_page_shows_the_markup_it_was_written_with(soups):
    """A role or directive that was not understood stands on the page as it was typed."""
    for name, soup in soups.items():
        text = "".join(without_code(article(soup)))
        assert re.findall(r"\{(?:py:\w+|term|doc|ref|numref|cite:\w|glue:\w+)\}|\$\$|`{3,}", text) == [], name


def test_every_page_has_a_description_a_title_and_its_address(pages, soups):
    """For search engines and chats; the sitemap lists the same pages."""
    for name, soup in soups.items():
        head = {tag.get("property") or tag.get("name"): tag.get("content") for tag in soup.head.find_all("meta")}
        assert len(head["og:description"]) > 20, name
        assert head["og:title"], name
        assert head["og:url"].endswith(f"/{name}")
        assert [link["href"] for link in soup.find_all("link", rel="canonical")] == [head["og:url"]]
        assert (pages / "_static" / head["og:image"].rsplit("/", 1)[1]).exists()
    assert len({soup.title.get_text() for soup in soups.values()}) == len(soups)
    site = CONFIG["ogp_site_url"]
    named = re.findall(r"<loc>(.*?)</loc>", (pages / "sitemap.xml").read_text())
    assert sorted(named) == sorted(f"{site}{name}" for name in soups)


def test_redirects_lead_to_pages(soups):
    for old, target in CONFIG["redirects"].items():
        assert target.split("#")[0] in soups, f"_config.yml redirects {old} to {target}"
        assert f"{old}.html" not in soups


def test_a_page_shows_the_outputs_that_are_committed(soups):
    """The texts stored in the notebooks, which the tests compare, stand on the pages."""
    for name in chapters.names():
        shown = " ".join(article(soups[f"{name}.html"]).get_text().split())
        cells = chapters.code_cells(chapters.read(name))
        stored = [out.text for cell in cells for out in cell.outputs if out.output_type == "stream"]
        visible = [text for text in stored if text.strip()]
        assert visible, f"{name} prints nothing"
        assert " ".join(visible[0].split()) in shown


def test_links_and_pictures_within_the_book_lead_somewhere(pages, soups):
    anchors = {name: {tag["id"] for tag in soup.find_all(id=True)} | {"__search"} for name, soup in soups.items()}
    for name, soup in soups.items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for element in soup.find_all(tag, **{attribute: True}):
                address = urlsplit(element[attribute])
                if address.scheme or address.netloc:
                    continue
                target = Path(os.path.normpath(pages / Path(name).parent / unquote(address.path)))
                target = target if address.path else pages / name
                assert target.exists(), f"{name} names {element[attribute]}"
                page = target.relative_to(pages).as_posix()
                if address.fragment and page in anchors and tag == "a":
                    found = unquote(address.fragment) in anchors[page]
                    assert found, f"{name} names {element[attribute]}: no such anchor"


def test_nothing_comes_from_the_network_when_a_page_is_opened(pages, soups):
    """No script, style, font, picture or frame has a web address (links to follow may)."""
    for name, soup in soups.items():
        fetched = [tag["src"] for tag in soup.find_all(src=True)]
        fetched += [tag["href"] for tag in soup.find_all("link", href=True) if "canonical" not in tag.get("rel", [])]
        assert [address for address in fetched if re.match(r"(https?:)?//", address)] == [], name
    for file in pages.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", file.read_text(errors="replace"), flags=re.DOTALL)
        assert not re.search(r"@import[^;]*//|url\(\s*[\"']?(https?:)?//", text), file


def test_every_picture_has_an_alternative_text(soups):
    for name, soup in soups.items():
        for image in article(soup).find_all("img"):
            alt = image.get("alt", "").strip()
            assert len(alt) > 15, f"{name}: {image['src']} has the text {alt!r}"
            assert not alt.endswith((".png", ".svg")), f"{name}: {alt!r} is a file name"


def test_headings_come_in_order(soups):
    """One title per page; no level is skipped on the way down."""
    for name, soup in soups.items():
        levels = [int(tag.name[1]) for tag in article(soup).find_all(re.compile("^h[1-6]$"))]
        assert levels.count(1) == 1, name
        assert levels[0] == 1, name
        assert all(after - before <= 1 for before, after in pairwise(levels)), name


def test_chapters_open_on_colab_and_binder_and_other_pages_do_not(pages, soups):
    for name in soups:
        is_chapter, text = name.removesuffix(".html") in chapters.names(), (pages / name).read_text()
        for launcher in ("colab.research.google.com/github/", "mybinder.org/v2/gh/"):
            assert (launcher in text) == is_chapter, f"{name}: {launcher}"


def test_a_bad_page_stops_the_build(tmp_path, capfd):
    """A link to nowhere is an error and leaves no pages behind."""
    source = tmp_path / "source"
    (source / "_assets").mkdir(parents=True)
    (source / "lcfuse_core").mkdir()
    (source / "lcfuse_core" / "__init__.py").write_text('"""A package."""\n')
    (source / "_toc.yml").write_text("format: jb-book\nroot: one\n")
    (source / "one.md").write_text("# A page\n\nSee [nothing](nowhere.md).\n")
    for file in (chapters.BOOK / "_assets").glob("*.svg"):
        (source / "_assets" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit, match="build of the book failed"):
        build_book.build(source, tmp_path / "html")
    assert "nowhere" in capfd.readouterr().err
    assert not (tmp_path / "html").exists()


# In a browser ------------------------------------------------------------------------------------

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
CHECKED = os.environ.get("LCFUSE_AXE", "coarse_labels quiz status").split()
"""Pages that the accessibility checker reads: one of each kind; LCFUSE_AXE=all, nightly, all of them."""

THIN = """
// Of code cells, entries of the reference and table rows the checker gets the first few of each page.
for (const [what, few] of [[".cell_input", 3], [".cell_output pre", 3], ["dl.py", 4], ["table tbody tr", 12]])
  [...document.querySelectorAll(`.bd-article ${what}`)].slice(few).forEach(one => one.remove());
"""
RUN = """async rules => {
  const report = await axe.run(document, {resultTypes: ["violations"], preload: false, ...rules});
  return report.violations.filter(one => ["serious", "critical"].includes(one.impact)).map(one =>
    `${one.id}: ${one.nodes[0].html.slice(0, 120)} ${one.nodes[0].any.map(check => check.message)}`.slice(0, 300));
}"""
CONTRAST = {"runOnly": ["color-contrast", "link-in-text-block"]}
LOAD_PICTURES = """async () => {
  const all = [...document.images];
  all.forEach(one => one.loading = "eager");
  await Promise.all(all.map(one => one.decode().catch(() => null)));
  return all.filter(one => !one.naturalWidth).map(one => one.src.slice(0, 100));
}"""


@dataclass
class Seen:
    """What was found on one page in a browser."""

    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    styles: list[list[str]] = field(default_factory=list)


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
    """Each page opened once: on a phone and on a desktop, in light and dark mode, some by the checker."""
    context = browser.new_context(viewport=PHONE, color_scheme="light", offline=True)
    return {name: look(context, pages, name) for name in soups}


def look(context, pages: Path, name: str) -> Seen:
    found, page = Seen(), context.new_page()
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda line: found.faults.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: found.faults.append(str(error)))
    page.goto((pages / name).as_uri())
    found.faults += [f"broken picture {source}" for source in page.evaluate(LOAD_PICTURES)]
    for screen in (PHONE, DESKTOP):
        if page.viewport_size != screen:  # each change takes a tenth of a second
            page.set_viewport_size(screen)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        if width > screen["width"]:
            found.faults.append(f"{width} px wide on a screen of {screen['width']}")
    is_checked = CHECKED == ["all"] or name.removesuffix(".html") in CHECKED or name.startswith("api/lcfuse_core/index")
    if is_checked:
        page.add_style_tag(content="* { transition: none !important }")  # no colours half way between themes
        page.evaluate(THIN)
        page.evaluate(AXE)
        found.faults += [f"light: {one}" for one in page.evaluate(RUN, {})]
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    styles = "[...document.querySelectorAll('.bd-article img')].map(i => getComputedStyle(i))"
    found.styles = page.evaluate(f"{styles}.map(s => [s.filter, s.backgroundColor])")
    if is_checked:
        found.faults += [f"dark: {one}" for one in page.evaluate(RUN, CONTRAST)]
    page.close()
    return found


def test_pages_load_offline_fit_every_screen_and_are_accessible(seen):
    """No error in the console, no broken picture, nothing wider than the screen, no serious finding of axe."""
    assert {name: one.faults for name, one in seen.items() if one.faults} == {}
    requests = [url for one in seen.values() for url in one.requests]
    assert len(requests) > len(seen)
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_accessibility_checker_finds_planted_faults(browser):
    page = browser.new_page()
    page.set_content("<html lang=en><title>x</title><main><h1 style='color:#bbb'>pale</h1><img src=x></main>")
    page.evaluate(AXE)
    found = " ".join(page.evaluate(RUN, {}))
    page.close()
    assert "image-alt" in found
    assert "color-contrast" in found


def test_class_colours_are_unchanged_in_dark_mode(seen):
    """Dark mode must not filter pictures, and puts them on white."""
    styles = [style for one in seen.values() for style in one.styles]
    assert len(styles) > len(chapters.names())
    assert all(style == ["none", "rgb(255, 255, 255)"] for style in styles)


def test_formulas_and_search_work_without_a_network(pages, soups, browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((pages / next(name for name, soup in soups.items() if soup.select_one(".math"))).as_uri())
    page.wait_for_selector("mjx-container svg", state="attached", timeout=20_000)
    page.goto((pages / "search.html").as_uri() + "?q=backscatter")
    page.wait_for_selector("ul.search li a", timeout=20_000)
    assert "glossary.html" in page.content()
    context.close()


def test_figures_and_questions_work_by_the_keyboard_alone(pages, browser):
    """The key End of the cell explorer goes to the purest cell; the space bar chooses an answer, its reason shows."""
    page = browser.new_page()
    page.goto((pages / "coarse_labels.html").as_uri())
    figure = page.locator(".lc-figure")
    before, outline = figure.locator("[aria-live]").inner_text(), figure.locator("path").first.get_attribute("d")
    figure.locator("input").focus()
    page.keyboard.press("End")
    assert figure.locator("[aria-live]").inner_text() != before
    assert figure.locator("path").first.get_attribute("d") != outline
    page.goto((pages / "quiz.html").as_uri())
    group = page.locator("fieldset").first
    assert group.locator(".lc-why:visible").count() == 0
    group.locator("input").first.focus()
    page.keyboard.press("Space")
    reason = group.locator(".lc-why:visible").inner_text()
    page.keyboard.press("ArrowDown")
    assert group.locator(".lc-why:visible").inner_text() != reason
    page.emulate_media(media="print")
    assert group.locator(".lc-right .lc-why").is_visible()
    page.close()


def test_the_pdf_has_an_outline_and_links_within_the_file(tmp_path, browser):
    frame = "<html lang='en'><title>x</title><body><article class='bd-article'>{}</article></body></html>"
    (tmp_path / "one.html").write_text(
        frame.format("<h1>One</h1><a href='two.html#here'>x</a><details>folded</details>")
    )
    (tmp_path / "two.html").write_text(frame.format("<h1>Two</h1><h2 id='here'>Here</h2>"))
    joined = BeautifulSoup(pdf.one_page(tmp_path, ["one", "two"]), "html.parser")
    assert joined.find(id=joined.find("a")["href"].removeprefix("#")).get_text() == "Here"
    with ThreadPoolExecutor(1) as other_thread:  # this one has a browser already
        other_thread.submit(pdf.make, tmp_path, tmp_path / "book.pdf", ["one", "two"]).result()
    content = (tmp_path / "book.pdf").read_bytes()
    assert [title for title in (b"One", b"Two", b"Here") if b"/Title (%s)" % title not in content] == []
