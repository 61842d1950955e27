"""The identity of data: a digest, a name and a kind, on which trained networks and ledger lines depend."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.data import fetched
from lcfuse_core.data.packed import open_scene, packed_paths
from lcfuse_core.data.sample import world

PLACE_RECORD = "place.json"
"""File in the folder of a place, with its origin and the digest of its files."""


def data_digest(root: str | os.PathLike[str]) -> str:
    """
    Return the SHA-256 that identifies the data in a folder.

    Folders whose files differ in one byte have different digests. Two copies of the same files have the same one.

    Parameters
    ----------
    root : path
        A folder of patches or of packed scenes. The digests of its files come from the records of verified downloads,
        or are cached in the data folder, by path, size and modification time: only the first call reads everything.

    Returns
    -------
    str
        For a sample world that is complete and not younger than its record: the digest of all pixels in that record.
        For packed scenes: a digest of their descriptions, which hold a checksum of each tile. For all other data: a
        digest of the contents of all GeoTIFFs or, if there are none, of all files.
    """
    root = Path(root).absolute()
    if scenes := packed_paths(root):
        return _digest([open_scene(str(path)).digest for path in scenes])
    files = _files(root)
    if _in_world(root):
        record, made = world.read_world(root.parent), (root.parent / "world.json").stat().st_mtime_ns
        whole = record.get("files", {}).get(root.name) == len(files)
        if whole and all(os.stat(path).st_mtime_ns <= made for path in files.values()):
            return str(record["sha256"])
    cache = _runtime.data_folder() / "digests" / f"{_digest([str(root)])[:16]}.json"
    try:
        cached = json.loads(cache.read_text())
    except (OSError, ValueError):
        cached = {}
    recorded = fetched.recorded_hashes(root)

    def entry(name: str) -> list[Any]:
        facts = os.stat(files[name])
        version = [facts.st_size, facts.st_mtime_ns]
        for known in (cached.get(name), recorded.get(name)):
            if known and list(known[:2]) == version:
                return list(known)
        with open(files[name], "rb") as file:
            return [*version, hashlib.file_digest(file, "sha256").hexdigest()]

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(files, pool.map(entry, files), strict=True))
    if found != cached:
        _runtime.write_atomic(cache, json.dumps(found))
    return _digest([f"{name} {own[2]}" for name, own in found.items()])


def _files(root: Path) -> dict[str, str]:
    """Return the paths of the GeoTIFFs under a folder, or of all files if there are none, by relative path."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]
    chosen = [path for path in paths if path.endswith(".tif")] or paths
    names = {path[len(str(root)) + 1 :].replace(os.sep, "/"): path for path in chosen}
    return dict(sorted(names.items(), key=lambda pair: pair[0].split("/")))


def data_name(root: Path) -> str:
    """Return the name of the data in a folder: the sample world and its seed, or the folder's own name."""
    if not _in_world(root):
        return root.name
    seed = world.read_world(root.parent).get("plan", {}).get("seed", "of unknown seed")
    return f"sample world {seed}: {root.name}"


def data_kind(roots: Iterable[Path]) -> str:
    """
    Return the kind of a ledger line.

    "synthetic" if any folder is; "place" if all are places as `places.fetch_place` wrote them, with unchanged files:
    real images, real MODIS label, and the map of a model as reference; "real" if all files of all were verified.
    """
    roots = list(roots)
    if any(map(is_sample, roots)):
        return "synthetic"
    records = [_place_record(root) for root in roots]
    if all(record and record.get("digest") == data_digest(root) for record, root in zip(records, roots, strict=True)):
        return "place"
    marks = {fetched.provenance(root) for root in roots}
    if marks <= {fetched.VERIFIED}:
        return "real"
    return "adopted" if marks <= {fetched.VERIFIED, fetched.ADOPTED} else "unverified"


def is_sample(root: Path) -> bool:
    """Return whether a folder belongs to a synthetic sample world, or is a synthetic place."""
    return _in_world(root) or _place_record(root).get("synthetic") is True


def _in_world(root: Path) -> bool:
    return (root.parent / "world.json").exists()


def _place_record(root: Path) -> dict[str, Any]:
    """Return the record of a place, or an empty one if the folder is none."""
    try:
        record = json.loads((root / PLACE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
