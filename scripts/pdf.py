"""
Print the whole book as one PDF beside its pages: `python scripts/pdf.py [PAGES]`, after `make render`.

The articles of all pages but the reference are joined into one page, which a headless Chromium prints with an outline.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

import chapters

NAME = "land-cover-at-10-metres.pdf"
FOOT = '<p style="width: 100%; text-align: center; font-size: 8pt"><span class="pageNumber"></span></p>'
TWICE = re.compile(rb"/Title \((.+)\1\)")
"""Chromium writes the title of a heading that it moves to the next sheet into the outline twice."""

BREAK = '<div style="break-after: page"></div>'
OPEN_ALL = """async () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  document.querySelectorAll(".toggle-hidden").forEach(one => one.classList.remove("toggle-hidden"));
  document.querySelectorAll("img").forEach(one => one.loading = "eager");
  await Promise.all([...document.images].map(one => one.decode().catch(() => null)));
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  await document.fonts.ready;
}"""
"""Opens folded solutions and waits for pictures, formulas and type faces."""


def find_chromium() -> str | None:
    """Return the Chromium or Chrome of this machine: `LCFUSE_CHROMIUM`, else the first on the path."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("LCFUSE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def read_html(file: Path) -> BeautifulSoup:
    """Return a parsed page."""
    return BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")


def one_page(pages: Path, names: list[str]) -> str:
    """Return the articles of the pages *names* as one HTML page; links between them lead to places on it."""
    frame = read_html(pages / f"{names[0]}.html")
    parts = []
    for name in names:
        article = read_html(pages / f"{name}.html").select("article.bd-article")[0]
        for tag in article.find_all(lambda tag: tag.has_attr("id") and not tag.find_parent("svg")):
            tag["id"] = f"{name}--{tag['id']}"
        for link in article.find_all("a", href=re.compile(r"^(?!\w+:)")):
            target, _, spot = str(link["href"]).partition("#")
            page = target.removesuffix(".html") or name
            link["href"] = f"#{page}--{spot}" if spot else f"#{page}"
        for heading in article.find_all(re.compile("^h[1-6]$")):
            if not heading.find(["code", "br"]) and not heading.select(".math"):
                heading.string = heading.get_text().removesuffix("#")  # one text, see `TWICE`
        parts.append(f'<section id="{name}">{article}</section>')
    frame.select("article.bd-article")[0].replace_with(
        BeautifulSoup(f'<article class="bd-article">{BREAK.join(parts)}</article>', "html.parser")
    )
    return str(frame)


def make(pages: Path, out: Path, names: list[str]) -> None:
    """Print the pages *names* of the folder *pages* into the file *out*. Raises SystemExit without a Chromium."""
    program = find_chromium()
    if program is None:
        sys.exit("No Chromium: install it (apt-get install chromium-headless-shell) or name it in LCFUSE_CHROMIUM.")
    joined = pages / "_one_page.html"
    joined.write_text(one_page(pages, names), encoding="utf-8")
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"]).new_page(offline=True)
        page.set_default_timeout(600_000)
        page.goto(joined.as_uri())
        page.evaluate(OPEN_ALL)
        page.pdf(
            path=str(out), format="A4", print_background=True, outline=True, tagged=True,
            margin={"top": "18mm", "bottom": "21mm", "left": "21mm", "right": "21mm"},
            display_header_footer=True, header_template="<p></p>", footer_template=FOOT,
        )  # fmt: skip
    joined.unlink()
    out.write_bytes(TWICE.sub(lambda found: b"/Title (%s)" % found[1] + b" " * len(found[1]), out.read_bytes()))


def main() -> None:
    pages = Path(sys.argv[1]) if len(sys.argv) > 1 else chapters.ROOT / "_build" / "html"
    toc = yaml.safe_load((chapters.BOOK / "_toc.yml").read_text())
    make(pages, pages / NAME, [toc["root"], *(one["file"] for part in toc["parts"] for one in part["chapters"])])
    print((pages / NAME).resolve().as_uri())


if __name__ == "__main__":
    main()
