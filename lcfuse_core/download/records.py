"""
What is recorded of fetched, unpacked and adopted files, and whether they are still as they were.

Under a data root lie `downloads/` (archives), `sen12ms/`, `dfc2020/` ... (unpacked files) and `fetched/<id>.json`: of
each item the size, checksums, source and time, and of each unpacked file the size, time and SHA-256. Of a folder that
was adopted the records lie in the folder of `_runtime.data_folder`: it may be on a disk that cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from lcfuse_core import _runtime
from lcfuse_core.download.archives import Member, sha256_of
from lcfuse_core.download.manifest import Choice, Item, Manifest, read
from lcfuse_core.errors import DataError, MissingDataError

VERIFIED, ADOPTED, UNVERIFIED = "verified", "adopted", "unverified"
"""Marks of a folder: compared with checksums on arrival; with published lists and sizes only; with nothing."""


class Sums:
    """Size, MD5 and SHA-256 of all bytes passed to it."""

    def __init__(self) -> None:
        self.size = 0
        self._sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}

    @classmethod
    def of(cls, path: Path) -> Sums:
        """Return those of a file."""
        sums = cls()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
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

    def difference(self, item: Item) -> str:
        """Return what shows that the bytes are not those of the item; empty if nothing does."""
        if self.size == 0 or item.size not in ("unknown", self.size):
            return f"{self.size} bytes instead of {'a file' if item.size == 'unknown' else item.size}"
        known, seen = ({} if item.checksums == "unknown" else item.checksums), self.checksums
        return "; ".join(
            f"{name} {seen[name]} instead of {value}" for name, value in known.items() if seen[name] != value
        )


@dataclass
class Record:
    """
    What is known of one item.

    Attributes
    ----------
    mark, how, source, at : str
        VERIFIED or ADOPTED, by what, from where, and when.
    size, mtime_ns, checksums : int, int, dict
        Of its file; the time is 0 for an archive.
    into, scenes : str, list of str
        Folder of the unpacked files under the data root; scenes that were extracted, empty for all.
    members : list of Member, optional
        Unpacked files; None until the archive is unpacked.
    """

    mark: str
    how: str
    source: str
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    size: int = 0
    mtime_ns: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    into: str = ""
    scenes: list[str] = field(default_factory=list)
    members: list[Member] | None = None


_RECORD = TypeAdapter(Record)


def _read_record(path: Path) -> Record | None:
    """Return the record in a file; None if there is none or it is damaged: the item is then verified again."""
    try:
        record = _RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if record.mark in (VERIFIED, ADOPTED) else None


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

    def bytes_here(self, item: Item) -> int:
        """Return the bytes of the file, whole or in part."""
        return sum(path.stat().st_size for path in (self.part(item), self.file(item)) if path.is_file())

    def note(self, item: Item) -> Path:
        """Return where it is written from where a part is, and of which version."""
        return self.file(item).with_name(f"{item.file}.part-from")

    def staging(self, item: Item) -> Path:
        """Return where an archive is unpacked first: on the same disk, under a name that no reader lists."""
        return self.root / f".unpacking-{item.id}"

    def into(self, item: Item) -> Path:
        """Return the folder of the files unpacked from an item."""
        assert item.unpack is not None
        return self.root / item.unpack.into

    def record(self, item: Item) -> Record | None:
        """Return what is recorded of an item, if anything."""
        return _read_record(self.root / "fetched" / f"{item.id}.json")

    def save(self, item: Item, record: Record) -> None:
        """Write the record of an item."""
        _runtime.write_atomic(self.root / "fetched" / f"{item.id}.json", json.dumps(asdict(record)) + "\n")

    def is_done(self, choice: Choice, item: Item) -> bool:
        """Return whether nothing is left to do for an item of a subset, by sizes and times."""
        record, path = self.record(item), self.file(item)
        if record is None:
            return False
        if item.unpack is None:
            return path.is_file() and _version(path) == (record.size, record.mtime_ns)
        has_scenes = not record.scenes or (choice.scenes and set(choice.scenes) <= set(record.scenes))
        return bool(has_scenes) and not self.faults(item, read=False)

    def faults(self, item: Item, *, read: bool = True) -> list[tuple[Path, str]]:
        """
        Return path and fault of each file of an item, and of all that was unpacked, that is not as recorded.

        Without *read* only the unpacked files are compared, and only by their sizes.
        """
        record, path, found = self.record(item), self.file(item), []
        if record is None or (item.unpack is not None and not record.members):
            return [(path, "no record of what was unpacked")]
        if read and path.is_file() and Sums.of(path).checksums != record.checksums:
            found.append((path, "other content than when it was verified"))
        elif item.unpack is None and not path.is_file():
            found.append((path, "missing"))
        for member in record.members or []:
            path = self.into(item) / member.path
            if not path.is_file():
                found.append((path, "missing"))
            elif path.stat().st_size != member.size:
                found.append((path, f"{path.stat().st_size} bytes instead of {member.size}"))
            elif read and sha256_of(path) != member.sha256:
                found.append((path, "damaged: its SHA-256 is another"))
        return found

    def state(self, item: Item) -> str:
        """Return the state of an item in a few words."""
        record, part = self.record(item), self.part(item)
        if item.unpack is not None and record is not None and record.members:
            n, gone = len(record.members), len(self.faults(item, read=False))
            of = "" if item.unpack.files in ("unknown", n) or record.scenes else f" of {item.unpack.files}"
            scenes = f", scenes {', '.join(record.scenes)}" if record.scenes else ""
            missing = f", {gone} of them missing or cut" if gone else ""
            return f"unpacked, {n}{of} files{scenes}, {record.mark}{missing}"
        if self.file(item).is_file():
            is_whole = item.unpack is None and self.is_done(Choice(item=item.id), item)
            return "fetched" if is_whole else "there, not verified"
        return f"begun, {part.stat().st_size} bytes" if part.is_file() else "missing"


def _version(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _files(folder: Path) -> dict[str, Path]:
    """Return the GeoTIFFs of a folder by relative path or, if there are none, all files that are not hidden."""
    paths = sorted(folder.rglob("*.tif")) or [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path for path in paths}


def _members(folder: Path) -> dict[str, tuple[Member, str]]:
    """Return recorded files and their marks by path under *folder*: of items unpacked there, and of an adoption."""
    found = [_read_record(path) for path in _adopted(folder).glob("*.json")]
    for path in sorted((folder.parent / "fetched").glob("*.json")):
        record = _read_record(path)
        if record and record.into == folder.name:
            record.mark = record.mark if _is_published(path.stem, record) else UNVERIFIED
            found.append(record)
    return {member.path: (member, record.mark) for record in found if record for member in record.members or []}


def _is_published(name: str, record: Record) -> bool:
    """
    Return whether a record has the checksums and the number of files of that item in the package's own manifest.

    `data fetch --manifest` verifies by any manifest, also by that of a miniature.
    """
    item = _published().get(name)
    if item is None or item.unpack is None:
        return False
    known = {} if item.checksums == "unknown" else item.checksums
    is_same = all(record.checksums.get(kind, value) == value for kind, value in known.items())
    return is_same and (bool(record.scenes) or item.unpack.files in ("unknown", len(record.members or [])))


@cache
def _published() -> dict[str, Item]:
    """Return the items of the package's own manifest by id."""
    return {item.id: item for item in read().items}


