"""
The ledger: one line of JSON a run, written once and never changed.

Every number in the book that rests on training comes from such a line. A line says what was run (parameters,
seeds), on what (hashes, synthetic or real), with which labels, by which code on which machine, what it cost
and what it scored. Lines are only ever added. Any number of processes may do so at once: each takes the file's
lock, writes its whole line, and waits until it is on the disk. A process that is killed in the middle spoils no
line but its own, which `read` recognises: half of a JSON object is never one.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lcfuse_core import __version__, _runtime
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError
from lcfuse_core.scoring.scores import Scores

try:
    import fcntl
except ModuleNotFoundError:  # Windows: O_APPEND alone, so one writer at a time
    fcntl = None  # type: ignore[assignment]

SCHEMA = 2
"""Version of the line. Older ones are read too; a reader refuses a newer one."""

FIELDS = {
    "schema": "version of the line",
    "time": "when it was written, UTC",
    "kind": "what was done, such as the name of the chapter",
    "profile": "smoke, colab or full",
    "label_regime": "which labels were allowed",
    "synthetic": "whether the data were made by `world`",
    "data_kind": "one of DATA_KINDS; since 2",
    "data": "name of the data by role, such as train and evaluation; since 2",
    "seeds": "by purpose",
    "parameters": "all that was set",
    "scores": "overall, by class, and by region",
    "hashes": "SHA-256 of data (by role) and of the checkpoint",
    "cost": "wall_s, gpu_hours, peak_memory_mb (since 2), and what else was timed",
    "code": "version and commit; digest of the module and lock (since 2)",
    "machine": "versions, processor, GPU",
}

LABEL_REGIMES = ("coarse only", "coarse + fine validation", "fine")
"""Contest track 1, track 2, and the bound that neither may reach: trained on fine labels of other places."""

PROFILES = ("smoke", "colab", "full")
DATA_KINDS = ("synthetic", "semi-real", "unverified", "real")
"""Made by `world`; real images with simulated labels or a model's map as reference; files that `data fetch` has not
verified; the published data sets."""


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
    data: Mapping[str, str] | None = None,
    hashes: Mapping[str, str] | None = None,
    cost: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """
    A line for the ledger (see FIELDS), with what this machine and this code can say about themselves.

    kind : what was done, such as "evaluation"
    parameters, scores : mappings or dataclasses (a TrainPlan, `Scores`); scores may be None
    label_regime, profile, data_kind : one of LABEL_REGIMES, PROFILES, DATA_KINDS; data_kind follows from *synthetic*
        where it is not given
    seeds : by purpose, such as `{"world": 0, "training": 1}`
    synthetic : True when any of the data were made by `world`
    data : names of the data by role, such as `{"evaluation": "DFC2020 test"}`
    hashes, cost : such as of data and checkpoint; such as `{"train_s": 71.3}`. What is given beats what is measured

    Raises ParameterError on an unknown regime, profile or kind, or a value that JSON cannot hold.
    """
    data_kind = data_kind or ("synthetic" if synthetic else "real")
    _check_choice("label_regime", label_regime, LABEL_REGIMES)
    _check_choice("profile", profile, PROFILES)
    _check_choice("data_kind", data_kind, DATA_KINDS[:1] if synthetic else DATA_KINDS[1:])
    code = {"version": __version__, "commit": _runtime.commit()}
    entry = {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "profile": profile,
        "label_regime": label_regime,
        "synthetic": bool(synthetic),
        "data_kind": data_kind,
        "data": data or {},
        "seeds": seeds,
        "parameters": parameters,
        "scores": scores,
        "hashes": hashes or {},
        "cost": {**_runtime.cost_so_far(), **(cost or {})},
        "code": {**code, "digest": _runtime.code_digest(), "lock": _runtime.lock_digest()},
        "machine": _runtime.machine(),
    }
    plain = _plain(entry, "entry")
    assert isinstance(plain, dict)
    return plain


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ParameterError(name, found=repr(value), expected=", ".join(known), do="Choose one of them.")


def _plain(value: Any, where: str) -> Any:
    """The value as JSON has it; NaN, which JSON has not, becomes null. *where* names it in an error."""
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
    Add one line, whole or not at all; when this returns, it is on the disk.

    Any number of processes of one machine may append at once, and of several machines where the file system keeps
    locks (NFS does, on Linux). Raises LcfuseError when the disk is full; the lines before stay as they are.
    """
    path = Path(path)
    line = json.dumps(_plain(entry, "entry"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _write_locked(file, line)
        finally:
            os.close(file)  # gives the lock back, as the death of the process does
    except OSError as error:
        do = "Free space on the disk and record the run again; what was recorded before is safe."
        expected = f"to append {len(line)} bytes"
        raise LcfuseError(path, found=str(error.strerror), expected=expected, do=do) from error


def _write_locked(file: int, line: bytes) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
    size = os.fstat(file).st_size
    # A line that a killed process left open must not swallow this one.
    rest = (b"\n" if _is_torn(file, size) else b"") + line
    try:
        while rest:  # a system may take less than it is given
            written = os.write(file, rest)
            if not written:
                raise OSError(errno.EIO, f"{len(rest)} bytes that were not taken")
            rest = rest[written:]
        os.fsync(file)
    except OSError:
        if fcntl is not None and stat.S_ISREG(os.fstat(file).st_mode):  # nobody else writes: the lock is ours
            os.ftruncate(file, size)
        raise


def _is_torn(file: int, size: int) -> bool:
    if size == 0:
        return False
    with open(os.dup(file), "rb") as again:
        again.seek(size - 1)
        return again.read(1) != b"\n"


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """
    All lines as a table in the order of the file; nested names are joined by dots, as in `scores.aa`.

    A line that is no JSON (a crash while it was written) is left out, warned of, and named in
    `table.attrs["damaged"]`; `table.attrs["lines"]` has the line number of each row. Raises MissingDataError without
    a file, DataError on a line of a newer schema.
    """
    entries, damaged = read_entries(path)
    if damaged:
        warnings.warn(f"left out, not readable: {', '.join(damaged)}", stacklevel=2)
    table = pd.json_normalize(list(entries.values()))
    table.attrs["damaged"] = damaged
    table.attrs["lines"] = list(entries)
    return table


def read_entries(path: str | os.PathLike[str]) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """The lines by their number, from 1, and the names of damaged ones; see `read`."""
    path = Path(path)
    if not path.exists():
        raise MissingDataError(path, found="no such file", expected="a ledger", do="Run a chapter that records.")
    entries, damaged = {}, []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        entry = _parse(line)
        if entry is None:
            damaged.append(f"{path.name} line {number}")
        else:
            _check_schema(path, number, entry)
            entries[number] = entry
    return entries, damaged


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:  # bad JSON, or UTF-8 cut inside a letter
        return None
    return entry if isinstance(entry, dict) else None


def _check_schema(path: Path, number: int, entry: dict[str, Any]) -> None:
    if entry.get("schema", SCHEMA) > SCHEMA:
        raise DataError(
            f"{path} line {number}",
            found=f"schema {entry['schema']}",
            expected=f"at most {SCHEMA}",
            do="Update lcfuse_core: the line was written by a newer one.",
        )


def flatten(entry: dict[str, Any], before: str = "") -> dict[str, Any]:
    """
    Nested names joined by dots, as in the tables of `ledger.read`.

    >>> flatten({"a": {"b": 1, "c": [2]}, "d": {}})
    {'a.b': 1, 'a.c': [2]}
    """
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        flat |= flatten(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat
