"""
Extract files from .zip and .tar.gz archives of unknown origin, with `zipfile` and `tarfile` of the standard library.

Names, types and sizes are checked before a byte is written. A member that leads out of the folder, a link, a device
or a file larger than its kind refuses the whole archive: the published ones hold nothing of this sort.
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
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from lcfuse_core.errors import DataError, FetchError

_BLOCK = 1 << 18
_SLACK = 1 << 20
"""Bytes that headers and small files may take beyond the limits."""

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, struct.error, ValueError, IndexError,
    NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip
"""What the libraries raise on a damaged, encrypted or unknown archive."""


class Limits(NamedTuple):
    """Most members, most bytes of a member, and the largest ratio of unpacked to packed bytes."""

    members: int
    member_bytes: int
    ratio: int


class Member(NamedTuple):
    """A file that was extracted: path under the folder, size in bytes, CRC-32 of the content."""

    path: str
    size: int
    crc32: int


def unpack(
    file: IO[bytes], form: str, where: str, folder: Path, place: Callable[[str], str | None], limits: Limits
) -> list[Member]:
    """
    Write the wanted members of an archive into the new *folder*.

    Parameters
    ----------
    file : binary file
        The archive; a `tar.gz` is read once from front to back, so a stream will do.
    form : str
        "zip" or "tar.gz".
    where : str
        Name of the archive in errors.
    folder : Path
        Is made, and removed after an error.
    place : callable
        Returns where the member of a name goes, None if it is not wanted.
    limits : Limits
        What a published archive does not exceed.

    Returns
    -------
    list of Member
        Sorted by path.

    Raises
    ------
    DataError
        If the archive is damaged or hostile, or holds none of the wanted files.
    FetchError
        If the disk is full or cannot be written.
    """
    folder.mkdir(parents=True)
    try:
        members: dict[str, Member] = {}
        for name, chunks in _contents(file, form, where, limits):
            path = place(name)
            if path is None:
                continue
            if path.casefold() in members:
                raise _hostile(where, f"two members for {path}", "each file once")
            members[path.casefold()] = _write(folder, path, chunks)
        if not members:
            raise DataError(where, found="none of the files wanted", expected="at least one", do="Check what it is.")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, _BROKEN) and not isinstance(error, DataError):
            raise _hostile(where, f"a damaged archive ({error or type(error).__name__})", "a whole one") from None
        raise
    return sorted(members.values())


def check(file: IO[bytes], form: str, where: str, limits: Limits) -> int:
    """Read an archive to its end, every checksum included, and count its files. Raises DataError as `unpack`."""
    count = 0
    try:
        for _, chunks in _contents(file, form, where, limits):
            count += 1
            for _ in chunks:
                pass
    except DataError:
        raise
    except _BROKEN as error:
        raise _hostile(where, f"a damaged archive ({error or type(error).__name__})", "a whole one") from None
    return count


def _write(folder: Path, path: str, chunks: Iterator[bytes]) -> Member:
    target, size, crc = folder / path, 0, 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as out:
            for chunk in chunks:
                out.write(chunk)
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    except (FetchError, gzip.BadGzipFile):
        raise  # an error of the source, not of the disk
    except OSError as error:
        do = "Free space on the disk, or choose another folder with --root, and run this again."
        raise FetchError(target, found=str(error.strerror), expected="to write it", do=do) from None
    return Member(path, size, crc)


def safe_name(name: str, where: str) -> str | None:
    """
    Return a member's name as a relative path; None for folders and the extra files that some systems add.

    Raises DataError if it leads out of the folder on any system, or cannot be printed.

    >>> safe_name("./wrapped/s1_0/a.tif", "x.zip"), safe_name("__MACOSX/._a.tif", "x.zip")
    ('wrapped/s1_0/a.tif', None)
    """
    plain = unicodedata.normalize("NFKC", name)  # a wide dot or slash is one to some file systems
    parts = [part for part in name.split("/") if part not in ("", ".")]
    leads_out = plain.startswith("/") or "\\" in plain or re.match(r"[A-Za-z]:", plain)
    if leads_out or ".." in plain.split("/") or any(part.strip(" ") == ".." for part in parts):
        raise _hostile(where, f"a member named {name[:80]!r}", "names inside the archive's own folder")
    if not plain.isprintable() or any(len(part.encode(errors="replace")) > 255 for part in parts):
        raise _hostile(where, f"a member named {name[:80]!r}", "names of plain letters")
    is_extra = not parts or name.endswith("/") or "__MACOSX" in parts or parts[-1].startswith(".")
    return None if is_extra else "/".join(parts)


def _hostile(where: str, found: str, expected: str) -> DataError:
    return DataError(where, found=found, expected=expected, do="Do not use the file; fetch it from another source.")


def _contents(file: IO[bytes], form: str, where: str, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Safe name and content of each file, in the order of the archive; each content is read before the next."""
    walk = {"zip": _zip_contents, "tar.gz": _tar_contents}[form](file, where, limits)
    for n, (name, chunks) in enumerate(walk, start=1):
        if n > limits.members:
            raise _hostile(where, f"more than {limits.members} members", "fewer")
        safe = safe_name(name, where)
        if safe is not None:
            yield safe, chunks


