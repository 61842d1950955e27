"""
The last touches to built pages: what a search engine, a chat window or an old bookmark asks of them.

Each page gets a description, Open Graph fields and its one address; the folder gets a sitemap and, for each page
that has moved, a page that leads on. All of it is made from the pages themselves and from `repository.url`.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from bs4 import BeautifulSoup, Tag

import chapters
import set_address

MOVED: dict[str, str] = {}
"""Old page -> page that took its place. A page that is renamed or merged gets a line here, and keeps it."""

NOT_WRITTEN = ("index.html", "genindex.html", "search.html", "py-modindex.html")
"""Pages that nobody wrote: not for a search engine."""

CARD = "_static/social-card.png"
CARD_ALT = "A satellite image of fields and woods, its coarse label in slanted blocks, and the map of a network."
DESCRIPTION_LENGTH = 200
TOGGLE = "Pages below"
"""What the theme's arrow beside a page with pages below it is called: the theme gives it no name."""


def description(soup: BeautifulSoup) -> str:
    """The first paragraph of a page in at most DESCRIPTION_LENGTH characters, cut between words."""
    article = soup.find("article", class_="bd-article")
    first = article.find("p", recursive=True) if isinstance(article, Tag) else None
    text = " ".join(first.get_text().split()) if isinstance(first, Tag) else ""
    if len(text) <= DESCRIPTION_LENGTH:
        return text
    return text[:DESCRIPTION_LENGTH].rsplit(" ", 1)[0].rstrip(",;:.") + " …"


def fields(soup: BeautifulSoup, address: str) -> str:
    """The lines that go into the head of the page at *address*."""
    heading = soup.find("h1")
    title = heading.get_text().removesuffix("#").strip() if isinstance(heading, Tag) else ""
    title = re.sub(r"^\d+(\.\d+)*\.\s*", "", title)  # the number of a chapter says nothing elsewhere
    base, said = address.rsplit("/", 1)[0], description(soup)
    named = {"description": said, "twitter:card": "summary_large_image"}
    graph = {
        "og:title": title, "og:description": said, "og:type": "article", "og:url": address,
        "og:image": f"{base}/{CARD}", "og:image:alt": CARD_ALT,
    }  # fmt: skip
    lines = [f'<link rel="canonical" href="{html.escape(address)}">']
    lines += [f'<meta name="{key}" content="{html.escape(value)}">' for key, value in named.items()]
    lines += [f'<meta property="{key}" content="{html.escape(value)}">' for key, value in graph.items()]
    return "\n".join(lines) + "\n"


def add_fields(file: Path, address: str) -> None:
    """Write the fields into the head of a page. A page that has them already is left as it is."""
    text = file.read_text(encoding="utf-8")
    if 'property="og:title"' not in text:
        soup = BeautifulSoup(text, "html.parser")
        text = text.replace("</head>", fields(soup, address) + "</head>", 1)
        file.write_text(text, encoding="utf-8")


def mend_frame(file: Path) -> None:
    """
    Mend what tools of the build put around every page and no setting of theirs changes.

    The arrows of the list of pages get a name: a reader that speaks has nothing else to say. Thebe goes: no page
    has a kernel in it, and its script, which comes twice, stops with an error. A list of references is no list in the
    sense of ARIA, whose items may only be items.
    """
    text = file.read_text(encoding="utf-8")
    arrow = '<summary><span class="toctree-toggle"'
    text = text.replace(arrow, arrow.replace("<summary>", f'<summary aria-label="{TOGGLE}">'))
    text = text.replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    text = re.sub(r"<script>const THEBE_JS_URL.*?</script>", "", text, flags=re.DOTALL)
    text = re.sub(r'<script[^>]*src="_static/sphinx-thebe\.js[^>]*></script>', "", text)
    text = re.sub(r'<table border="1" class="dataframe">.*?</table>', mend_table, text, flags=re.DOTALL)
    text = re.sub(r'<div class="output stream.*?</pre>', mark_columns, text, flags=re.DOTALL)
    # A tap on the title of a solution opens it, and must not lead away to its exercise.
    text = re.sub(r'Solution to ?<a class="reference internal" href="[^"]*">(.*?)</a>', r"Solution to \1", text)
    file.write_text(text, encoding="utf-8")


