"""
Build the pages of the book: `python scripts/build_book.py [--chapters FOLDER] [--out FOLDER]`.

The pages are built from a copy of `book/`, so that nothing is written there. Chapters come from --chapters:
the committed notebooks, or those of a run. Nothing is executed, and any warning is an error.
The quiz and the status table are generated first (`quizzes`, `status_page`); the reference of the module, the sitemap,
the Open Graph fields and redirects come from Sphinx extensions that `_config.yml` lists. `tidy` corrects what no
setting of the theme, of Jupyter Book or of pandas changes.
Every build starts from nothing: Sphinx reads an unchanged page only once, so a second build would miss its warnings.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from importlib.metadata import files, version
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, Tag

import chapters
import quizzes
import set_address
import status_page

SKIPPED = shutil.ignore_patterns(".*", "*.part", "_build")
PACKAGE = chapters.ROOT / "lcfuse_core"

ONE = r"[-−+]?[\d,.]*\d(e[-+]?\d+)?"
NUMBER = re.compile(rf"{ONE}( ?%| [km]?m| s)?|{ONE} to {ONE}( \(\d+\))?|nan|None|[-–·]|")
"""What a cell of a column of numbers may hold."""

LONG, SHORT = 60, 12
"""Cells with more than LONG characters need a wide column, row names with more than SHORT some width."""


def check_jupyter_book() -> None:
    """Stop unless Jupyter Book is 1.x: 2.x is another program that takes none of our settings."""
    found = version("jupyter-book")
    if not found.startswith("1."):
        sys.exit(f"Jupyter Book {found} is here; this book needs 1.x. Run `make setup`.")


def copy_mathjax(assets: Path) -> None:
    """Put MathJax beside the pages: formulas show without a network."""
    shipped = files("sphinx-mathjax-offline") or []
    found = next(file for file in shipped if file.name == "tex-svg.js")
    (assets / "mathjax").mkdir(parents=True)
    shutil.copy(found.locate(), assets / "mathjax" / "tex-svg.js")


def rooms() -> list[str]:
    """Return the page names of the reference: the package itself, then one page per subpackage."""
    folders = [file.parent.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("__init__.py")]
    return [f"api/{folder.as_posix()}/index" for folder in sorted(folders)]


def gather(source: Path, chapters_folder: Path) -> None:
    """Copy `book/` to *source*, with the chapters of *chapters_folder*, MathJax and the generated pages."""
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(chapters.BOOK, source, ignore=SKIPPED)
    names = chapters.names()
    missing = [name for name in names if not (chapters_folder / f"{name}.ipynb").exists()]
    if missing:
        sys.exit(f"book/_toc.yml names {', '.join(missing)}, but {chapters_folder} holds no such notebook.")
    for name in names:
        shutil.copy(chapters_folder / f"{name}.ipynb", source / f"{name}.ipynb")
    copy_mathjax(source / "_assets")
    (source / "_generated").mkdir()
    (source / "_generated" / "chapters.txt").write_text(status_page.table(chapters_folder, names), encoding="utf-8")
    (source / "_generated" / "quiz.txt").write_text(quizzes.page(), encoding="utf-8")
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "shipped"))  # autoapi
    toc = yaml.safe_load((source / "_toc.yml").read_text())
    for chapter in (chapter for part in toc["parts"] for chapter in part["chapters"]):
        if chapter["file"] == "api":
            chapter["sections"] = [{"file": name} for name in rooms()]
    (source / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))


def tidy(file: Path) -> None:
    """
    Correct what the tools of the build put on a page and no setting of theirs changes.

    The arrows of the page list get an accessible name. Thebe is removed: no page has a kernel, and its script, which
    is included twice, stops with an error. Tables and printed columns are marked for the style sheet.
    """
    text = file.read_text(encoding="utf-8")
    arrow = '<summary><span class="toctree-toggle"'
    text = text.replace(arrow, arrow.replace("<summary>", '<summary aria-label="Pages below">'))
    text = re.sub(r"<script>const THEBE_JS_URL.*?</script>", "", text, flags=re.DOTALL)
    text = re.sub(r'<script[^>]*src="[^"]*_static/sphinx-thebe\.js[^>]*></script>', "", text)
    text = re.sub(r'<table border="1" class="dataframe">.*?</table>', tidy_table, text, flags=re.DOTALL)
    text = re.sub(r'<div class="output stream.*?</pre>', mark_columns, text, flags=re.DOTALL)
    file.write_text(text, encoding="utf-8")


def tidy_table(found: re.Match[str]) -> str:
    """
    Return a pandas table with one heading row and its numeric columns marked (`lc-number`).

    Cells are counted from the right, because those on the left may span rows.
    """
    table = BeautifulSoup(re.sub(r">(<NA>|&lt;NA&gt;|NaN)<", ">–<", found[0]), "html.parser")
    join_heads(table.select("thead tr"))
    heads, rows = ([row.find_all(["th", "td"]) for row in table.select(f"{part} tr")] for part in ("thead", "tbody"))
    for number in range(1, 1 + max(map(len, rows), default=0)):
        column = [row[-number] for row in rows if len(row) >= number]
        texts = [cell.get_text(strip=True) for cell in column]
        above = [row[-number] for row in heads if len(row) >= number and not row[-number].get("colspan")]
        if all(NUMBER.fullmatch(text) for text in texts) and any(re.search(r"\d", text) for text in texts):
            mark([*column, *above], "lc-number")
        elif max(map(len, texts)) > LONG:
            mark(column, "lc-long")
    mark([cell for cell in table.select("tbody th") if len(cell.get_text(strip=True)) > SHORT], "lc-name")
    return str(table)


def join_heads(rows: list[Tag]) -> None:
    """Move the name of the index, which pandas puts into a heading row of its own, into the row above."""
    if len(rows) < 2:
        return
    above, below = (row.find_all(["th", "td"]) for row in rows[-2:])
    pairs = [(one.get_text(strip=True), other.get_text(strip=True)) for one, other in zip(below, above, strict=False)]
    if len(below) == len(above) and not any(one and other for one, other in pairs[1:]):
        for cell, pair in zip(above, pairs, strict=True):
            cell.string = " / ".join(filter(None, pair))
        rows[-1].decompose()


def mark(cells: list[Tag], name: str) -> None:
    """Add a class to cells."""
    for cell in cells:
        cell["class"] = " ".join([*cell.get_attribute_list("class"), name]) if cell.has_attr("class") else name


def mark_columns(found: re.Match[str]) -> str:
    """Mark printed text that is set in columns, or is code: it keeps its lines on a narrow screen (`lc-columns`)."""
    shown = BeautifulSoup(found[0], "html.parser").get_text()
    in_columns = len(re.findall(r"^.*\S {2,}\S", shown, re.MULTILINE)) > 1 or "\n    return " in shown
    return found[0].replace('"output stream', '"output stream lc-columns', 1) if in_columns else found[0]


def build(source: Path, out: Path, *, links: bool = False) -> None:
    """Build the pages of *source* with Jupyter Book and put them at *out* if all went well; or check the links."""
    made = source.with_name(source.name + "-made")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    command = ["jupyter-book", "build", str(source), "--config", str(chapters.ROOT / "_config.yml")]
    command += ["--path-output", str(made), "-W", "-n", "--keep-going", "-q"]
    if links:
        command += ["--builder", "linkcheck"]
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([str(program), *command[1:]], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}The build of the book failed: see the lines above.")
    if not links:
        pages = made / "_build" / "html"
        for file in pages.rglob("*.html"):
            tidy(file)
        address = set_address.pages(set_address.address(chapters.ROOT))
        (pages / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {address}/sitemap.xml\n")
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(pages, out)
    shutil.rmtree(made)
    shutil.rmtree(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chapters", type=Path, default=chapters.BOOK, help="folder of the notebooks")
    parser.add_argument("--out", type=Path, default=chapters.ROOT / "_build" / "html", help="folder of the pages")
    parser.add_argument("--check-links", action="store_true", help="try links to the web; make no pages")
    arguments = parser.parse_args()
    check_jupyter_book()
    source = arguments.out.with_name(arguments.out.name + "-source")
    gather(source, arguments.chapters)
    build(source, arguments.out, links=arguments.check_links)
    if not arguments.check_links:
        print(f"The pages: {(arguments.out / 'index.html').resolve().as_uri()}")


if __name__ == "__main__":
    main()
