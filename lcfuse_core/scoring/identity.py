"""The identity of data: a digest, a name and a kind, on which trained networks and ledger lines depend."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lcfuse_core import _runtime
from lcfuse_core.data.packed import open_scene, packed_paths
from lcfuse_core.download import records
from lcfuse_core.download.archives import sha256_of
from lcfuse_core.errors import MissingDataError
from lcfuse_core.sample import world

_MOST_LINKED = 4096
"""Files that are recognised behind several links, at a time."""

PLACE_RECORD = "place.json"
"""File in the folder of a place, with its origin and the digest of its files."""

SHIPPED_SERVICES = "shipped"
"""In the record of a place that was read from the addresses of the shipped file of services."""


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
        return _digest(open_scene(str(path)).digest for path in scenes)
    if _in_world(root):
        record, made = world.read_world(root.parent), (root.parent / "world.json").stat().st_mtime_ns
        times = [os.stat(path).st_mtime_ns for _, path in _files(root)]
        if record.get("files", {}).get(root.name) == len(times) and max(times, default=0) <= made:
            return str(record["sha256"])
    cache = _runtime.data_folder() / "digests" / f"{_digest([str(root)])[:16]}.jsonl"
    try:
        return _digest(f"{known.name} {known.sha256}" for known in _unchanged(root, cache))
    except LookupError:
        return _digest(f"{known.name} {known.sha256}" for known in _hashed(root, cache))


class _Known(NamedTuple):
    """A line of the cache: a file by its path under the root, its version, and its hash."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


def _with_cached(root: Path, cache: Path) -> Iterator[tuple[_Known, str]]:
    """
    Yield each file, with its path; the hash is empty if the cache has none of this version.

    Folder and cache are read side by side, in one order.
    """
    lines = _read_cache(cache)
    cached = next(lines, None)
    for name, path in _files(root):
        while cached is not None and cached.name.split("/") < name.split("/"):
            cached = next(lines, None)
        facts = os.stat(path)
        found = _Known(name, facts.st_size, facts.st_mtime_ns, "")
        yield cached if cached is not None and cached[:3] == found[:3] else found, path


def _read_cache(cache: Path) -> Iterator[_Known]:
    """Yield the lines of a cache up to the first that is damaged."""
    try:
        with cache.open(encoding="utf-8") as file:
            yield from (_Known(*json.loads(line)) for line in file)
    except (OSError, ValueError, TypeError):
        return


def _unchanged(root: Path, cache: Path) -> Iterator[_Known]:
    """Yield the cached lines of all files; LookupError at the first that is new or has changed."""
    for known, _ in _with_cached(root, cache):
        if not known.sha256:
            raise LookupError(known.name)
        yield known


def _hashed(root: Path, cache: Path) -> Iterator[_Known]:
    """Yield the lines of all files and write the cache; unchanged files and links are not read again."""
    recorded, linked = records.recorded_hashes(root), dict[tuple[int, int], str]()

    def hashed(found: tuple[_Known, str]) -> _Known:
        known, path = found
        if known.sha256:
            return known
        if known.name in recorded and recorded[known.name][:2] == known[1:3]:
            return _Known(known.name, *recorded[known.name])
        facts = os.stat(path)
        identity = facts.st_dev, facts.st_ino
        sha256 = linked.get(identity)
        if sha256 is None:
            if len(linked) >= _MOST_LINKED:
                linked.clear()  # while another thread may be about to look
            sha256 = linked[identity] = sha256_of(Path(path))
        return known._replace(sha256=sha256)

    files = _with_cached(root, cache)
    with _runtime.atomic_path(cache) as part, part.open("w", encoding="utf-8") as new, ThreadPoolExecutor(4) as pool:
        while batch := list(islice(files, 256)):
            for known in pool.map(hashed, batch):
                new.write(f"{json.dumps(known)}\n")
                yield known


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield relative and full path of the GeoTIFFs under a folder, or of all files if there are none, in order."""
    only_tif = any(name.endswith(".tif") for name, _ in _walk(root))
    return ((name, path) for name, path in _walk(root) if name.endswith(".tif") or not only_tif)


def _walk(folder: Path | str, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield all files under a folder; links to folders are not followed."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        found = f"a folder that cannot be listed ({error.strerror})"
        do = "Check the path, its permissions and the disk."
        raise MissingDataError(folder, found=found, expected="a data folder", do=do) from None
    for entry in entries:
        if not entry.is_dir():
            yield above + entry.name, entry.path
        elif not entry.is_symlink():
            yield from _walk(entry.path, f"{above}{entry.name}/")


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
    marks = {records.provenance(root) for root in roots}
    if marks <= {records.VERIFIED}:
        return "real"
    return "adopted" if marks <= {records.VERIFIED, records.ADOPTED} else "unverified"


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