ONE = r"[-−+]?[\d,.]*\d(e[-+]?\d+)?"
NUMBER = re.compile(rf"{ONE}( ?%| [km]?m| s)?|{ONE} to {ONE}( \(\d+\))?|nan|None|[-–·]|")
"""What a cell of a column of numbers may hold."""

LONG, SHORT = 60, 12
"""More letters than LONG need a wide column (`lc-long`); a row's name of more than SHORT some room (`lc-name`)."""


def mend_table(found: re.Match[str]) -> str:
    """
    A table of pandas as a reader expects it.

    The name of the index stands in the row of the other headings, not in one of its own, and a column of numbers has
    its figures one under the other (`lc-number`). Cells are counted from the right: the left ones may span rows.
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


def mark_columns(found: re.Match[str]) -> str:
    """Printed text in columns, or of code, keeps its lines however narrow the screen (`lc-columns`)."""
    shown = BeautifulSoup(found[0], "html.parser").get_text()
    in_columns = len(re.findall(r"^.*\S {2,}\S", shown, re.MULTILINE)) > 1 or "\n    return " in shown
    return found[0].replace('"output stream', '"output stream lc-columns', 1) if in_columns else found[0]


def join_heads(rows: list[Tag]) -> None:
    """Let a last row of headings that names the index, or says nothing, go up into the row above if that has room."""
    if len(rows) < 2:
        return
    above, below = (row.find_all(["th", "td"]) for row in rows[-2:])
    pairs = [(one.get_text(strip=True), other.get_text(strip=True)) for one, other in zip(below, above, strict=False)]
    if len(below) == len(above) and not any(one and other for one, other in pairs[1:]):
        for cell, pair in zip(above, pairs, strict=True):
            cell.string = " / ".join(filter(None, pair))
        rows[-1].decompose()


def mark(cells: list[Tag], name: str) -> None:
    """Give cells a class more."""
    for cell in cells:
        cell["class"] = " ".join([*cell.get_attribute_list("class"), name]) if cell.has_attr("class") else name


def forwarding(target: str) -> str:
    """A page that leads on to *target*, at once and by a link for who must follow by hand."""
    to = html.escape(target)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>This page has moved</title>\n'
        f'<meta http-equiv="refresh" content="0; url={to}"><meta name="robots" content="noindex">\n'
        f"</head><body><main><h1>This page has moved</h1>\n"
        f'<p>It is <a href="{to}">here</a> now.</p></main></body></html>\n'
    )


def add_forwardings(pages: Path, moved: dict[str, str] | None = None) -> None:
    """
    A forwarding page for each page that has moved.

    Raises SystemExit when a target is not there, or when a page stands where one is said to have gone.
    """
    for old, target in (MOVED if moved is None else moved).items():
        if not (pages / target.split("#")[0]).exists():
            raise SystemExit(f"finish.MOVED sends {old} to {target}, which is no page of the book.")
        if (pages / old).exists():
            raise SystemExit(f"finish.MOVED sends {old} away, but the book has that page. Take the line out.")
        (pages / old).write_text(forwarding(target), encoding="utf-8")


def sitemap(base: str, names: list[str]) -> str:
    """All written pages, in the form of sitemaps.org."""
    rows = "".join(f"<url><loc>{html.escape(f'{base}/{name}')}</loc></url>\n" for name in names)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{rows}</urlset>\n'
    )


def finish(pages: Path) -> None:
    """Do all of it to the pages in a folder."""
    base = set_address.pages(set_address.address(chapters.ROOT))
    files = sorted(file for file in pages.rglob("*.html") if "_static" not in file.parts)
    written = [file for file in files if file.name not in NOT_WRITTEN]
    for file in files:
        mend_frame(file)
    for file in written:
        add_fields(file, f"{base}/{file.relative_to(pages).as_posix()}")
    (pages / "sitemap.xml").write_text(sitemap(base, [file.relative_to(pages).as_posix() for file in written]))
    (pages / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {base}/sitemap.xml\n")
    add_forwardings(pages)
