"""
Record results in a ledger, one line of JSON per run that is written once and never changed, and read them again.

Every number in the book that depends on training comes from such a line. It holds what was run (`kind`, `parameters`,
`seeds`, `profile`), on which data (`synthetic`, `data_kind`, `split`, names in `data`, SHA-256 in `hashes`), with which
labels (`label_regime`) and images (`regime`), by which `code` on which `machine`, its `cost` (wall_s, gpu_hours,
peak_memory_mb and further times), and its `scores`: overall, by class and by region.

Any number of processes may append at once: each locks the file, writes its whole line, and waits until it is on the
disk. A process that is killed while writing damages only its own line, and `read` recognises such a line: half of a
JSON object is never a JSON object.

    python -m lcfuse_core ledger list [--file F]
    python -m lcfuse_core ledger show LINE [--file F]
    python -m lcfuse_core ledger diff LINE LINE [--file F] [--all]

LINE is a number as `list` prints it; -1 is the last one. F is LCFUSE_LEDGER by default, or `ledger.jsonl` in the data
folder, LCFUSE_DATA.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from lcfuse_core import __version__, _runtime
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError
from lcfuse_core.scoring.scores import N_CODES, Scores

_SCHEMA = 2
"""Version of the line. Older lines are read too; newer ones are refused."""

LABEL_REGIMES = ("coarse only", "coarse + fine validation", "fine")
"""Contest track 1, track 2, and an upper bound for both: trained on fine labels of other regions."""

_REGIMES = ("inductive", "transductive")
"""Whether nothing was learned from the evaluated images, or images and coarse labels of their regions were used."""

DATA_KINDS = ("synthetic", "semi-real", "unverified", "adopted", "place", "real")
"""From the sample world; real images with simulated labels; files that `data fetch` has not verified, or recognised by
their names; places of `place`, by the shipped services: real images, real MODIS label, the map of a model as
reference; published data sets."""

_LONGEST_LINE = 1 << 26  # bytes; a line of 100 regions has less than 1 MB
_MAPPINGS = ("data", "seeds", "parameters", "scores", "hashes", "cost", "code", "machine")


def default_path() -> Path:
    """Return the ledger that commands and chapters use: LCFUSE_LEDGER, or `ledger.jsonl` in the data folder."""
    return Path(os.environ.get("LCFUSE_LEDGER") or _runtime.data_folder() / "ledger.jsonl")


def new_entry(
    kind: str,
    parameters: Any,
    scores: Scores | Mapping[str, Any] | None,
    *,
    label_regime: str,
    profile: str,
    seeds: Mapping[str, int],
    synthetic: bool,
    data_kind: str | None = None,
    split: str = "",
    regime: str = "inductive",
    data: Mapping[str, str] | None = None,
    hashes: Mapping[str, str] | None = None,
    cost: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """
    Make a line for the ledger, with the facts about this code and this machine.

    Parameters
    ----------
    kind : str
        What was done, such as "evaluation", the name of a chapter.
    parameters, scores : mapping or dataclass
        Such as a `TrainPlan` and `Scores`.
    label_regime, profile, data_kind, regime : str
        One of `LABEL_REGIMES`, of the profiles, of `DATA_KINDS` ("synthetic" or "real" by default), of `_REGIMES`.
    split : str
        Of the evaluated patches, such as "test" or "validation"; "" if unknown, which no verdict rests on.
    seeds, data, hashes, cost : mapping
        By purpose or role; given costs replace measured ones of the same name.
    synthetic : bool
        Whether any of the data come from the sample world.

    Raises
    ------
    ParameterError
        If the regime, profile or kind of data is unknown, or JSON cannot hold a value; NaN becomes None.
    """
    data_kind = data_kind or ("synthetic" if synthetic else "real")
    for name, value, known in (
        ("label_regime", label_regime, LABEL_REGIMES),
        ("regime", regime, _REGIMES),
        ("profile", profile, _runtime.PROFILES),
        ("data_kind", data_kind, DATA_KINDS[:1] if synthetic else DATA_KINDS[1:]),
    ):
        if value not in known:
            raise ParameterError(name, found=repr(value), expected=", ".join(known), do="Choose one of them.")
    lock, digest = _runtime.lock_digest(), _runtime.code_digest()
    entry = {
        "schema": _SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "profile": profile,
        "label_regime": label_regime,
        "regime": regime,
        "synthetic": bool(synthetic),
        "data_kind": data_kind,
        "split": split,
        "data": data or {},
        "seeds": seeds,
        "parameters": parameters,
        "scores": scores,
        "hashes": hashes or {},
        "cost": {**_runtime.cost_so_far(), **(cost or {})},
        "code": {"version": __version__, "commit": _runtime.commit(), "digest": digest, "lock": lock},
        "machine": _runtime.machine(),
    }
    plain: dict[str, Any] = _plain(entry, "entry")
    return plain


def _plain(value: Any, where: str) -> Any:
    """Return the value as JSON has it, with null for NaN; *where* names it in an error."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist(), where)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    found = f"a value of type {type(value).__name__}"
    raise ParameterError(where, found=found, expected="numbers, text, lists or mappings", do="Convert it first.")


