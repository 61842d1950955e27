"""
The whole book as one PDF: `python scripts/pdf.py [--pages FOLDER] [--out FILE]`, after `make render`.

A headless Chromium prints each page of the built book; the prints are joined behind a title and a table of contents,
page numbers are laid over them, and links between pages become links within the file.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import ArrayObject, DictionaryObject, Fit, NameObject, NumberObject

import chapters

NAME = "land-cover-at-10-metres.pdf"
"""What the pages link to."""

FOOT = "<p>Text and figures <a"
"""How the foot of a page begins: `html.extra_footer` of _config.yml."""

MARGIN = {"top": "18mm", "bottom": "21mm", "left": "21mm", "right": "21mm"}
PRINT: dict[str, Any] = {"format": "A4", "print_background": True, "margin": MARGIN}
ASSETS = chapters.BOOK / "_assets"
FACES = "".join(
    f"@font-face {{font-family: '{family}'; font-weight: {weight}; src: url({(ASSETS / 'fonts' / file).as_uri()})}}\n"
    for family, weight, file in (
        ("Book Serif", 400, "source-serif-4-latin-400-normal.woff2"),
        ("Book Sans", 400, "source-sans-3-latin-400-normal.woff2"),
        ("Book Sans", 600, "source-sans-3-latin-600-normal.woff2"),
    )
)
STYLE = (
    FACES
    + """
