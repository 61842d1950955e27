"""
The command line.

    python -m lcfuse_core run CHAPTER [--profile smoke] [-p NAME VALUE] ... --out DIR
    python -m lcfuse_core run CHAPTER -p seed 0..4 -p network fcn,unet --out DIR [--jobs 2 | --cluster ADDRESS]
    python -m lcfuse_core ledger {list,show,diff} [--file F]
    python -m lcfuse_core train DATA --out RUN [-p NAME VALUE] ...
    python -m lcfuse_core evaluate --checkpoint RUN --train-root DIR [--data DIR] [--ledger FILE]
    python -m lcfuse_core compare [--only NAME ...] [--worlds N ...] [--seeds N ...] --out FILE
    python -m lcfuse_core sample [--seed N]
    python -m lcfuse_core data {list,fetch,verify,status} [--profile P]
    python -m lcfuse_core map --s2 FILE [--s1 FILE] [--coarse FILE] [--model CHECKPOINT] --out DIR
    python -m lcfuse_core place --lon LON --lat LAT [--map] --out DIR
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.book import reruns, settings
from lcfuse_core.data import commands as data_commands
from lcfuse_core.errors import LcfuseError, ParameterError
from lcfuse_core.mapping import commands as map_commands
from lcfuse_core.methods import commands as method_commands
from lcfuse_core.scoring import ledger

_MAY_BE_EMPTY = ("--train-root", "--data-root", "--data", "--reference")
"""Options with a meaning of the empty text: the sample, or no reference. A parameter (-p) may be empty, too."""

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def main(arguments: list[str] | None = None) -> int:
    """
    Run one command and return its exit code.

    0 on success, 1 if a run failed, 2 on a wrong name, value or file, 130 after Ctrl-C (129 and 143 after SIGHUP and
    SIGTERM), 70 (EX_SOFTWARE) on any other error. Errors are printed in one line.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal of another encoding shows \u0142 where it lacks a letter
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _refuse_unreadable([*words, os.getcwd(), str(_runtime.data_folder())])
        _refuse_empty(words)
        options = _parser().parse_args(words)
        _runtime.check_output(getattr(options, "out", None) or "")
        code: int = options.command(options)
        sys.stdout.flush()
    except SystemExit:  # of argparse: the help, or what is wrong with the words
        if _write(sys.stdout) and _write(sys.stderr):
            raise
        return 2
    except LcfuseError as error:
        return _print_error(str(error))
    except BrokenPipeError:  # such as `| head`: nobody reads on, also not what is flushed at the end
        _write(sys.stdout)
        return 1
    except OSError as error:  # such as a folder that cannot be written
        where = error.filename or ("file system" if _write(sys.stdout) else "output")
        found = error.strerror or str(error)
        return _print_error(f"{where}: found '{found}', expected a path that can be used. Check it.")
    except MemoryError as error:
        found = f"too little ({error})" if str(error) else "too little"
        return _print_error(f"memory: found {found}, expected enough. Use smaller windows, crops, batches or grids.")
    except KeyboardInterrupt as error:
        _write(sys.stderr, "stopped\n")
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    except Exception as error:
        package = (isinstance(error, ModuleNotFoundError) and error.name) or ""
        if extra := _extra_with(package):
            do = f"Install it: pip install 'lcfuse-core[{extra}]'."
            return _print_error(f"{words[0]}: found no package {package}, expected it installed. {do}")
        if os.environ.get("LCFUSE_TRACEBACK"):
            raise
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        do = "Run it again with LCFUSE_TRACEBACK=1 and report what it prints."
        return _print_error(f"{words[0]}: found an unexpected error ({found}), expected a result. {do}", 70)
    return code


def _print_error(text: str, code: int = 2) -> int:
    _write(sys.stdout)
    _write(sys.stderr, f"error: {text}\n")
    return code


