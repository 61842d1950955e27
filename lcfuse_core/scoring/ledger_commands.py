"""
Look into a ledger from a shell.

    python -m lcfuse_core ledger list [--file F]
    python -m lcfuse_core ledger show LINE [--file F]
    python -m lcfuse_core ledger diff LINE LINE [--file F] [--all]

LINE is a number as `list` prints it; -1 is the last one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from lcfuse_core.errors import ParameterError
from lcfuse_core.scoring import ledger

COLUMNS = {
    "kind": "chapter",
    "parameters.method": "method",
    "label_regime": "labels",
    "synthetic": "synthetic",
    "seeds.world": "seed",
    "scores.aa": "AA",
    "scores.miou_8": "mIoU-8",
    "scores.oa": "OA",
}
PASSING = ("time", "cost.", "machine.")
"""Fields that differ between any two runs: `diff` leaves them out unless asked for all."""


def add_to(commands: Any) -> None:
    """Add the command `ledger` to the sub-commands of a parser."""
    parser = commands.add_parser(
        "ledger", help="look into a ledger", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_subparsers(required=True, metavar="{list,show,diff}")
    show_all = what.add_parser("list", help="the scores of all lines as a table, newest last")
    show_all.set_defaults(command=list_lines)
    one = what.add_parser("show", help="all that a line says")
    one.add_argument("line", type=int)
    one.set_defaults(command=show_line)
    two = what.add_parser("diff", help="in what two lines differ")
    two.add_argument("lines", type=int, nargs=2, metavar="LINE")
    two.add_argument("--all", action="store_true", help="time, cost and machine too")
    two.set_defaults(command=diff_lines)
    for one_of_them in (show_all, one, two):
        one_of_them.add_argument("--file", type=Path, default=Path("_data/ledger.jsonl"))


def list_lines(options: argparse.Namespace) -> int:
    """Print the scores of a ledger as a table, newest last."""
    table = ledger.read(options.file)
    shown = table.reindex(columns=list(COLUMNS)).rename(columns=COLUMNS)
    shown.insert(0, "line", table.attrs["lines"])
    with pd.option_context("display.width", 160, "display.max_rows", None, "display.precision", 3):
        print(shown.to_string(index=False))
    return 0


def show_line(options: argparse.Namespace) -> int:
    """Print one line, indented."""
    print(json.dumps(_entry(options.file, options.line), indent=1, ensure_ascii=False))
    return 0


def diff_lines(options: argparse.Namespace) -> int:
    """Print each field in which two lines differ, with both values."""
    one, other = (ledger.flatten(_entry(options.file, number)) for number in options.lines)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if not options.all:
        names = [name for name in names if not name.startswith(PASSING)]
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:{width}}  {_say(one, name)} -> {_say(other, name)}")
    if not names:
        print("no difference" + ("" if options.all else " but time, cost and machine, if any (--all shows them)"))
    return 0


def _say(flat: dict[str, Any], name: str) -> str:
    return json.dumps(flat[name], ensure_ascii=False) if name in flat else "(nothing)"


def _entry(path: Path, number: int) -> dict[str, Any]:
    """The line of that number; negative ones count from the end."""
    entries, _ = ledger.read_entries(path)
    numbers = list(entries)
    if number < 0 and -number <= len(numbers):
        number = numbers[number]
    if number not in entries:
        expected = f"one of {', '.join(map(str, numbers))}" if len(numbers) < 20 else f"1 to {numbers[-1]}"
        raise ParameterError(f"{path}", found=f"no line {number}", expected=expected, do="See `ledger list`.")
    return entries[number]
