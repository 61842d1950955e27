"""
Build the pages of the book: `python scripts/build_book.py [--chapters FOLDER] [--out FOLDER]`.

The pages are made from a copy of `book/`, so that nothing is written there. Chapters come from --chapters:
the committed notebooks, or those of a run. Nothing is executed here, and any warning is an error.
The reference of the module, the quiz and the status table are made on the way (`api_pages`, `quizzes`, `status_page`);
`finish` adds what search engines and old bookmarks ask for.
The whole book is read again each time: a build that starts from an old one no longer sees a bad page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import files, version
from pathlib import Path

import nbformat
import yaml

import api_pages
import chapters
import finish
import quizzes
import status_page

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


def add_reference(source: Path, names: list[str]) -> None:
    """The reference of the module: a page a floor under `api.md`, and at the foot of each chapter what it uses."""
    modules = api_pages.read_modules()
    who = api_pages.users(source, names, modules)
    pages = api_pages.pages(modules, who)
    for name, text in pages.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    (source / "_generated" / "api.txt").write_text(api_pages.overview(modules, who), encoding="utf-8")
    for name in names:
        notebook = chapters.read(name, source)
        if used := api_pages.used_here(name, modules, who):
            notebook.cells.append(nbformat.v4.new_markdown_cell(used, id="used-here"))
            nbformat.write(notebook, source / f"{name}.ipynb")
    toc = yaml.safe_load((source / "_toc.yml").read_text())
    for chapter in (chapter for part in toc["parts"] for chapter in part["chapters"]):
        if chapter["file"] == "api":
            chapter["sections"] = [{"file": name} for name in pages]
    (source / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False))


def gather(source: Path, chapters_folder: Path) -> None:
    """Copy `book/` to *source*, with the chapters of *chapters_folder*, MathJax and the pages that are made."""
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
    (source / "_generated" / "quiz.txt").write_text(quizzes.page(names=names), encoding="utf-8")
    add_reference(source, names)


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
        pages = made / "_build" / "html"
        (pages / "_sources").mkdir(exist_ok=True)
        shutil.copy(source / "_toc.yml", pages / "_sources" / "_toc.yml")
        finish.finish(pages)
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
