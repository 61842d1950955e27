"""
Set where the project lives: `make address URL=https://github.com/you/your-book`.

The address stands in `_config.yml`; badges, citations and set-up cells repeat it. All are changed together.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import yaml

import chapters

GITHUB = "https://github.com/"
PLACES = (
    "_config.yml", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "environment.yml",
    ".binder/*", ".github/workflows/*.yml", "book/*.md", "book/*.ipynb",
    "lcfuse_core/**/*.py",
)  # fmt: skip
"""Every file that may name the address; the tests look for it in no other."""


def address(root: Path = chapters.ROOT) -> str:
    """The address of the repository, from `_config.yml`."""
    return str(yaml.safe_load((root / "_config.yml").read_text())["repository"]["url"])


def pages(repository: str) -> str:
    """Where GitHub publishes the pages of a repository."""
    owner, name = repository.removeprefix(GITHUB).split("/")
    return f"https://{owner.lower()}.github.io/{name}"


def places(root: Path = chapters.ROOT) -> list[Path]:
    """The files of PLACES that exist."""
    return [file for pattern in PLACES for file in sorted(root.glob(pattern)) if file.is_file()]


def replace_address(new: str, root: Path = chapters.ROOT) -> list[Path]:
    """Change the address everywhere; returns the changed files. Chapters that were current stay current."""
    old = address(root)
    book = root / "book"
    here = [name for name in chapters.names(book) if (book / f"{name}.ipynb").exists()]
    current = [name for name in here if chapters.is_current(chapters.read(name, book), root)]
    changed = []
    for file in places(root):
        text = file.read_text()
        fresh = text.replace(pages(old), pages(new))
        fresh = fresh.replace(old.removeprefix(GITHUB), new.removeprefix(GITHUB))
        if fresh != text:
            file.write_text(fresh)
            changed.append(file)
    for name in current:  # no output depends on the address: the digest follows the changed set-up cell
        notebook = chapters.read(name, book)
        notebook.metadata["lcfuse"]["digest"] = chapters.digest(notebook, root)
        nbformat.write(notebook, book / f"{name}.ipynb")
    return changed


def main() -> None:
    new = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else ""
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", new):
        sys.exit(f"found address {new!r}, expected https://github.com/NAME/REPOSITORY. Give it as URL=...")
    for file in replace_address(new):
        print(file.relative_to(chapters.ROOT))


if __name__ == "__main__":
    main()
