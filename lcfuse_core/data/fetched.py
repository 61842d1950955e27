"""
What is here: the local record of fetched and unpacked files, and whether they are still what they were.

Under a data root: `downloads/` the archives, `sen12ms/`, `dfc2020/` ... what was unpacked, and `fetched/`: for every
item `<id>.json` (size, checksums, source, time) and `<id>.members` (CRC-32, size and path of each unpacked file).
The checksums in it are those that were seen; the manifest's come first wherever it has one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lcfuse_core.data.archives import Limits, Member, check
from lcfuse_core.data.manifest import Choice, Item, Manifest
from lcfuse_core.data.manifest import read as read_manifest
from lcfuse_core.errors import DataError

BLOCK = 1 << 20


def limits(manifest: Manifest, item: Item) -> Limits:
    """How much the archive of an item may hold."""
    assert item.unpack is not None
    assert item.kind is not None
    kind = manifest.dataset(item).kinds[item.kind]
    return Limits(item.unpack.members_at_most, kind.at_most, kind.ratio)


def checksums(path: Path) -> dict[str, str]:
    """MD5 and SHA-256 of a file, in one reading."""
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    for block in _blocks(path):
        for total in sums.values():
            total.update(block)
    return {name: total.hexdigest() for name, total in sums.items()}


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            yield block


def disagreement(item: Item, size: int, seen: dict[str, str]) -> str:
    """What speaks against a file of that size and those checksums being the item; empty: nothing."""
    if item.size not in ("unknown", size):
        return f"{size} bytes instead of {item.size}"
    known = {} if item.checksums == "unknown" else item.checksums
    wrong = [f"{name} {seen[name]} instead of {value}" for name, value in known.items() if seen[name] != value]
    return "; ".join(wrong)


def judge(manifest: Manifest, item: Item, path: Path) -> tuple[dict[str, str], str]:
    """
    The checksums of a file and in words how it was verified: by the manifest or, where that knows none, by being whole.

    Raises DataError when it is not the item.
    """
    seen = checksums(path)
    wrong = disagreement(item, path.stat().st_size, seen)
    if wrong:
        do = "Fetch it from another source."
        raise DataError(path.name, found=wrong, expected="the file of the manifest", do=do)
    if item.checksums != "unknown":
        return seen, " and ".join(item.checksums) + " of the manifest"
    if item.unpack is None:
        return seen, "size of the manifest" if item.size != "unknown" else "nothing published to compare with"
    with open(path, "rb") as file:
        count = check(file, item.form, path.name, limits(manifest, item))
    return seen, f"whole archive of {count} files; no published checksum"


def vouched_for(folder: str | os.PathLike[str], manifest: Manifest | None = None) -> list[str]:
    """
    Ids of the items that `data fetch` has verified and unpacked into *folder*; none: nobody knows what lies there.

    manifest : by default the package's own
    """
    where = Path(folder).absolute()
    store, book = Store(where.parent), manifest or read_manifest()
    items = [item for item in book.items if item.unpack is not None and item.unpack.into == where.name]
    records = {item.id: store.record(item) for item in items}
    return [name for name, record in records.items() if record and record.verified and record.unpacked]


@dataclass
class Record:
    """
    What became of one item.

    size, mtime_ns : of the archive or file when it was verified; checksums, verified, source, at : see the module
    scenes : those that were unpacked; empty: all; unpacked : whether its members are in place
    """

    size: int = 0
    mtime_ns: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    verified: str = ""
    source: str = ""
    at: str = ""
    unpacked: bool = False
    scenes: list[str] = field(default_factory=list)


def now() -> str:
    """The time, as it stands in records."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Store:
    """A data root: where its files lie, and what is recorded of them."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def file(self, item: Item) -> Path:
        """Where the archive or file of an item lies, whole and verified, or put there by hand."""
        return self.root / "downloads" / str(item.file)

    def part(self, item: Item) -> Path:
        """The same while it is fetched."""
        return self.file(item).with_name(f"{item.file}.part")

    def into(self, item: Item) -> Path:
        """Folder of what is unpacked from an item."""
        assert item.unpack is not None
        return self.root / item.unpack.into

    def staging(self, item: Item) -> Path:
        """Where it is unpacked first: on the same disk, under a name that no reader looks at."""
        return self.root / f".unpacking-{item.id}"

    def _path(self, item: Item, end: str) -> Path:
        return self.root / "fetched" / f"{item.id}.{end}"

    def record(self, item: Item) -> Record | None:
        """What is recorded of an item; None: nothing, or nothing readable (then it is verified again)."""
        try:
            return Record(**json.loads(self._path(item, "json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, item: Item, record: Record, members: list[Member] | None = None) -> None:
        """Record an item, and with *members* that they are in place."""
        if members is not None:
            lines = "".join(f"{m.crc32:08x} {m.size} {m.path}\n" for m in members)
            _write(self._path(item, "members"), lines)
            record.unpacked = True
        _write(self._path(item, "json"), json.dumps(record.__dict__, indent=1) + "\n")

    def members(self, item: Item) -> list[Member]:
        """The files that were unpacked from an item."""
        path = self._path(item, "members")
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        fields = (line.split(" ", 2) for line in lines)
        return [Member(name, int(size), int(crc, 16)) for crc, size, name in fields]

    def is_verified(self, item: Item) -> bool:
        """Whether the archive lies there as it was when it was verified (by size and time, unread)."""
        record, path = self.record(item), self.file(item)
        if record is None or not record.verified or not path.is_file():
            return False
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (record.size, record.mtime_ns)

    def is_done(self, choice: Choice, item: Item) -> bool:
        """Whether nothing is left to do for an item of a subset."""
        record = self.record(item)
        if item.unpack is None:
            return self.is_verified(item)
        if record is None or not record.unpacked:
            return False
        enough = not record.scenes or (choice.scenes and set(choice.scenes) <= set(record.scenes))
        return bool(enough) and not self.missing(item)

    def missing(self, item: Item) -> list[str]:
        """Unpacked files that are no longer there, or of another size."""
        into = self.into(item)
        return [m.path for m in self.members(item) if _size(into / m.path) != m.size]

    def damaged(self, item: Item) -> list[str]:
        """What is not as it was, in words: see `faults`."""
        return [f"{path}: {why}" for path, why in self.faults(item)]

    def faults(self, item: Item) -> list[tuple[Path, str]]:
        """What is not as it was: the archive or file if it is there, and every unpacked file, read to the last byte."""
        record, found = self.record(item), []
        path = self.file(item)
        if record is not None and path.is_file() and checksums(path) != record.checksums:
            found.append((path, "other content than when it was verified"))
        if item.unpack is not None:
            into = self.into(item)
            found += [(into / m.path, why) for m in self.members(item) if (why := _damage(into / m.path, m))]
        return found

    def state(self, item: Item) -> str:
        """Of an item, in a few words."""
        record = self.record(item)
        if item.unpack is not None and record is not None and record.unpacked:
            n, gone = len(self.members(item)), len(self.missing(item))
            of = "" if item.unpack.files in ("unknown", n) or record.scenes else f" of {item.unpack.files}"
            scenes = f", scenes {', '.join(record.scenes)}" if record.scenes else ""
            return f"unpacked, {n}{of} files{scenes}" + (f", {gone} of them missing or cut" if gone else "")
        if self.is_verified(item):
            return "fetched"
        if self.file(item).is_file():
            return "there, not verified"
        part = _size(self.part(item))
        return "missing" if part is None else f"begun, {part} bytes"


def _damage(path: Path, member: Member) -> str:
    size = _size(path)
    if size != member.size:
        return "missing" if size is None else f"{size} bytes instead of {member.size}"
    crc = 0
    for block in _blocks(path):
        crc = zlib.crc32(block, crc)
    return "" if crc == member.crc32 else "damaged: its CRC-32 is another"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _write(path: Path, text: str) -> None:
    """All or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