def _adopted(folder: Path) -> Path:
    """Where the records of an adopted folder lie."""
    key = hashlib.sha256(str(folder).encode(errors="surrogateescape")).hexdigest()
    return _runtime.data_folder() / "adopted" / key[:16]


def provenance(folder: str | os.PathLike[str]) -> str:
    """
    Return the lowest mark of all GeoTIFFs in a folder: VERIFIED, ADOPTED or UNVERIFIED.

    A file counts as long as its size and modification time are those of its record, and its item is that of the
    package's own manifest. A folder without files is UNVERIFIED. For packed scenes, all of their files count.
    """
    where = Path(folder).absolute()
    known, marks = _members(where), set()
    for name, path in _files(where).items():
        member, mark = known.get(name, (None, UNVERIFIED))
        marks.add(mark if member and _version(path) == (member.size, member.mtime_ns) else UNVERIFIED)
    return max(marks, key=(VERIFIED, ADOPTED, UNVERIFIED).index, default=UNVERIFIED)


def recorded_hashes(folder: str | os.PathLike[str]) -> dict[str, tuple[int, int, str]]:
    """Return size, modification time (ns) and SHA-256 of the recorded files of a folder, by path under it."""
    known = _members(Path(folder).absolute())
    return {name: (one.size, one.mtime_ns, one.sha256) for name, (one, _) in known.items() if one.sha256}


