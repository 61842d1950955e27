"""
The index of a large folder, made once: SEN12MS has 542 thousand files, and listing them takes its time.

The index is kept as a parquet file, together with the folders that were listed and the time at which each was last
changed. A file that is added, removed or renamed changes the time of its folder, so that to look at some 800 folders
tells whether the index still holds. What is inside a file is not looked at, and does not concern the index.

When in doubt the folder is listed again: another format of this file, another `world.json`, a folder that changed
within two seconds of the listing (some file systems count time in such steps), an index that cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from lcfuse_core.data import scenes
from lcfuse_core.data.files import KINDS

FORMAT = 1
"""Version of the kept index; raised when `scenes.index` finds other rows in the same folder."""

CLOCK_STEP_NS = 2_000_000_000
"""Longest step in which a file system counts the time of a change (FAT)."""

_WORDS = ("layout", "split", "season", "scene", "scene_id")


def index(root: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """
    What `scenes.index` gives for *root*; from the kept index if there is one and nothing has changed since.

    cache : folder of kept indexes; by default `indexes` in the folder that LCFUSE_DATA names, or in `_data`

    Raises MissingDataError as `scenes.index` does. An index that cannot be kept (a full disk) is a warning.
    """
    root = Path(root)
    path = kept_at(root, cache)
    table = _read(path, root) if path.exists() else None
    return _make(path, root) if table is None else table


def kept_at(root: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> Path:
    """The file in which the index of *root* is kept, whether it is there or not."""
    folder = Path(cache) if cache is not None else Path(os.environ.get("LCFUSE_DATA") or "_data") / "indexes"
    digest = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()
    return folder / f"{digest[:16]}.parquet"


def _make(path: Path, root: Path) -> pd.DataFrame:
    """List the folder, and keep the index if one may rely on it later."""
    visited: dict[str, int] = {}
    began = time.time_ns()
    world = _world_file(root)
    table = scenes.index(root, visited=visited)
    if max(visited.values()) < began - CLOCK_STEP_NS:
        try:
            _write(path, root, table, visited, world)
        except OSError as error:
            warnings.warn(f"The index of {root} is not kept in {path}: {error}.", stacklevel=3)
    return table


def _world_file(root: Path) -> list[list[int] | None]:
    """Time and size of the files that may tell the regions of the patches."""
    places = (root / "world.json", root.parent / "world.json")
    stats = [place.stat() if place.is_file() else None for place in places]
    return [stat and [stat.st_mtime_ns, stat.st_size] for stat in stats]


def _write(path: Path, root: Path, table: pd.DataFrame, visited: dict[str, int], world: Any) -> None:
    """All at once: whoever reads at the same time sees the old index or the new one."""
    start = len(os.path.join(root, ""))
    columns: dict[str, Any] = {name: pa.array(table[name]).dictionary_encode() for name in _WORDS}
    columns["patch"] = pa.array(table["patch"], pa.int32())
    for kind in KINDS:
        columns[kind] = pa.array([None if file is None else file[start:] for file in table[kind]], pa.string())
    folders = [[folder[start:], changed] for folder, changed in visited.items()]
    odd = [[file[start:], reason] for file, reason in table.attrs["odd"]]
    about = {"format": FORMAT, "root": str(root), "folders": folders, "world": world, "odd": odd}
    kept = pa.table(columns).replace_schema_metadata({"lcfuse": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        os.close(handle)
        pq.write_table(kept, part, compression="zstd")
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def _read(path: Path, root: Path) -> pd.DataFrame | None:
    """The kept index, or None when it may not be relied on."""
    try:
        kept = pq.read_table(path)
        about = json.loads(kept.schema.metadata[b"lcfuse"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    if about["format"] != FORMAT or about["world"] != _world_file(root) or not _unchanged(root, about["folders"]):
        return None
    columns: dict[str, Any] = {name: kept[name].to_pandas().astype(object).to_numpy() for name in _WORDS[:4]}
    columns["patch"] = kept["patch"].to_numpy()
    start = os.path.join(root, "")
    for kind in KINDS:
        columns[kind] = _objects([None if file is None else start + file for file in kept[kind].to_pylist()])
    columns["scene_id"] = kept["scene_id"].to_pandas().astype(object).to_numpy()
    table = pd.DataFrame(columns, dtype=object).astype({"patch": "int64"})  # as `scenes.index` has it
    table.attrs["odd"] = tuple(
        (start + file, reason.replace(about["root"], str(root))) for file, reason in about["odd"]
    )
    return table


def _objects(values: list[str | None]) -> Any:
    """A column of Python strings and None, as `scenes.index` has them (pandas would make None a NaN)."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _unchanged(root: Path, folders: Iterable[tuple[str, int]]) -> bool:
    """Whether each folder is there and was last changed when it was listed."""
    try:
        return all(os.stat(os.path.join(root, folder)).st_mtime_ns == changed for folder, changed in folders)
    except OSError:
        return False


def inspect(table: pd.DataFrame, *, workers: int = 1, progress: bool = False) -> scenes.Report:
    """
    Read every patch of an index, and keep nothing but the report: which are damaged, which were mended.

    A patch of SEN12MS takes some 15 ms on one core, all of it an hour or less.
    """
    parts = [table.iloc[start : start + 64] for start in range(0, len(table), 64)]
    report = scenes.Report()
    with ProcessPoolExecutor(workers) if workers > 1 else _ThisProcess() as pool:
        for part in tqdm(pool.map(_inspect, parts), total=len(parts), unit="64 patches", disable=not progress):
            report.n_read += part.n_read
            report.repaired += part.repaired
            report.skipped += part.skipped
    return report


class _ThisProcess:
    """A pool of no further process."""

    map = staticmethod(map)

    def __enter__(self) -> _ThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was started."""


def _inspect(part: pd.DataFrame) -> scenes.Report:
    report = scenes.Report()
    for _ in scenes.iter_patches(part, report):
        pass
    return report