def append(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """
    Add one line, whole or not at all; it is on the disk when this returns.

    Processes of several machines may append where the file system keeps locks (NFS does, on Linux). Raises LcfuseError
    if the disk is full; the lines before stay as they are.
    """
    path, line = Path(path), json.dumps(_plain(entry, "entry"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        with _runtime.lock(path) as locked, path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            # A line that a killed process left open must not swallow this one.
            is_torn = size > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
            rest = b"\n" * is_torn + line
            try:
                while rest:  # a system may take less than it is given
                    written = os.write(file.fileno(), rest)
                    if not written:
                        raise OSError(errno.EIO, f"{len(rest)} bytes that were not taken")
                    rest = rest[written:]
                os.fsync(file.fileno())
            except OSError:
                if locked and path.is_file():  # no other process writes
                    file.truncate(size)
                raise
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        do = "Free space on the disk" if is_full else "Choose a file that can be written (LCFUSE_LEDGER)"
        do += " and record the run again; what was recorded before is safe."
        expected = f"to append {len(line)} bytes"
        raise LcfuseError(path, found=str(error.strerror), expected=expected, do=do) from error


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """
    Read all lines as a table in the order of the file; nested names are joined by dots, as in `scores.aa`.

    Errors and warnings are those of `read_entries`.
    """
    return pd.json_normalize(list(read_entries(path).values()))


def read_entries(path: str | os.PathLike[str]) -> dict[int, dict[str, Any]]:
    """
    Read the lines by their number, from 1.

    A line that is no line of a ledger (its process was killed, or it has another form) is left out, with a warning that
    names it and the reason. Raises MissingDataError without a file, DataError if it cannot be read or if a newer
    version of this package wrote a line.
    """
    path, entries, damaged = Path(path), dict[int, dict[str, Any]](), []
    if not path.exists():
        raise MissingDataError(path, found="no such file", expected="a ledger", do="Run a chapter that records.")
    try:
        if not path.is_file():  # a device or pipe may be endless
            raise OSError(errno.EINVAL, "Is a directory" if path.is_dir() else "a device or pipe")
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                entry = _parse(line)
                if isinstance(entry, dict):
                    entries[number] = entry
                elif entry:
                    damaged.append(f"{path.name} line {number} ({entry})")
    except OSError as error:
        found, do = str(error.strerror), "Give a file that `lcfuse_core compare` or a chapter wrote."
        raise DataError(path, found=found, expected="a readable ledger", do=do) from None
    if damaged:
        warnings.warn(f"left out, not readable: {', '.join(damaged)}", stacklevel=3)
    for number, entry in entries.items():
        if (schema := entry.get("schema", _SCHEMA)) > _SCHEMA:
            do = "Update lcfuse_core: a newer version wrote the line."
            raise DataError(f"{path} line {number}", found=f"schema {schema}", expected=f"at most {_SCHEMA}", do=do)
    return entries


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, of which one that is too long for a ledger is cut."""
    while line := file.readline(_LONGEST_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE)
        yield line


def _parse(line: bytes) -> dict[str, Any] | str:
    """Return a line of a ledger, or else why it is none; "" if it is empty."""
    text = line.strip(b"\0 \t\r\n")  # a crash of the machine may leave zeros before a line
    try:
        entry = json.loads(text, object_pairs_hook=_unique) if text else ""
        if not isinstance(entry, dict):
            return "no JSON object" if text else ""
        faults = filter(None, (_fault(name, value) for name, value in flatten(entry).items()))
        return next(faults, entry)
    except KeyError as error:
        return f"{error} twice"
    except UnicodeDecodeError:
        return "not UTF-8"
    except RecursionError:
        return "nested too deeply"
    except ValueError:
        return "no JSON object"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def _fault(name: str, value: Any) -> str:
    """Return why a value (of a name joined by dots) cannot stand in a ledger; "" if it can."""
    head, _, rest = name.partition(".")
    fits = bool(rest) or head not in _MAPPINGS or value is None
    if name == "schema" or (rest and head == "seeds"):
        fits = _is_number(value, int)
    elif rest and head == "scores":
        sizes = [len(row) if isinstance(row, list) else 0 for row in value] if isinstance(value, list) else []
        is_matrix = sizes == [N_CODES] * N_CODES
        are_counts = is_matrix and all(_is_number(count) and count >= 0 for row in value for count in row)
        fits = value is None or _is_number(value) or ("counts." in rest and are_counts)
    return "" if fits else f"{name}: {str(value)[:20]!r}"


def _is_number(value: Any, kinds: Any = int | float) -> bool:
    """Return whether a value is a number, neither NaN nor infinite nor too large for one of 64 bits."""
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 2**63


def flatten(entry: dict[str, Any], before: str = "") -> dict[str, Any]:
    """
    Join nested names by dots, as in the tables of `read`.

    >>> flatten({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2]}
    """
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        flat |= flatten(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def by_seed(lines: pd.DataFrame, column: str) -> pd.DataFrame:
    """
    Arrange one column of a ledger: a row per method, a column per world.

    Of two lines of a run, the newer counts; numbers of several trainings on a world are averaged.
    """
    method, world, training = "parameters.method", "seeds.world", "seeds.training"
    check_fields(lines, method, world, column)
    runs = [name for name in (method, world, training) if name in lines]
    own = lines.drop_duplicates(runs, keep="last").groupby([method, world])[column]
    return (own.mean() if pd.api.types.is_numeric_dtype(lines[column]) else own.last()).unstack()


def check_fields(lines: pd.DataFrame, *names: str) -> None:
    """Raise DataError unless the table of a ledger has these columns."""
    missing = [name for name in names if name not in lines]
    if missing:
        do = "Give a ledger of methods, as `lcfuse_core compare` or a chapter writes it."
        raise DataError("ledger", found=f"lines without {', '.join(missing)}", expected="these fields", do=do)


def add_parser(commands: Any) -> None:
    """Add the command `ledger` to the sub-commands of a parser."""
    usage = (__doc__ or "").partition("JSON object.\n\n")[2]
    parser = commands.add_parser(
        "ledger", help="look into a ledger", description=usage, formatter_class=argparse.RawTextHelpFormatter
    )
    actions = parser.add_subparsers(required=True, metavar="{list,show,diff}")
    for name, run, help_text, n_lines in (
        ("list", _list, "the scores of all lines as a table, newest last", 0),
        ("show", _show, "one line in full", 1),
        ("diff", _diff, "the fields in which two lines differ", 2),
    ):
        action = actions.add_parser(name, help=help_text)
        if n_lines:
            action.add_argument("lines", type=int, nargs=n_lines, metavar="LINE")
        if name == "diff":
            action.add_argument("--all", action="store_true", help="time, cost and machine too")
        action.add_argument("--file", type=Path, default=default_path())
        action.set_defaults(command=run)


def _list(options: argparse.Namespace) -> int:
    entries = read_entries(options.file)
    titles = {
        "kind": "chapter", "parameters.method": "method", "label_regime": "labels", "regime": "regime",
        "data_kind": "data", "split": "split", "seeds.world": "seed", "scores.aa": "AA", "scores.miou_8": "mIoU-8",
    }  # fmt: skip
    shown = pd.json_normalize(list(entries.values())).reindex(columns=list(titles)).rename(columns=titles)
    shown.insert(0, "line", list(entries))
    with pd.option_context("display.width", 160, "display.max_rows", None, "display.precision", 3):
        print(shown.to_string(index=False))
    return 0


def _show(options: argparse.Namespace) -> int:
    print(json.dumps(_entry(options.file, options.lines[0]), indent=1, ensure_ascii=False))
    return 0


def _diff(options: argparse.Namespace) -> int:
    one, other = (flatten(_entry(options.file, number)) for number in options.lines)
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if not options.all:
        names = [name for name in names if not name.startswith(("time", "cost.", "machine."))]
    width = max(map(len, names), default=0)
    for name in names:
        values = [json.dumps(flat[name], ensure_ascii=False) if name in flat else "(missing)" for flat in (one, other)]
        print(f"{name:{width}}  {' -> '.join(values)}")
    if not names:
        print("no difference" + ("" if options.all else " but time, cost and machine, if any (--all shows them)"))
    return 0


def _entry(path: Path, number: int) -> dict[str, Any]:
    """Return the line of that number; negative ones count from the end."""
    entries = read_entries(path)
    numbers = list(entries)
    if number < 0 and -number <= len(numbers):
        number = numbers[number]
    if number not in entries:
        expected = f"one of {', '.join(map(str, numbers))}" if len(numbers) < 20 else f"1 to {numbers[-1]}"
        raise ParameterError(f"{path}", found=f"no line {number}", expected=expected, do="See `ledger list`.")
    return entries[number]
