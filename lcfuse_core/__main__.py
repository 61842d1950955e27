"""
The same from a shell.

    python -m lcfuse_core run CHAPTER [--profile smoke] [-p NAME VALUE ...] --out DIR
    python -m lcfuse_core ledger {list,show,diff} [--file F]
    python -m lcfuse_core sample [--seed N]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from lcfuse_core import ledger_commands, settings
from lcfuse_core.errors import LcfuseError, MissingDataError, ParameterError

BOOK = Path(__file__).resolve().parent.parent / "book"
PATH_PARAMETERS = ("data_root", "train_root")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 when a chapter failed, 2 when it was asked for something unknown."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except LcfuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lcfuse_core", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="execute a chapter with checked parameters")
    run.add_argument("chapter", help=", ".join(settings.CHAPTERS))
    run.add_argument("--profile", default="smoke", help=", ".join(settings.PROFILES))
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    run.add_argument("--out", type=Path, required=True, help="folder for the executed notebook and its ledger")
    run.add_argument("--book", type=Path, default=BOOK, help="folder of the chapters")
    run.set_defaults(command=run_chapter)
    ledger_commands.add_to(commands)
    sample = commands.add_parser("sample", help="make the synthetic sample world")
    sample.add_argument("--seed", type=int, default=0)
    sample.set_defaults(command=make_sample)
    return parser


def run_chapter(options: argparse.Namespace) -> int:
    """Execute a chapter through papermill into `--out`; every name and value is checked before anything runs."""
    parameters = parse_parameters(options.chapter, options.profile, options.given)
    notebook = options.book / f"{options.chapter}.ipynb"
    if not notebook.exists():
        do = "Run this from a checkout of the book, or name the folder of the chapters with --book."
        raise MissingDataError(notebook, found="no such file", expected="the chapter's notebook", do=do)
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out: Path = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LCFUSE_DATA", str(Path("_data").absolute()))
    os.environ.setdefault("LCFUSE_LEDGER", str(out / "ledger.jsonl"))
    done = out / f"{options.chapter}.ipynb"
    try:
        papermill.execute_notebook(
            str(notebook),
            str(done),
            parameters,
            kernel_name="python3",
            language="python",
            cwd=str(out),
            progress_bar=sys.stderr.isatty(),
        )
    except PapermillExecutionError as error:
        print(
            f"error: {options.chapter}, cell {error.exec_count}: {error.ename}: {error.evalue}",
            file=sys.stderr,
        )
        print(f"The notebook, up to there: {done}", file=sys.stderr)
        return 1
    print(f"{options.chapter}: {done}")
    return 0


def parse_parameters(chapter: str, profile: str, given: list[list[str]]) -> dict[str, Any]:
    """
    Parameters of a chapter from a command line: names known, values of the right type, paths made absolute.

    Raises ParameterError that lists what is known.
    """
    known = settings.names_of(chapter)
    settings.check(
        {name: None for name, _ in given if name not in known}, known=known, where=f"parameters of {chapter}"
    )
    values = {name: settings.from_text(name, text) for name, text in given}
    if values.setdefault("profile", profile) != profile:
        found = f"--profile {profile} and -p profile {values['profile']}"
        raise ParameterError("profile", found=found, expected="one of the two", do="Drop one.")
    settings.read_profile(profile)
    for name in PATH_PARAMETERS:
        if values.get(name):
            values[name] = str(Path(values[name]).absolute())
    return values


def make_sample(options: argparse.Namespace) -> int:
    """Make the sample world where chapters will find it, and say where that is."""
    from lcfuse_core import chapter

    print(chapter.Chapter("sample", {"seed": options.seed}).sample)
    return 0


if __name__ == "__main__":
    sys.exit(main())
