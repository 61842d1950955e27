"""
Take files out of .zip and .tar.gz archives that nobody vouches for.

Standard library alone: `tarfile` and `zipfile` are read member by member, so that every name, type and size is looked
at before a byte is written. Their own `extractall` (and pooch's, which calls it) would also write what nobody asked
for, and knows no limit of size.

A member that tries something (leaving the folder, a link, a device, more bytes than its kind has) condemns the whole
archive: none of the published ones holds such a thing.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from lcfuse_core.errors import DataError, FetchError

BLOCK = 1 << 18
SLACK = 1 << 20
"""Bytes that headers and small files may take beyond the limits."""

DO = "Do not use the file; fetch it from another source."
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    struct.error,
    NotImplementedError,  # a zip packed by a method that zipfile does not know
    RuntimeError,  # an encrypted one
    ValueError,
    OverflowError,
    IndexError,
)


@dataclass(frozen=True)
class Limits:
    """members : at most so many; member_bytes : at most so large each; ratio : of unpacked to packed bytes."""

    members: int
    member_bytes: int
    ratio: int


@dataclass(frozen=True)
class Member:
    """A file that was taken out: path under the folder, size in bytes, CRC-32 of the content."""

    path: str
    size: int
    crc32: int


Place = Callable[[str], str | None]
"""Where a member goes, from its safe name; None when it is not wanted."""

Chunks = Iterator[bytes]


def unpack(file: IO[bytes], form: str, where: str, folder: Path, place: Place, limits: Limits) -> list[Member]:
    """
    Write the wanted members of an archive into the new *folder* and return them, sorted by path.

    file : the archive; of a `tar.gz` it is read once from front to back, so a stream will do
    form : "zip" or "tar.gz"
    where : its name, for errors

    Raises DataError when the archive is damaged, hostile, or holds nothing that is wanted, FetchError when the disk
    will not take it. *folder* is then removed.
    """
    folder.mkdir(parents=True)
    try:
        members = _unpack(file, form, where, folder, place, limits)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return members


def _unpack(file: IO[bytes], form: str, where: str, folder: Path, place: Place, limits: Limits) -> list[Member]:
    members: dict[str, Member] = {}
    for name, chunks in contents(file, form, where, limits):
        path = place(name)
        if path is None:
            continue
        if path.casefold() in members:
            raise _hostile(where, f"two members for {path}", "each file once")
        members[path.casefold()] = _write(folder, path, chunks)
    if not members:
        raise DataError(where, found="none of the files wanted", expected="at least one", do="Check what it is.")
    return sorted(members.values(), key=lambda member: member.path)


def check(file: IO[bytes], form: str, where: str, limits: Limits) -> int:
    """Read an archive to its end, every check sum included, and count its files. Raises DataError as `unpack`."""
    count = 0
    for _, chunks in contents(file, form, where, limits):
        for _ in chunks:
            pass
        count += 1
    return count


def settle(folder: Path, into: Path, members: list[Member]) -> None:
    """
    Move unpacked members from *folder* to their places under *into*; each appears there whole or not at all.

    Raises FetchError when one cannot be moved.
    """
    for member in members:
        target = into / member.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / member.path, target)
        except OSError as error:
            do = "Make room for it, or choose another folder with --root, and run this again."
            raise FetchError(target, found=str(error.strerror), expected="to put it there", do=do) from None
    shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, path: str, chunks: Chunks) -> Member:
    target = folder / path
    size, crc = 0, 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as out:
            for chunk in chunks:
                out.write(chunk)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    except FetchError:
        raise  # from where the bytes come from
    except OSError as error:
        do = "Free space on the disk, or choose another folder with --root, and run this again."
        raise FetchError(target, found=str(error.strerror), expected="to write it", do=do) from None
    return Member(path, size, crc)


# Names -------------------------------------------------------------------------------------------


def safe_name(name: str, where: str) -> str | None:
    """
    A member's name as a relative path; None for folders and the litter that some systems add.

    Raises DataError when it would lead out of the folder on any system, or cannot be printed.

    >>> safe_name("./wrapped/s1_0/a.tif", "x.zip"), safe_name("__MACOSX/._a.tif", "x.zip")
    ('wrapped/s1_0/a.tif', None)
    """
    plain = unicodedata.normalize("NFKC", name)  # a wide dot or slash is one to some file systems
    parts = [part for part in name.split("/") if part not in ("", ".")]
    leads_out = plain.startswith("/") or "\\" in plain or re.match(r"[A-Za-z]:", plain)
    if leads_out or ".." in plain.split("/") or any(part.strip(" ") == ".." for part in parts):
        raise _hostile(where, f"a member named {name[:80]!r}", "names inside the archive's own folder")
    if not plain.isprintable() or not _is_text(name) or any(len(part.encode()) > 255 for part in parts):
        raise _hostile(where, f"a member named {name[:80]!r}", "names of plain letters")
    litter = not parts or name.endswith("/") or "__MACOSX" in parts or parts[-1].startswith(".")
    return None if litter else "/".join(parts)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8
        return False
    return True


def _hostile(where: str, found: str, expected: str) -> DataError:
    return DataError(where, found=found, expected=expected, do=DO)


# Contents ----------------------------------------------------------------------------------------


@contextmanager
def _sense(where: str) -> Iterator[None]:
    """What the libraries say about damage, as one error."""
    try:
        yield
    except DataError:
        raise  # a ValueError too
    except _BROKEN as error:
        found = f"a damaged archive ({error or type(error).__name__})"
        raise DataError(where, found=found, expected="a whole one", do=DO) from None


def contents(file: IO[bytes], form: str, where: str, limits: Limits) -> Iterator[tuple[str, Chunks]]:
    """
    Safe name and content of each file in an archive, in its order. Read each content before asking for the next.

    Raises DataError as `unpack`.
    """
    walk = {"zip": _zip_contents, "tar.gz": _tar_contents}[form](file, where, limits)
    for n, (name, chunks) in enumerate(walk, start=1):
        if n > limits.members:
            raise _hostile(where, f"more than {limits.members} members", "no more")
        safe = safe_name(name, where)
        if safe is not None:
            yield safe, chunks


def _zip_contents(file: IO[bytes], where: str, limits: Limits) -> Iterator[tuple[str, Chunks]]:
    with _sense(where):
        archive = zipfile.ZipFile(file)
        packed = file.seek(0, os.SEEK_END)
        entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > limits.ratio * packed + SLACK:
        raise _hostile(where, f"{total} bytes packed into {packed}", f"at most {limits.ratio} : 1")
    spans = sorted((entry.header_offset, entry.compress_size) for entry in entries)
    if any(start + size > after for (start, size), (after, _) in pairwise(spans)):
        raise _hostile(where, "members that share bytes", "each with its own")
    for entry in entries:
        mode = entry.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _hostile(where, f"{entry.orig_filename[:80]!r}, a link or device", "plain files")
        if entry.file_size > limits.member_bytes:
            raise _hostile(where, f"{entry.file_size} bytes in one member", f"at most {limits.member_bytes}")
        yield entry.orig_filename, _zip_chunks(archive, entry, where)


def _zip_chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> Chunks:
    # zipfile gives no more than the size of the directory says, and checks the CRC at the end.
    with _sense(where), archive.open(entry) as member:
        got = 0
        while chunk := member.read(BLOCK):
            got += len(chunk)
            yield chunk
        if got != entry.file_size:
            raise DataError(where, found=f"{got} bytes in {entry.filename}", expected=str(entry.file_size), do=DO)


class _Gauge:
    """
    A file that counts what flows through. `allow` bounds it until the next call.

    end : where the last byte that is not zero lies; a tar has zeros alone after its end
    """

    def __init__(self, file: Any, where: str) -> None:
        self.file, self.where = file, where
        self.total = self.end = self.bound = 0

    def allow(self, more: int) -> None:
        self.bound = self.total + more

    def read(self, size: int = -1) -> bytes:
        chunk: bytes = self.file.read(BLOCK if size < 0 else min(size, BLOCK))
        content = len(chunk.rstrip(b"\0"))
        self.end = self.total + content if content else self.end
        self.total += len(chunk)
        if self.bound and self.total > self.bound:
            raise _hostile(self.where, "more bytes than a member may have", "no more than its kind has")
        return chunk


def _tar_contents(file: IO[bytes], where: str, limits: Limits) -> Iterator[tuple[str, Chunks]]:
    packed: Any = _Gauge(file, where)
    plain: Any = _Gauge(gzip.GzipFile(fileobj=packed, mode="rb"), where)
    plain.allow(limits.member_bytes + SLACK)
    with _sense(where), tarfile.open(fileobj=plain, mode="r|", errorlevel=2) as archive:
        while True:
            # A header could claim any size: nothing is read beyond what a member may have.
            plain.allow(limits.member_bytes + SLACK)
            entry = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # else it remembers every one of them
            if plain.total > limits.ratio * packed.total + SLACK:
                raise _hostile(where, "bytes packed too tightly", f"at most {limits.ratio} : 1")
            if entry is None:
                break
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise _hostile(where, f"{entry.name[:80]!r}, a link, device or sparse file", "plain files")
            if entry.size > limits.member_bytes:
                raise _hostile(where, f"{entry.size} bytes in one member", f"at most {limits.member_bytes}")
            yield entry.name + "/" * entry.isdir(), _tar_chunks(archive, entry, where)
        _check_end(archive, plain, packed, where, limits)


def _tar_chunks(archive: tarfile.TarFile, entry: tarfile.TarInfo, where: str) -> Chunks:
    with _sense(where):
        member = archive.extractfile(entry)
        while member is not None and (chunk := member.read(BLOCK)):
            yield chunk


def _check_end(archive: tarfile.TarFile, plain: _Gauge, packed: _Gauge, where: str, limits: Limits) -> None:
    """
    After the last member: zeros alone, and a right CRC of all of it.

    tarfile takes a damaged header for the end; only that something follows gives it away.
    """
    plain.bound = 0
    while plain.read():
        if plain.total > limits.ratio * packed.total + SLACK:
            raise _hostile(where, "bytes packed too tightly", f"at most {limits.ratio} : 1")
    if plain.end > archive.offset or plain.total < archive.offset + tarfile.BLOCKSIZE:
        found = f"a damaged archive (no proper end after {archive.offset} bytes)"
        raise DataError(where, found=found, expected="a whole one", do=DO)
