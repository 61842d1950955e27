"""
The local record of fetched and unpacked files, and whether they are still as they were.

Under a data root lie `downloads/` (archives), `sen12ms/`, `dfc2020/` ... (unpacked files) and `fetched/<id>.json`: of
each item the size, checksums, source and time, and size and CRC-32 of each unpacked file.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lcfuse_core._runtime import write_atomic
from lcfuse_core.data.archives import Member
from lcfuse_core.data.manifest import Choice, Item, Manifest
from lcfuse_core.data.manifest import read as read_manifest

_BLOCK = 1 << 20


class Sums:
    """Size, MD5 and SHA-256 of all bytes passed to it."""

    def __init__(self) -> None:
        self.size = 0
        self._sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}

    @classmethod
    def of(cls, path: Path) -> Sums:
        """Return those of a file."""
        sums = cls()
        for block in _blocks(path):
            sums.update(block)
        return sums

    def update(self, block: bytes) -> None:
        """Add some bytes."""
        self.size += len(block)
        for total in self._sums.values():
            total.update(block)

    @property
    def checksums(self) -> dict[str, str]:
        """Hexadecimal digests by name."""
        return {name: total.hexdigest() for name, total in self._sums.items()}

    def disagreement(self, item: Item) -> str:
        """Return what shows that the bytes are not those of the item; empty if nothing does."""
        if item.size not in ("unknown", self.size):
            return f"{self.size} bytes instead of {item.size}"
        known = {} if item.checksums == "unknown" else item.checksums
        seen = self.checksums
        return "; ".join(
            f"{name} {seen[name]} instead of {value}" for name, value in known.items() if seen[name] != value
        )


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(_BLOCK), b"")


@dataclass
class Record:
    """
    What was verified of one item: size, time and checksums of its file, how, from where, when, and unpacked members.

    `members` is None until the archive is unpacked; `scenes` are those that were extracted, empty for all.
    """

    size: int = 0
    mtime_ns: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    verified: str = ""
    source: str = ""
    at: str = ""
    scenes: list[str] = field(default_factory=list)
    members: list[Member] | None = None


class Store:
    """A data root: where its files lie, and what is recorded of them."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def file(self, item: Item) -> Path:
        """Return where the file of an item lies, whole and verified, or put there by hand."""
        return self.root / "downloads" / str(item.file)

    def part(self, item: Item) -> Path:
        """Return where the file lies while it is fetched."""
        return self.file(item).with_name(f"{item.file}.part")

    def staging(self, item: Item) -> Path:
        """Return where an archive is unpacked first: on the same disk, under a name that no reader lists."""
        return self.root / f".unpacking-{item.id}"

    def into(self, item: Item) -> Path:
        """Return the folder of the files unpacked from an item."""
        assert item.unpack is not None
        return self.root / item.unpack.into

    def record(self, item: Item) -> Record | None:
        """Return what is recorded of an item; None if nothing is, or the record is damaged: it is verified again."""
        try:
            record = Record(**json.loads((self.root / "fetched" / f"{item.id}.json").read_text(encoding="utf-8")))
            record.members = None if record.members is None else [Member(*member) for member in record.members]
            return record
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, item: Item, record: Record) -> None:
        """Write the record of an item."""
        write_atomic(self.root / "fetched" / f"{item.id}.json", json.dumps(asdict(record)) + "\n")

    def members(self, item: Item) -> list[Member]:
        """Return the files that were unpacked from an item."""
        record = self.record(item)
        return (record.members or []) if record else []

    def is_verified(self, item: Item) -> bool:
        """Return whether the file lies there as it was when it was verified, by size and time."""
        record, path = self.record(item), self.file(item)
        if record is None or not record.verified or not path.is_file():
            return False
        return (path.stat().st_size, path.stat().st_mtime_ns) == (record.size, record.mtime_ns)

    def is_done(self, choice: Choice, item: Item) -> bool:
        """Return whether nothing is left to do for an item of a subset."""
        if item.unpack is None:
            return self.is_verified(item)
        record = self.record(item)
        if record is None or record.members is None:
            return False
        enough = not record.scenes or (choice.scenes and set(choice.scenes) <= set(record.scenes))
        return bool(enough) and not self._n_missing(item, record.members)

    def _n_missing(self, item: Item, members: list[Member]) -> int:
        return sum(_size(self.into(item) / member.path) != member.size for member in members)

    def faults(self, item: Item) -> list[tuple[Path, str]]:
        """Read the file of an item and all that was unpacked; return path and fault of each that has changed."""
        record, path, found = self.record(item), self.file(item), []
        if record is not None and path.is_file() and Sums.of(path).checksums != record.checksums:
            found.append((path, "other content than when it was verified"))
        for member in self.members(item):
            path = self.into(item) / member.path
            size, crc = _size(path), 0
            if size != member.size:
                found.append((path, "missing" if size is None else f"{size} bytes instead of {member.size}"))
                continue
            for block in _blocks(path):
                crc = zlib.crc32(block, crc)
            if crc != member.crc32:
                found.append((path, "damaged: its CRC-32 is another"))
        return found

    def state(self, item: Item) -> str:
        """Return the state of an item in a few words."""
        record = self.record(item)
        if item.unpack is not None and record is not None and record.members is not None:
            n, gone = len(record.members), self._n_missing(item, record.members)
            of = "" if item.unpack.files in ("unknown", n) or record.scenes else f" of {item.unpack.files}"
            scenes = f", scenes {', '.join(record.scenes)}" if record.scenes else ""
            return f"unpacked, {n}{of} files{scenes}" + (f", {gone} of them missing or cut" if gone else "")
        if self.is_verified(item):
            return "fetched"
        if self.file(item).is_file():
            return "there, not verified"
        part = _size(self.part(item))
        return "missing" if part is None else f"begun, {part} bytes"


def verified_items(folder: str | os.PathLike[str], manifest: Manifest | None = None) -> list[str]:
    """
    Return the ids of the items that `data fetch` has verified and unpacked into *folder*.

    An empty list means that the origin of its files is unknown. *manifest* is the package's own by default.
    """
    where = Path(folder).absolute()
    store, book = Store(where.parent), manifest or read_manifest()
    items = [item for item in book.items if item.unpack is not None and item.unpack.into == where.name]
    records = {item.id: store.record(item) for item in items}
    return [name for name, record in records.items() if record and record.verified and record.members is not None]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