def mark_folder(folder: Path, name: str, mark: str, how: str) -> None:
    """Record all files of a folder, as they are now, under *name* with a mark."""
    versions = {name: _version(path) for name, path in _files(folder.absolute()).items()}
    members = [Member(name, size, "", mtime_ns) for name, (size, mtime_ns) in versions.items()]
    record = Record(mark, how, str(folder), members=members)
    _runtime.write_atomic(_adopted(folder.absolute()) / f"{name}.json", json.dumps(asdict(record)) + "\n")


def adopt(folder: Path, manifest: Manifest, lists: Path) -> list[str]:
    """
    Mark a folder that was unpacked without `data fetch` as adopted.

    Every file must have its place in the layout of the manifest and the published size. Every scene of SEN12MS must
    have all patches of the official lists, every archive of DFC2020 its published number of files.

    *folder* is an unpacked SEN12MS or DFC2020, which is only read; *lists* the folder of the official lists of SEN12MS.
    Returns what was checked, one line per item. Raises DataError that names the first files that are missing, in no
    known place, or of another size, and then records nothing; MissingDataError if the lists are not there.
    """
    left, faults, lines = _files(folder), [], []
    for item in manifest.items:
        if item.unpack is None or item.unpack.place is None:
            continue
        mine = {name: path for name, path in left.items() if item.unpack.destination(name) == name}
        if not mine:
            continue
        left = {name: path for name, path in left.items() if name not in mine}
        kind = manifest.kind(item)
        slack, size = (0.0, kind.bytes) if kind.bytes != "unknown" else (0.05, kind.about or kind.at_most)
        for name, path in mine.items():
            if abs(path.stat().st_size - size) > slack * size:
                faults.append(f"{name} of {path.stat().st_size:,} bytes instead of {size:,}")
        n_files = item.unpack.files
        if n_files == "unknown":
            scenes = {name.rpartition("/")[0] for name in mine}
            places = [item.unpack.destination(name) for name in _listed(item, manifest, lists)]
            expected = {place for place in places if place and place.rpartition("/")[0] in scenes}
            faults += [f"{name} of the official lists missing" for name in sorted(expected - set(mine))]
            n_files = len(expected)
        elif len(mine) != n_files:
            faults.append(f"{len(mine)} files of {item.id} instead of {n_files}")
        lines.append(f"{item.id}: {len(mine)} files of the published size, {n_files} expected")
    faults += [f"{name}, which no archive holds" for name in left]
    if faults or not lines:
        found = "; ".join(faults[:5]) + f" and {len(faults) - 5} more" * (len(faults) > 5) or "no file of any data set"
        do = "Unpack the archives again in the published layout, or remove what does not belong there."
        raise DataError(folder, found=found, expected="the files as published", do=do)
    mark_folder(folder, "adopted", ADOPTED, "names, numbers and sizes as published")
    return lines


def _listed(item: Item, manifest: Manifest, folder: Path) -> Iterator[str]:
    """The file names of an item's kind in the official lists of its data set."""
    for source in manifest.items:
        if source.dataset == item.dataset and str(source.file).endswith("_list.txt"):
            path = folder / str(source.file)
            wrong = Sums.of(path).difference(source) if path.is_file() else "no such file"
            if wrong:
                do = f"Fetch it: `data fetch {source.id}`, with the same --root."
                raise MissingDataError(path, found=wrong, expected="an official list of patches", do=do)
            yield from (line.replace("_s2_", f"_{item.kind}_") for line in path.read_text(encoding="utf-8").split())