def _write(stream: Any, text: str = "") -> bool:
    """Write a text and all before it; False, and from then on nowhere, if the disk is full or nobody reads."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def _refuse_empty(words: list[str]) -> None:
    """Raise ParameterError on an empty argument, which as a path is the current folder, where it has no meaning."""
    # Each word with the two before it.
    for before, last, word in zip(["", "", *words], ["arguments", *words], words, strict=False):
        may_be_empty = last in _MAY_BE_EMPTY or before == "-p"
        if not may_be_empty and not (word.partition("=")[2] if re.match("--[a-z0-9-]+=", word) else word).strip():
            where = word.strip() or last
            do = "Give it, or leave the option out: perhaps a variable of the shell is not set."
            raise ParameterError(where, found="an empty text", expected="a name, number or path", do=do)


def _refuse_unreadable(texts: list[str]) -> None:
    """Raise ParameterError on bytes that are not text: notebooks, ledgers and records could not hold such a path."""
    for text in texts:
        if re.search("[\0\ud800-\udfff]", text):
            found, do = f"{text!r}, which is not UTF-8", "Rename the file or folder."
            raise ParameterError("path", found=found, expected="a name in UTF-8", do=do)


def _extra_with(package: str) -> str:
    """Return the extra of this package that installs another package; empty if there is none."""
    try:
        requirements = importlib.metadata.requires("lcfuse-core") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    found = (re.match(r"([\w.-]+).*extra == ['\"](\w+)", text) for text in requirements)
    return next((match[2] for match in found if match and match[1].replace("-", "_") == package), "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lcfuse_core", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="execute a chapter with checked parameters")
    run.add_argument("chapter", help=", ".join(settings.CHAPTERS))
    run.add_argument("--profile", default="smoke", help=", ".join(_runtime.PROFILES))
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), dest="given")
    run.add_argument("--out", type=Path, required=True, help="folder for the executed notebook and its ledger")
    run.add_argument("--book", type=Path, default=reruns.BOOK, help="folder of the chapters")
    run.add_argument("--jobs", type=_jobs, default=1, help="runs of a grid at a time, on this machine")
    run.add_argument("--cluster", default="", metavar="ADDRESS", help="of a Dask scheduler, to run a grid there")
    run.set_defaults(command=_run_chapter)
    ledger.add_parser(commands)
    sample = commands.add_parser("sample", help="make the synthetic sample world")
    sample.add_argument("--seed", type=int, default=0)
    sample.set_defaults(command=_make_sample)
    for room in (data_commands, map_commands, method_commands):
        room.add_parser(commands)
    return parser


def _jobs(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} runs at a time; 1 or more are needed")
    return number


def _run_chapter(options: argparse.Namespace) -> int:
    """Execute a chapter into `--out`, or a grid of them; every name and value is checked before anything runs."""
    runs = reruns.grid(options.chapter, options.given, profile=options.profile, out=options.out, book=options.book)
    if len(runs) > 1:
        outcomes = reruns.execute_all(runs, jobs=options.jobs, cluster=options.cluster)
        print(reruns.report(outcomes))
        return int(any(outcome.state == "failed" for outcome in outcomes))
    outcome = reruns.execute(runs[0])
    if outcome.state == "failed":
        print(f"error: {outcome.message}", file=sys.stderr)
        print(f"The notebook, up to there: {outcome.run.notebook}", file=sys.stderr)
        return 1
    print(f"{options.chapter}: {outcome.run.notebook}")
    return 0


def _make_sample(options: argparse.Namespace) -> int:
    """Make the sample world in the data folder and print its path."""
    from lcfuse_core.sample import world

    print(world.sample_folder(options.seed))
    return 0


def _stop(number: int, _: Any) -> None:
    """Stop on a signal with an orderly end, and on the second one at once: unfinished files have temporary names."""
    for each in _SIGNALS:
        signal.signal(each, lambda number, _: os._exit(128 + number))
    raise KeyboardInterrupt(number)


def _open_streams() -> None:
    """Open what the shell has closed (`>&-`): else the next file that is opened gets what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    sys.stdin, sys.stdout, sys.stderr = (
        stream or os.fdopen(os.open(os.devnull, os.O_RDWR), mode)
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w"))
    )


if __name__ == "__main__":
    _open_streams()
    for each in _SIGNALS:
        if signal.getsignal(each) != signal.SIG_IGN:  # as `nohup` does
            signal.signal(each, _stop)
    sys.exit(main())