def _check_size(size: int, where: str, limits: Limits) -> None:
    if size > limits.member_bytes:
        raise _hostile(where, f"{size} bytes in one member", f"at most {limits.member_bytes}")


def _check_ratio(plain: int, packed: int, where: str, limits: Limits) -> None:
    if plain > limits.ratio * packed + _SLACK:
        raise _hostile(where, f"{plain} bytes packed into {packed}", f"at most {limits.ratio} : 1")


def _chunks(member: IO[bytes]) -> Iterator[bytes]:
    with member:
        while chunk := member.read(_BLOCK):
            yield chunk


def _zip_contents(file: IO[bytes], where: str, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    _check_ratio(sum(entry.file_size for entry in entries), file.seek(0, os.SEEK_END), where, limits)
    spans = sorted((entry.header_offset, entry.compress_size) for entry in entries)
    if any(start + size > after for (start, size), (after, _) in pairwise(spans)):
        raise _hostile(where, "members that share bytes", "each with its own")
    for entry in entries:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _hostile(where, f"{entry.orig_filename[:80]!r}, a link or device", "plain files")
        _check_size(entry.file_size, where, limits)
        # zipfile reads no more than the stated size, and compares the CRC-32; fewer bytes are an error here.
        yield entry.orig_filename, _exactly(_chunks(archive.open(entry)), entry.file_size, where)


def _exactly(chunks: Iterator[bytes], size: int, where: str) -> Iterator[bytes]:
    for chunk in chunks:
        size -= len(chunk)
        yield chunk
    if size:
        raise _hostile(where, f"a member that lacks {size} bytes", "the size that the archive states")


class _Counted:
    """A file that counts the bytes read, up to *bound*, and notes where the last byte that is not zero lies."""

    def __init__(self, file: Any, where: str) -> None:
        self.file, self.where = file, where
        self.total, self.end, self.bound = 0, 0, float("inf")

    def read(self, size: int = -1) -> bytes:
        chunk: bytes = self.file.read(_BLOCK if size < 0 else min(size, _BLOCK))
        content = len(chunk.rstrip(b"\0"))
        self.end = self.total + content if content else self.end
        self.total += len(chunk)
        if self.total > self.bound:
            raise _hostile(self.where, "more bytes than a member may have", "no more than its kind has")
        return chunk


def _tar_contents(file: IO[bytes], where: str, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    packed: Any = _Counted(file, where)
    plain: Any = _Counted(gzip.GzipFile(fileobj=packed, mode="rb"), where)
    plain.bound = limits.member_bytes + _SLACK
    with tarfile.open(fileobj=plain, mode="r|", errorlevel=2) as archive:
        while True:
            plain.bound = plain.total + limits.member_bytes + _SLACK  # a header could state any size
            entry = archive.next()
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all of them in memory
            _check_ratio(plain.total, packed.total, where, limits)
            if entry is None:
                break
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise _hostile(where, f"{entry.name[:80]!r}, a link, device or sparse file", "plain files")
            _check_size(entry.size, where, limits)
            member = archive.extractfile(entry)
            yield entry.name + "/" * entry.isdir(), iter(()) if member is None else _chunks(member)
        # tarfile takes a damaged header for the end: only zeros may follow, and gzip compares its CRC there.
        plain.bound = float("inf")
        while plain.read():
            _check_ratio(plain.total, packed.total, where, limits)
        if plain.end > archive.offset or plain.total < archive.offset + tarfile.BLOCKSIZE:
            raise _hostile(where, f"a damaged archive (no proper end after {archive.offset} bytes)", "a whole one")
