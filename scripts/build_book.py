"""
Build the pages of the book: `python scripts/build_book.py [--chapters FOLDER] [--out FOLDER]`.

The pages are made from a copy of `book/`, so that nothing is written there. Chapters come from --chapters:
the committed notebooks, or those of a run. Nothing is executed here, and any warning is an error.
The whole book is read again each time: a build that starts from an old one no longer sees a bad page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import files, version
from pathlib import Path

import chapters

SKIPPED = shutil.ignore_patterns(".*", "*.part", "_build")


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


def status_table(folder: Path, names: list[str]) -> str:
    """What is known of each chapter's outputs, as a Markdown table (included by status.md)."""
    rows = ["| Chapter | Code cells | Compared | Not compared | Outputs |", "|---|--:|--:|--:|---|"]
    for name in names:
        notebook = chapters.read(name, folder)
        cells = chapters.code_cells(notebook)
        ignored = [cell for cell in cells if chapters.IGNORED in chapters.tags(cell)]
        if folder.resolve() != chapters.BOOK:
            state = "of this run"
        else:
            state = "current" if chapters.is_current(notebook) else "older than the code"
        compared = len(cells) - len(ignored)
        rows.append(f"| {{doc}}`{name}` | {len(cells)} | {compared} | {len(ignored)} | {state} |")
    return "\n".join(rows) + "\n"


def gather(source: Path, chapters_folder: Path) -> None:
    """Copy `book/` to *source*, with the chapters of *chapters_folder*, MathJax and the status table."""
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
    (source / "_generated" / "chapters.txt").write_text(status_table(chapters_folder, names))


def build(source: Path, out: Path, *, links: bool = False) -> None:
    """Let Jupyter Book make the pages of *source* and put them at *out* if all went well; or try links."""
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
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(made / "_build" / "html", out)
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
