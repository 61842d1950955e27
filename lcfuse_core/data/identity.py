"""The identity of data: a digest, a name and a kind, on which trained networks and ledger lines depend."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from lcfuse_core import _runtime
from lcfuse_core.data import fetched
from lcfuse_core.data.archives import sha256_of
from lcfuse_core.data.fetched import files_under, version_of
from lcfuse_core.data.packed import open_scene, packed_paths
from lcfuse_core.data.sample import world
from lcfuse_core.errors import MissingDataError

PLACE_RECORD = "place.json"
"""File in the folder of a place, with its origin and the digest of its files."""

SHIPPED_SERVICES = "shipped"
"""In the record of a place that was read from the addresses of the shipped file of services."""


def data_digest(root: str | os.PathLike[str]) -> str:
    """
    Return the SHA-256 that identifies the data in a folder of patches or of packed scenes.

    Folders whose files differ in one byte have different digests; two copies of the same files have the same one. It is
    for a sample world that is complete and not younger than its record: the digest of all pixels in that record; for
    packed scenes: a digest of their descriptions, which hold a checksum of each tile; for all other data: a digest of
    the contents of all files that `fetched.files_under` lists. The hashes of these come from the records of verified
    downloads, or are cached in the data folder, by path, size and modification time: only the first call reads
    everything.
    """
    root = Path(root).absolute()
    if scenes := packed_paths(root):
        return _digest(open_scene(str(path)).digest for path in scenes)
    if _in_world(root):
        record, made = world.read_world(root.parent), (root.parent / "world.json").stat().st_mtime_ns
        times = [os.stat(root / name).st_mtime_ns for name in files_under(root, _refuse)]
        if record.get("files", {}).get(root.name) == len(times) and max(times, default=0) <= made:
            return str(record["sha256"])
    return _digest(f"{name} {sha256}" for name, sha256 in _hashes(root))


def _hashes(root: Path) -> Iterator[tuple[str, str]]:
    """Yield relative path and SHA-256 of the files under a folder; only those that are new or changed are read."""
    cache, names = _runtime.data_folder() / "digests" / f"{_digest([str(root)])[:16]}.jsonl", files_under(root, _refuse)
    known = _read_cache(cache)
    if any(known.get(name, ())[:2] != version_of(root / name) for name in names):
        sources, linked = (known, fetched.recorded_hashes(root)), dict[tuple[int, int], str]()

        def entry(name: str) -> tuple[int, int, str]:
            facts = os.stat(root / name)
            version, file = (facts.st_size, facts.st_mtime_ns), (facts.st_dev, facts.st_ino)
            for source in sources:
                if source.get(name, ())[:2] == version:
                    return source[name]
            linked[file] = linked.get(file) or sha256_of(root / name)  # links to one file are read once
            return *version, linked[file]

        with ThreadPool(4) as pool:
            known = dict(zip(names, pool.imap(entry, names, chunksize=64), strict=True))
        with _runtime.atomic_path(cache) as part, part.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps([name, *known[name]])}\n" for name in names)
    return ((name, known[name][2]) for name in names)


def _read_cache(cache: Path) -> dict[str, tuple[int, int, str]]:
    """Return size, modification time and SHA-256 by relative path, from the lines up to the first that is damaged."""
    known = {}
    with suppress(OSError, ValueError, TypeError), cache.open(encoding="utf-8") as file:
        for name, size, mtime_ns, sha256 in map(json.loads, file):
            known[name] = size, mtime_ns, sha256
    return known


def _refuse(error: OSError) -> None:
    found = f"a folder that cannot be listed ({error.strerror})"
    do = "Check the path, its permissions and the disk."
    raise MissingDataError(error.filename, found=found, expected="a data folder", do=do) from None


def data_name(root: Path) -> str:
    """Return the name of the data in a folder: the sample world and its seed, or the folder's own name."""
    if not _in_world(root):
        return root.name
    seed = world.read_world(root.parent).get("plan", {}).get("seed", "of unknown seed")
    return f"sample world {seed}: {root.name}"


def data_kind(roots: Iterable[Path]) -> str:
    """
    Return the kind of a ledger line.

    "synthetic" if any folder is; "place" if all are places as `places.fetch_place` wrote them, with unchanged files,
    from the shipped services: real images, real MODIS label, and the map of a model as reference. Places from other
    services are "unverified", since these may serve any image. "real" if all files of all were verified.
    """
    roots = list(roots)
    if any(map(is_sample, roots)):
        return "synthetic"
    if all(map(_is_place, roots)):
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


def _is_place(root: Path) -> bool:
    record = _place_record(root)
    return record.get("services") == SHIPPED_SERVICES and record.get("digest") == data_digest(root)


def _place_record(root: Path) -> dict[str, Any]:
    """Return the record of a place, or an empty one if the folder is none."""
    try:
        record = json.loads((root / PLACE_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(parts: Iterable[str]) -> str:
    """Return the SHA-256 of the parts, joined by line breaks."""
    total = hashlib.sha256()
    for number, part in enumerate(parts):
        total.update(f"\n{part}".encode() if number else part.encode())
    return total.hexdigest()
