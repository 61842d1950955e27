"""
The ledger: one line of JSON a run, written once and never changed.

Every number in the book that rests on training comes from such a line. A line says what was run (parameters,
seeds), on what (hashes, synthetic or real), with which labels, by which code on which machine, what it cost
and what it scored. Lines are only ever added: runs may write at the same time, and a crash can spoil no line
but its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lcfuse_core import __version__
from lcfuse_core.errors import DataError, LcfuseError, MissingDataError, ParameterError
from lcfuse_core.scores import Scores

SCHEMA = 1
"""Version of the line; a reader refuses a newer one."""

LABEL_REGIMES = ("coarse only", "coarse + fine validation", "fine")
"""Contest track 1, track 2, and the bound that neither may reach: trained on fine labels of other places."""

PROFILES = ("smoke", "colab", "full")


def new_entry(
    kind: str,
    parameters: Any,
    scores: Scores | Mapping[str, Any] | None,
    *,
    label_regime: str,
    profile: str,
    seeds: Mapping[str, int],
    synthetic: bool,
    hashes: Mapping[str, str] | None = None,
    cost: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """
    A line for the ledger, with what this machine and this code can say about themselves.

    kind : what was done, such as "evaluation"
    parameters, scores : mappings or dataclasses (a TrainPlan, `Scores`); scores may be None
    label_regime, profile : one of LABEL_REGIMES, of PROFILES
    seeds : by purpose, such as `{"world": 0, "training": 1}`
    synthetic : True when any of the data were made by `world`
    hashes, cost : such as of data and checkpoint; such as `{"train_s": 71.3}`

    Raises ParameterError on an unknown regime or profile, or a value that JSON cannot hold.
    """
    _check_choice("label_regime", label_regime, LABEL_REGIMES)
    _check_choice("profile", profile, PROFILES)
    entry = {
        "schema": SCHEMA,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": kind,
        "profile": profile,
        "label_regime": label_regime,
        "synthetic": bool(synthetic),
        "seeds": seeds,
        "parameters": parameters,
        "scores": scores,
        "hashes": hashes or {},
        "cost": cost or {},
        "code": {"version": __version__, "commit": commit()},
        "machine": machine(),
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


def commit() -> str | None:
    """
    The commit of the code that runs, with `+changes` where files differ from it; None where nobody knows.

    Asked of git in a checkout, and of pip where the package was installed from a git address.
    """
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:  # a checkout, but not ours
        return _installed_commit()
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no", ".")
    return f"{head}+changes" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None where there is no git or it says no."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _installed_commit() -> str | None:
    """The commit that pip noted (PEP 610) on installing from a git address."""
    try:
        noted = importlib.metadata.distribution("lcfuse-core").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    return str(found) if found else None


def machine() -> dict[str, Any]:
    """Versions and processors; no name or path by which a machine or person could be known."""
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": np.__version__,
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _gpu() -> str | None:
    """Name of the first GPU, when this process uses torch at all: importing it only to ask takes seconds."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def append(path: str | os.PathLike[str], entry: Mapping[str, Any]) -> None:
    """
    Add one line. It is written in one piece at the end of the file, so that several runs may append at once.

    Raises LcfuseError when the disk is full; the lines before stay as they are.
    """
    path = Path(path)
    line = json.dumps(_plain(entry, "entry"), ensure_ascii=False, allow_nan=False) + "\n"
    # A line that a crash left open must not swallow this one. (Where it was only another run that is just
    # writing, this leaves an empty line, which `read` passes over.)
    data = (b"\n" if _is_torn(path) else b"") + line.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise _not_recorded(path, str(error.strerror), len(data)) from error
    if written < len(data):
        raise _not_recorded(path, f"only {written} bytes written", len(data))


def _not_recorded(path: Path, found: str, size: int) -> LcfuseError:
    do = "Free space on the disk and record the run again; what was recorded before is safe."
    return LcfuseError(path, found=found, expected=f"to append {size} bytes", do=do)


def _is_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """
    All lines as a table in the order of the file; nested names are joined by dots, as in `scores.aa`.

    A line that is no JSON (a crash while it was written) is left out, warned of, and named in
    `table.attrs["damaged"]`. Raises MissingDataError without a file, DataError on a line of a newer schema.
    """
    path = Path(path)
    if not path.exists():
        raise MissingDataError(path, found="no such file", expected="a ledger", do="Run a chapter that records.")
    entries, damaged = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        entry = _parse(line)
        if entry is None:
            damaged.append(f"{path.name} line {number}")
        else:
            _check_schema(path, number, entry)
            entries.append(entry)
    if damaged:
        warnings.warn(f"left out, not readable: {', '.join(damaged)}", stacklevel=2)
    table = pd.json_normalize(entries)
    table.attrs["damaged"] = damaged
    return table


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
