"""
The table of the status page: what is known of each chapter's outputs. Nothing in it is typed.

State and digest come from the notebook, time, memory, versions and machine from its provenance box, the commit from
git, and the date of the last passing check from `_build/verified.json`, which `make test` writes when every chapter
has run and agreed with what it shows. A date counts only for the digest that was checked.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from bs4 import BeautifulSoup
from nbformat import NotebookNode

import chapters

HEAD = (
    "| Chapter | Outputs | Checked on | Time | Memory | Cells compared | Commit |",
    "|---|---|---|--:|--:|--:|---|",
)


def provenance(notebook: NotebookNode) -> dict[str, str]:
    """The rows of the provenance box that closes a chapter; empty when it has none."""
    for cell in reversed(chapters.code_cells(notebook)):
        for output in cell.outputs:
            page = BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser")
            if page.find("table", class_="provenance"):
                rows = ([cell.get_text() for cell in row.find_all(["th", "td"])] for row in page.find_all("tr"))
                return {row[0]: row[1] for row in rows}
    return {}


def commit(file: Path) -> str:
    """The short hash of the last commit that changed a file, or "not committed"."""
    command = ["git", "log", "-1", "--format=%h", "--", file.name]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not committed"


def checked_on(name: str, notebook: NotebookNode, file: Path = chapters.VERIFIED) -> str:
    """The day of the last passing check of these very outputs, or a dash: not on this machine."""
    known = json.loads(file.read_text()) if file.exists() else {}
    same = known.get(name, {}).get("digest") == chapters.digest(notebook)
    return str(known[name]["on"]) if same else "–"


def row(name: str, folder: Path) -> str:
    """One chapter."""
    notebook = chapters.read(name, folder)
    cells = chapters.code_cells(notebook)
    compared = sum(chapters.IGNORED not in chapters.tags(cell) for cell in cells)
    if folder.resolve() != chapters.BOOK:
        state, when = "of this run", "made by this run"
    else:
        state = "current" if chapters.is_current(notebook) else "older"
        when = checked_on(name, notebook)
    facts = provenance(notebook)
    cost = re.match(r"(\d+ s), at most (\d+ MB)", facts.get("Time and memory", ""))
    time, memory = cost.groups() if cost else ("not told", "not told")
    values = (state, when, time, memory, f"{compared} of {len(cells)}")
    return f"| {{doc}}`{name}` | {' | '.join(values)} | {commit(folder / f'{name}.ipynb')} |"


def made_with(folder: Path, names: list[str]) -> str:
    """A sentence a set of versions: which chapters were made with it."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(provenance(chapters.read(name, folder)).get("Versions", "not told"), []).append(name)
    if len(found) == 1:
        return f"All chapters were made with {next(iter(found))}."
    return "\n".join(f"- {versions}: {', '.join(own)}" for versions, own in found.items())


def table(folder: Path, names: list[str]) -> str:
    """The Markdown table that `status.md` includes, and the versions below it."""
    rows = [*HEAD, *(row(name, folder) for name in names)]
    return "\n".join(rows) + f"\n\n{made_with(folder, names)}\n"
