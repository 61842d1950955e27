"""
The chapters in the order of the book: list them, run them in place, tell whether their outputs are current.

    python scripts/chapters.py list [--longest-first]
    python scripts/chapters.py execute [NAME ...] [--jobs 2]     (all of them without a name)
    python scripts/chapters.py verified               (write down that all have passed their check now)

A chapter's outputs are current when they were made by the module, the lock, the profiles and the cells that
are there now. `execute` writes a digest of these into the notebook; the tests and the status page compare it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbformat import NotebookNode

from lcfuse_core import _runtime

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
CELL_TIMEOUT_S = 1200
VERIFIED = ROOT / "_build" / "verified.json"
"""When each chapter was last run and found to agree with what it shows, and the digest of what was run."""

LONGEST = ("training", "baselines", "networks", "evaluation", "fusion", "dfc2020", "cell_supervision", "reruns")
"""Begun first where chapters run two at a time, so that none is left to run alone; `evaluation` finds what `training`
has trained."""

IGNORED = "nbval-ignore-output"
"""Tag of a cell whose output rests on training or time; its metadata `lcfuse.why` says on what."""


def names(book: Path = BOOK) -> list[str]:
    """File names (without ending) of the executable chapters, in the order of `_toc.yml`."""
    toc = yaml.safe_load((book / "_toc.yml").read_text())
    files = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    return [name for name in files if not (book / f"{name}.md").exists()]


def read(name: str, book: Path = BOOK) -> NotebookNode:
    """The notebook of a chapter."""
    return nbformat.read(book / f"{name}.ipynb", as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that hold something."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def digest(notebook: NotebookNode, root: Path = ROOT) -> str:
    """SHA-256 of what the outputs of *notebook* rest on: module, lock, profiles, manifest, its cells."""
    module = root / "lcfuse_core"
    files = sorted(module.glob("shipped/**/*.*"))
    files += [root / "requirements.lock", root / "data_manifest.yaml"]
    total = hashlib.sha256()
    for file in sorted(module.rglob("*.py")):  # without docstrings and blank lines
        total.update(f"\n{file.relative_to(root).as_posix()}\n{_runtime.code_of(file.read_text())}".encode())
    for file in files:
        if file.exists():
            total.update(f"\n{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    for cell in code_cells(notebook):
        total.update(f"\n{sorted(tags(cell))}\n{cell.source}\n".encode())
    return total.hexdigest()


def is_current(notebook: NotebookNode, root: Path = ROOT) -> bool:
    """Whether the stored outputs were made by what is there now."""
    stored = notebook.metadata.get("lcfuse", {}).get("digest")
    return bool(stored == digest(notebook, root))


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in *folder*; outputs are put into the notebook. Raises CellExecutionError when one fails."""
    from lcfuse_core.book import reruns  # only here: every script imports this file, and that takes a second

    with reruns.kernel_config() as config:
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_S,
            startup_timeout=CELL_TIMEOUT_S,  # on a busy machine a kernel takes its time
            kernel_name="python3",
            record_timing=False,  # times would make every commit differ
            resources={"metadata": {"path": str(folder)}},
            config=config,
        )
        return client.execute()


def execute(name: str, book: Path = BOOK) -> None:
    """Run a chapter in place. The file changes only when every cell has passed, and then at once."""
    notebook = read(name, book)
    start = time.monotonic()
    run(notebook, book)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}  # knows % and !
    notebook.metadata["lcfuse"] = {"digest": digest(notebook, book.parent)}
    part = book / f"{name}.ipynb.part"
    nbformat.write(notebook, part)
    os.replace(part, book / f"{name}.ipynb")
    print(f"{name}: {time.monotonic() - start:.0f} s")


def verify(file: Path = VERIFIED) -> None:
    """Write down that every chapter has passed its check now: `make test` calls it when they have."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    each = {name: {"digest": digest(read(name)), "on": day} for name in names()}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(each, indent=1) + "\n")


def fresh_ledger() -> None:
    """Let chapters that run from here record into an empty ledger: no output rests on older runs."""
    ledger = ROOT / "_build" / "execute-ledger.jsonl"
    ledger.parent.mkdir(exist_ok=True)
    ledger.unlink(missing_ok=True)
    os.environ["LCFUSE_LEDGER"] = str(ledger)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["list", "execute", "verified"])
    parser.add_argument("chapter", nargs="*", help="names as in book/_toc.yml")
    parser.add_argument("--longest-first", action="store_true", help="the order to run them in, several at a time")
    parser.add_argument("--jobs", type=int, default=1, help="chapters at a time")
    arguments = parser.parse_args()
    wanted = arguments.chapter or names()
    if arguments.longest_first:
        wanted = sorted(wanted, key=lambda name: LONGEST.index(name) if name in LONGEST else len(LONGEST))
    strange = sorted(set(wanted) - set(names()))
    if strange:
        parser.error(f"no chapter {', '.join(strange)}; there are {', '.join(names())}")
    if arguments.what == "list":
        print("\n".join(wanted))
    elif arguments.what == "verified":
        verify()
    else:
        fresh_ledger()
        with ProcessPoolExecutor(arguments.jobs) as pool:
            list(pool.map(execute, wanted))  # raises what a chapter has raised


if __name__ == "__main__":
    main()