body {font: 10.5pt/1.4 'Book Sans', sans-serif; color: #20302b}
h1 {font: 400 30pt/1.15 'Book Serif', serif; margin: 20mm 0 12mm; text-wrap: balance} p.of {margin-top: 10mm}
img {width: 118mm} a {color: inherit; text-decoration: none}
h2 {font: 400 20pt 'Book Serif', serif; break-before: page}
h3 {font: 600 10pt 'Book Sans', sans-serif; color: #1f6b4f; margin: 5mm 0 1mm; break-after: avoid}
li a {display: flex; justify-content: space-between; gap: 8mm; padding: .9mm 0; border-bottom: .2mm solid #d9dfd9}
ol {list-style: none; padding: 0; margin: 0} li {break-inside: avoid} li.below {padding-left: 5mm; font-size: 9pt}
"""
)
NUMBERS = (
    FACES
    + """
@page {size: A4; margin: 0} body {margin: 0; font: 8.5pt 'Book Sans', sans-serif; color: #5c5c5c}
div {height: 297mm; position: relative; break-after: page; overflow: hidden} div:last-child {break-after: auto}
span {position: absolute; bottom: 10mm; left: 21mm; width: 145mm; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis} b {position: absolute; bottom: 10mm; right: 21mm; font-weight: 400}
"""
)


@dataclass
class Printed:
    """A page of the book, printed."""

    name: str
    part: str
    title: str
    file: PdfReader
    start: int = 0
    is_below: bool = False


def find_chromium() -> str | None:
    """The Chromium or Chrome of this machine; the one without windows first, which takes two thirds of the time."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("LCFUSE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser without a network, that prints as on white paper. Raises SystemExit when there is none."""
    program = find_chromium()
    if program is None:
        sys.exit("No Chromium: install it (apt-get install chromium-headless-shell) or name it in LCFUSE_CHROMIUM.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser.new_context(offline=True, color_scheme="light").new_page()
        finally:
            browser.close()


def contents(toc: Path) -> list[tuple[str, str, bool]]:
    """(part, page, is it below another) for every page of the book in its order, the first page first."""
    read = yaml.safe_load(toc.read_text())
    found = [("", read["root"], False)]
    for part in read["parts"]:
        for chapter in part["chapters"]:
            found.append((part["caption"], chapter["file"], False))
            found += [(part["caption"], section["file"], True) for section in chapter.get("sections", [])]
    return found


def spots(pages: Path, names: list[str]) -> dict[str, list[str]]:
    """For each page the places on it that links of any page lead to."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        links = re.findall(r"""href=["']([\w-]*)(?:\.html)?#([^"']+)["']""", (pages / f"{name}.html").read_text())
        for page, spot in links:
            found.get(page or name, set()).add(unquote(html.unescape(spot)))
    return {name: sorted(those) for name, those in found.items()}


def print_page(page: Any, address: str, folder: Path, named: list[str] | None = None) -> PdfReader:
    """
    Print one address. Formulas and letters are waited for, folded solutions opened, late pictures fetched.

    A browser names in the print only those places that the page itself links to. So each place of *named* gets a
    link in letters that nobody sees, at the end.
    """
    page.goto(address)
    page.evaluate(
        """async () => {
            document.documentElement.dataset.theme = "light";
            document.querySelectorAll("details").forEach(one => one.open = true);
            document.querySelectorAll(".toggle-hidden").forEach(one => one.classList.remove("toggle-hidden"));
            document.querySelectorAll("img").forEach(one => one.loading = "eager");
            await Promise.all([...document.images].map(one => one.decode().catch(() => null)));
            if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
            await document.fonts.ready;
        }"""
    )
    page.evaluate(
        """spots => {
            const last = document.createElement("p");
            last.style = "color: transparent; font-size: 1px; line-height: 1px; margin: 0";
            for (const spot of spots) if (document.getElementById(spot)) {
                const link = document.createElement("a");
                link.href = "#" + encodeURIComponent(spot);
                link.style = "color: transparent";
                link.textContent = ".";
                last.append(link);
            }
            (document.querySelector("article") || document.body).append(last);
        }""",
        named or [],
    )
    page.emulate_media(media="print", color_scheme="light")
    file = folder / f"{len(list(folder.iterdir()))}.pdf"
    page.pdf(path=str(file), **PRINT)
    return PdfReader(file)


def print_text(page: Any, text: str, folder: Path, **options: Any) -> PdfReader:
    """Print HTML that was made here. It goes through a file: only so it may name faces and pictures by their place."""
    source = folder / "text.html"
    source.write_text(text, encoding="utf-8")
    page.goto(source.as_uri())
    page.evaluate("document.fonts.ready")
    page.emulate_media(media="print")
    file = folder / f"{len(list(folder.iterdir()))}.pdf"
    page.pdf(path=str(file), **(PRINT | options))
    return PdfReader(file)


def front(title: str, printed: list[Printed]) -> str:
    """Title and table of contents as HTML. Page numbers are those of `start`."""
    lines, part = [], None
    for one in printed:
        if one.part != part:
            lines += [
                "</ol>" if part is not None else "",
                f"<h3>{html.escape(one.part)}</h3>" if one.part else "",
                "<ol>",
            ]
            part = one.part
        words = f"<span>{html.escape(one.title)}</span><span>{one.start + 1}</span>"
        kind = ' class="below"' if one.is_below else ""
        lines.append(f'<li{kind}><a href="file:///{one.name}.html">{words}</a></li>')
    body = "\n".join(lines)
    return (
        f'<html lang="en"><head><meta charset="utf-8"><style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>'
        f'<img src="{(ASSETS / "result.png").as_uri()}" alt="">'
        f'<p class="of">All pages, as published. Text and figures CC BY 4.0, code BSD 3-Clause.</p>'
        f"<h2>Contents</h2>{body}</ol></body></html>"
    )


def feet(n_front: int, printed: list[Printed]) -> str:
    """Sheets with nothing but a foot, from the second on: what page of the book it is, and the number."""
    titles = ["Contents"] * (n_front - 1) + [one.title for one in printed for _ in one.file.pages]
    sheets = (f"<div><span>{html.escape(title)}</span> <b>{at}</b></div>" for at, title in enumerate(titles, 2))
    return f'<html><head><meta charset="utf-8"><style>{NUMBERS}</style></head><body>{"".join(sheets)}</body></html>'


def place(printed: list[Printed], shift: int) -> int:
    """Set where each page starts when *shift* sheets stand before the first; returns the number of all sheets."""
    for one in printed:
        one.start, shift = shift, shift + len(one.file.pages)
    return shift


def join(title: str, printed: list[Printed], page: Any, folder: Path) -> PdfWriter:
    """One file of all prints, with title, contents, numbers, an outline and inner links."""
    place(printed, 0)
    n_front = len(print_text(page, front(title, printed), folder).pages)
    place(printed, n_front)
    opening = print_text(page, front(title, printed), folder)
    writer = PdfWriter()
    for sheet in opening.pages:
        writer.add_page(sheet)
    for one in printed:
        for sheet in one.file.pages:
            writer.add_page(sheet)
    numbers = print_text(page, feet(n_front, printed), folder, margin=None)
    for sheet, number in zip(writer.pages[1:], numbers.pages, strict=True):
        sheet.merge_page(number)
        sheet.compress_content_streams()
    parts: dict[str, Any] = {}
    for one in printed:
        if one.part and one.part not in parts:
            parts[one.part] = writer.add_outline_item(title=one.part, page_number=one.start)
        writer.add_outline_item(title=one.title, page_number=one.start, parent=parts.get(one.part))
    everything = {one.name: one for one in printed}
    for one in (Printed("", "", title, opening), *printed):
        mend_links(writer, one, everything)
    writer.add_metadata({"/Title": title, "/Author": "The lcfuse-book contributors"})
    writer.compress_identical_objects()
    return writer


def mend_links(writer: PdfWriter, one: Printed, others: dict[str, Printed]) -> None:
    """Let links to other pages of the book, and to places on the same page, lead to where these are in the file."""
    for number in range(one.start, one.start + len(one.file.pages)):
        for reference in writer.pages[number].get("/Annots") or []:
            link = reference.get_object()
            address = urlsplit(str(link.get("/A", {}).get("/URI", "")))
            name = link.get("/Dest")
            if address.scheme == "file":
                target, spot = others.get(Path(unquote(address.path)).stem), unquote(address.fragment)
            elif isinstance(name, str):
                target, spot = one, str(name).removeprefix("/")
            else:
                continue
            link.pop("/Dest", None), link.pop("/A", None)
            if target is not None:
                link[NameObject("/Dest")] = destination(writer, target, spot)
            else:  # a file that is no page of the book
                link[NameObject("/A")] = DictionaryObject()


def destination(writer: PdfWriter, target: Printed, spot: str) -> ArrayObject:
    """
    Sheet and height of a named place of a page; its top when the print knows no such name.

    `print_page` saw to it that the browser named the place.
    """
    known = target.file.named_destinations.get(f"/{spot}") or target.file.named_destinations.get(spot)
    number, top = 0, None
    if known is not None and known.page is not None:
        number = target.file.get_destination_page_number(known) or 0
        top = known.top
    sheet = writer.pages[target.start + number].indirect_reference
    fit = Fit.xyz(top=float(top)) if top is not None else Fit.fit()
    return ArrayObject([sheet, NameObject(fit.fit_type), *(fit.fit_args or [NumberObject(0)])])


def make(pages: Path, out: Path, toc: Path, names: list[str] | None = None) -> int:
    """Print the pages in *pages* that *toc* lists (or *names* of them) to *out*; returns the number of sheets."""
    wanted = [one for one in contents(toc) if names is None or one[1] in names]
    named = spots(pages, [name for _, name, _ in wanted])
    with chromium() as page, tempfile.TemporaryDirectory() as temporary:
        folder, printed = Path(temporary), []
        for part, name, is_below in wanted:
            file = print_page(page, (pages / f"{name}.html").resolve().as_uri(), folder, named[name])
            heading = page.evaluate("(document.querySelector('article h1') || document.querySelector('h1')).innerText")
            printed.append(Printed(name, part, " ".join(heading.replace("#", "").split()), file, is_below=is_below))
        title = str(yaml.safe_load((chapters.ROOT / "_config.yml").read_text())["title"])
        writer = join(title, printed, page, folder)
        part_file = out.with_name(out.name + ".part")
        writer.write(part_file)
        os.replace(part_file, out)
        return len(writer.pages)


def link_from(pages: Path, file: str = NAME) -> int:
    """Let the foot of every page lead to the file beside it; returns how many do now that did not before."""
    line = f'<p class="lc-pdf"><a href="{file}">The whole book as PDF</a></p>'
    changed = 0
    for page in pages.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        if FOOT in text and line not in text:
            page.write_text(text.replace(FOOT, line + FOOT, 1), encoding="utf-8")
            changed += 1
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, default=chapters.ROOT / "_build" / "html")
    parser.add_argument("--out", type=Path, help=f"default: {NAME} beside the pages")
    given = parser.parse_args()
    out = given.out or given.pages / NAME
    sheets = make(given.pages, out, given.pages / "_sources" / "_toc.yml")
    if out.parent.resolve() == given.pages.resolve():
        link_from(given.pages, out.name)
    print(f"{sheets} sheets: {out.resolve().as_uri()}")


if __name__ == "__main__":
    main()
